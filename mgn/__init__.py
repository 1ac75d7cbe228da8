"""MGN, the multiple granularity head, over any backbone. Imports torch only."""

from mgn.mgn import BRANCHES, MGN, Branch, Heads
from mgn.readout import Readout

__all__ = ["BRANCHES", "MGN", "Branch", "Heads", "Readout"]
