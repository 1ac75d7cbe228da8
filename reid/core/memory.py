"""Memory that is freed stays with the process, for work that asks for the same again and again."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """From now on freed memory is not given back to the system, but used again. Without glibc nothing happens.

    By default glibc maps every array over 32 MB anew and unmaps it when it is freed, so that a network on the CPU has
    the kernel clear its activations' pages at every layer: a third of the time of training, a quarter of embedding.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, _NEVER)
