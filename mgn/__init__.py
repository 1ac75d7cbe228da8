"""MGN, the multiple granularity head, over any backbone. Imports torch only."""

from mgn.mgn import BRANCHES, MGN, Branch, Heads

__all__ = ["BRANCHES", "MGN", "Branch", "Heads"]
