"""The one reader of image files: which formats, how they are decoded, which way is up, what is too large, and where
they lie. What the program embeds, checks and draws comes from here, so that a file is good for all of them or for none.

    pixels = read_images(paths, (256, 128))     # (N, 256, 128, 3) uint8, RGB, upright
    bad = find_bad(paths)                       # path -> why it cannot be read
    images, others = find_images(["photos/"])   # the files in a folder and below
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from tqdm import tqdm

from reid.core.files import open_regular
from reid.core.types import ReidError

THREADS = min(16, os.cpu_count() or 1)
BESIDE = max(1, THREADS // 4)  # beside a network on the same cores: more would wait for one another, and it for them

# Pillow's name of a format -> suffixes of its files. Never EPS and the like, which run programs. Content decides how a
# file is decoded, its suffix whether a file in a folder is an image at all.
FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}
if find_spec("PIL._avif"):  # Pillow from 11.3, where it was built with it
    FORMATS["AVIF"] = (".avif",)
_FORMATS = tuple(FORMATS)
SUFFIXES = tuple(sorted(suffix for suffixes in FORMATS.values() for suffix in suffixes))  # lower case
_SUFFIXES = re.compile(rf"({'|'.join(map(re.escape, SUFFIXES))})+$", re.IGNORECASE)  # as in Market-1501 also .jpg.jpg
MAX_PIXELS = 8192 * 8192  # of an image; decoding takes about 12 bytes a pixel
MAX_BYTES = 1 << 29  # of a file: MAX_PIXELS of 16-bit RGB, as they are
_SMALL = 1 << 20  # pixels up to which images are decoded side by side without a count
_LITTER = {"@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information", "lost+found", "desktop.ini"}
_TURNS = {  # EXIF's Orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns of sizes that MAX_PIXELS refuses by name, and of metadata that is of no use here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class UnreadableImage(ReidError):
    """A file that is no image for this program: `path`, and `reason`, which goes on from it ("is empty")."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} {self.reason}: leave it out, or mend it"


# ---- pixels


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """The image in a file: RGB, 8 bits a channel, upright as its EXIF says; of several frames the first.

    Grey of 16 bits and floats from 0 to 1 are scaled to 8 bits. Raises UnreadableImage, a ReidError that names the
    file, where it is no whole image of FORMATS, no regular file, larger than MAX_PIXELS or MAX_BYTES, or where its
    values are of a range that it does not tell. Metadata that is broken beside whole pixels is dropped.
    """
    with _decoded(path) as image:
        return image


def read_image(path: str | os.PathLike[str], size: tuple[int, int]) -> np.ndarray:
    """RGB uint8 (height, width, 3) of an image file, resized with bilinear filtering. `size` is (height, width).

    Raises UnreadableImage as `open_image` does.
    """
    with _decoded(path) as image:
        return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def read_images(
    paths: Sequence[str], size: tuple[int, int], out: np.ndarray | None = None, *, threads: int = THREADS
) -> np.ndarray:
    """(N, height, width, 3) uint8, read by several threads. Raises UnreadableImage of the first that cannot be."""
    images = np.empty((len(paths), *size, 3), np.uint8) if out is None else out
    with ThreadPoolExecutor(threads) if threads > 1 else contextlib.nullcontext() as pool:
        read = map if pool is None else pool.map
        for i, image in enumerate(read(lambda path: read_image(path, size), paths)):
            images[i] = image
    return images


@contextlib.contextmanager
def _decoded(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """The image, and until it is let go of its share of the memory that decoding may take."""
    name, share = os.fspath(path), 0
    with _open_file(name) as file:
        try:
            try:
                image = Image.open(file, formats=_FORMATS)
                pixels = image.width * image.height
                if pixels > MAX_PIXELS:
                    raise UnreadableImage(name, _too_large(f"{image.width}x{image.height} pixels"))
                if pixels > _SMALL:
                    _memory.take(pixels)
                    share = pixels
                upright = _upright(image, name)
            except ReidError:
                raise
            except UnidentifiedImageError:
                empty = os.fstat(file.fileno()).st_size == 0
                reason = "is empty (0 bytes)" if empty else f"is not an image ({', '.join(FORMATS)})"
                raise UnreadableImage(name, reason) from None
            except Image.DecompressionBombError:
                raise UnreadableImage(name, _too_large("too many pixels")) from None
            except Exception as error:  # of damaged files Pillow raises whatever comes: struct.error, TypeError, ...
                said = " ".join(str(error).split()) or type(error).__name__
                raise UnreadableImage(name, f"is not a whole image ({said})") from None
            yield upright
        finally:
            if share:
                _memory.give(share)


def _open_file(name: str) -> BinaryIO:
    try:
        return open_regular(name, at_most=MAX_BYTES)
    except FileNotFoundError:
        raise UnreadableImage(name, "does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UnreadableImage(name, f"cannot be opened ({getattr(error, 'strerror', error)})") from None
    except ReidError as error:
        raise UnreadableImage(name, str(error).removeprefix(f"{name} ")) from None


def _too_large(size: str) -> str:
    return f"has {size}, the most that are read are {MAX_PIXELS:,}: scale it down"


def _upright(image: Image.Image, name: str) -> Image.Image:
    image.load()
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        pixels = _to_8_bits(image, name).convert("RGB")
    else:
        pixels = image if image.mode == "RGB" else image.convert("RGB")
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))  # telephones say which way is up there
    except Exception:  # EXIF is a file of its own, and as often broken; the pixels are whole
        turn = None
    return pixels if turn is None else pixels.transpose(turn)


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Of grey with 12, 16 or 32 bits, which Pillow's own conversion would cut off at 255."""
    values = np.asarray(image)
    tags: Any = getattr(image, "tag_v2", {})  # of a TIFF
    if image.mode == "I":
        raise UnreadableImage(name, "holds whole numbers of 32 bits and does not say which is white: save it with 8")
    if image.mode == "F":
        top = 1
        if not (values.min() >= 0 and values.max() <= top):  # false of NaN, too
            raise UnreadableImage(
                name, f"holds floats from {values.min():g} to {values.max():g}, expected 0 to 1: save it with 8 bits"
            )
    else:
        top = (1 << tags.get(ExifTags.Base.BitsPerSample, (16,))[0]) - 1
        if top == 0xFFFF and 0 < values.max() <= 0xFFF:
            raise UnreadableImage(
                name,
                f"holds values to {values.max()} in 16 bits and does not say whether 4095 or 65535 is white: "
                "save it with 8 bits",
            )
    scaled = values * np.float32(255 / top)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # WhiteIsZero, which Pillow minds in 8 bits only
        scaled = 255 - scaled
    return Image.fromarray(np.rint(scaled, out=scaled).astype(np.uint8))


class _Memory:
    """What all threads together may decode at one time: MAX_PIXELS. Images up to _SMALL are not counted."""

    def __init__(self) -> None:
        self.free, self.changed = MAX_PIXELS, threading.Condition()

    def take(self, pixels: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.free >= pixels)
            self.free -= pixels

    def give(self, pixels: int) -> None:
        with self.changed:
            self.free += pixels
            self.changed.notify_all()


_memory = _Memory()


def _renew_memory() -> None:
    global _memory
    _memory = _Memory()


os.register_at_fork(after_in_child=_renew_memory)  # the threads that hold a share are not in the child


# ---- the check


class ImageFacts(NamedTuple):
    """One image file, decoded."""

    trouble: str  # why it cannot be read; "" where it can
    width: int = 0  # in pixels, upright
    height: int = 0
    digest: bytes = b""  # of size and pixels, so that other metadata does not hide a copy


def find_bad(paths: Iterable[str | os.PathLike[str]], *, progress: bool = True) -> dict[str, str]:
    """Decodes every image in full: path -> why it cannot be read, for those that cannot. Sorted by path."""
    facts = inspect((os.fspath(path) for path in paths), progress=progress)
    return {path: fact.trouble for path, fact in facts.items() if fact.trouble}


def inspect(paths: Iterable[str], *, progress: bool = True, title: str = "decoding") -> dict[str, ImageFacts]:
    """Decodes every image in full, in threads: path -> what it is. Sorted by path, each path once."""
    names = sorted(set(paths))
    with ThreadPoolExecutor(min(8, THREADS)) as pool:
        facts = pool.map(_inspect, names)
        return dict(zip(names, tqdm(facts, desc=title, total=len(names), unit="image", disable=not progress)))


def _inspect(path: str) -> ImageFacts:
    try:
        with _decoded(path) as image:
            pixels = hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16)
            return ImageFacts("", *image.size, pixels.digest())
    except UnreadableImage as error:
        return ImageFacts(error.reason)


# ---- files


class Found(NamedTuple):
    """The files of a place. Sorted."""

    images: list[Path]
    others: list[Path]  # visible files whose name is not that of an image


def find_images(places: Sequence[str]) -> Found:
    """The files that are named (also by patterns), whatever their names, and those in the named folders and below.

    Links to folders are followed, into each folder once. What systems leave behind is passed over (`is_ignored`).
    Raises ReidError for a place that is not there or holds no image, and for a folder that cannot be listed.
    """
    images: set[Path] = set()
    others: set[Path] = set()
    for place in places:
        matches = [Path(place)]
        if not os.path.lexists(place):
            matches = [Path(p) for p in sorted(glob.glob(place, recursive=True)) if not is_ignored(Path(p).name)]
        if not matches:
            raise ReidError(f"no image or folder at {place}")
        for match in matches:
            inside = _files_below(match) if match.is_dir() else [match]
            found = [file for file in inside if file == match or is_image(file.name)]
            if not found:
                raise ReidError(f"no images in {match}: looked for {', '.join(SUFFIXES)} in it and below")
            images.update(found)
            others.update(set(inside) - set(found))
    return Found(sorted(images), sorted(others - images))


def _files_below(folder: Path) -> list[Path]:
    """Links come last: where a folder and a link to it are both below, its files keep the names they have there."""
    files: list[Path] = []
    folders, links, seen = deque([folder]), deque[Path](), set()
    while folders or links:
        here = folders.popleft() if folders else links.popleft()
        with _listing(here):
            about = os.stat(here)
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            for entry in sorted(os.scandir(here), key=lambda entry: entry.name):
                if is_ignored(entry.name):
                    continue
                kind = (links if entry.is_symlink() else folders) if entry.is_dir() else files
                kind.append(here / entry.name)
    return files


def list_folder(folder: str | os.PathLike[str]) -> list[str]:
    """The names in a folder, sorted, without what `is_ignored`. Raises ReidError where it cannot be listed."""
    with _listing(folder):
        return sorted(name for name in os.listdir(folder) if not is_ignored(name))


@contextlib.contextmanager
def _listing(folder: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ReidError(
            f"cannot list the folder {os.fspath(folder)} ({error.strerror}): make it readable, or move it away"
        ) from None


def is_ignored(name: str) -> bool:
    """Whether a name is of what systems leave in folders of images: hidden files, Thumbs.db, @eaDir and the like."""
    lower = name.lower()
    return lower.startswith(".") or lower.endswith(".db") or lower in _LITTER


def stem(name: str) -> str:
    """`name` without the suffixes of an image.

    >>> stem("0001_c1s1_001051_00.jpg.JPG")
    '0001_c1s1_001051_00'
    """
    return _SUFFIXES.sub("", name)


def is_image(name: str) -> bool:
    """Whether a file's name says that it is an image."""
    return name.lower().endswith(SUFFIXES) and not is_ignored(name)
