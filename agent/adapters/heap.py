"""How a process uses glibc's heap.

What serves keeps what it frees: the next frame is as large as the last, and to be given new pages for it, which the
kernel clears, may take a third of the frame's time. What does not serve gives it back.
"""

import ctypes

_LIBC = ctypes.CDLL(None)
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
_KEPT_BYTES = 32 * 1024 * 1024  # the most that glibc takes for the second


def keep_what_is_freed() -> None:
    """From here on, 32 MiB at the end of each arena at most, and whatever is larger goes back at once."""
    _LIBC.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    _LIBC.mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)


def share_one_arena() -> None:
    """For the threads that come: else each worker keeps memory of its own, about 2 MB."""
    _LIBC.mallopt(_ARENA_MAX, 1)
