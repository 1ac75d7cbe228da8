"""One's own images: a folder a person, or a CSV, as `reid.core.own_images` says and reads them."""

from reid.core.own_images import divide as divide
from reid.core.own_images import read_own_images as read

__all__ = ["divide", "read"]
