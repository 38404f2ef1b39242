"""Memory that the machine has at hand, as a device's is.

Where the machine is a virtual one, its host takes free memory back after a second or two (free page reporting), in
pieces of 2 MB, and to be given it again took twenty times as long as memory that was there: 512 MB of huge pages in
1.2 s and not in 0.06. Seats use huge pages and a plain process does not: the figure would be the host's.
"""

import mmap
from contextlib import suppress

import psutil

BYTES = 4 * 1024**3  # what a load of a gigabyte takes and gives back, in all


def warm() -> None:
    """Have as much at hand as a load takes, for the next second: it is taken, and given back at once."""
    size = min(BYTES, psutil.virtual_memory().available // 2)
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        with suppress(OSError):  # a system without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        for place in range(0, size, mmap.PAGESIZE):
            memory[place] = 1
