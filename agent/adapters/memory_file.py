"""Memory files (memfd): how weights and tensors pass between processes without touching a disk.

1. A part of a release is reserved whole by the runner before the agent writes it, so its pages are charged to
   the runner; it is sealed against every change before its digest is taken, so nobody can change it after.
2. An arena is for tensors: it may grow, and is sealed against shrinking, so that no peer can make us fault
   (SIGBUS) on memory that we map.
3. Every mapping is left out of core dumps.
"""

import fcntl
import hashlib
import mmap
import os
import sys
from pathlib import Path

from agent.core.errors import TransferError

ARENA_BYTES = 1024**3  # of an arena are mapped: its other holder may say that it is larger than any address space
SEAL_EXEC = 0x20  # F_SEAL_EXEC, which systems that forbid executable memory files add to each (vm.memfd_noexec)
FROZEN = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
GROWABLE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def reserve(name: str, size: int) -> int:
    """A descriptor of an empty file with memory for `size` bytes.

    Raises:
        TransferError: there is no memory for it now.
    """
    try:
        number = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            if size:
                os.posix_fallocate(number, 0, size)
        except OSError:
            os.close(number)
            raise
    except OSError as error:
        raise TransferError(
            f"{name}: no memory for {size} bytes now ({error.strerror}); free some, then again"
        ) from error
    return number


def arena(name: str, size: int) -> int:
    """A descriptor of a file that may grow and never shrinks."""
    number = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(number, size)
    fcntl.fcntl(number, fcntl.F_ADD_SEALS, GROWABLE)
    return number


def is_arena(number: int) -> bool:
    """Whether somebody else's file is what `arena` makes: nothing that he does to it makes a mapping of it fault.

    Files of huge pages are not: they fault where none is left.
    """
    try:
        seals = fcntl.fcntl(number, fcntl.F_GET_SEALS) & ~SEAL_EXEC
    except OSError:  # no memory file
        return False
    is_writable = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    return seals == GROWABLE and is_writable and size(number) > 0 and os.fstatvfs(number).f_bsize == mmap.PAGESIZE


def seal(number: int) -> None:
    """Makes the content final for everybody who holds the file.

    Raises:
        TransferError: somebody still has it mapped for writing.
    """
    try:
        fcntl.fcntl(number, fcntl.F_ADD_SEALS, FROZEN)
    except OSError as error:
        raise TransferError(f"memory file {number} is still mapped for writing: unmap it, then seal again") from error


def digest(number: int) -> str:
    """The SHA-256 of the content, in hexadecimal."""
    if not size(number):
        return hashlib.sha256().hexdigest()
    # Private: before Linux 6.7 a file sealed against writing cannot be mapped shared.
    with _mapped(number, mmap.PROT_READ, mmap.MAP_PRIVATE) as content:
        return hashlib.sha256(content).hexdigest()


def read(number: int) -> bytes:
    """All of the content."""
    return Path(f"/proc/self/fd/{number}").read_bytes()


def write(number: int, content: bytes | memoryview, place: int = 0) -> int:
    """Puts `content` at a place; the place behind it."""
    view = memoryview(content)
    while view:
        written = os.pwrite(number, view, place)
        view, place = view[written:], place + written
    return place


def size(number: int) -> int:
    """Bytes in the file."""
    return os.fstat(number).st_size


def grow(number: int, wanted: int) -> None:
    """Makes an arena at least `wanted` bytes long."""
    if size(number) < wanted:
        os.ftruncate(number, wanted)


def map_shared(number: int) -> mmap.mmap:
    """All of an arena as it is now, for reading and writing."""
    return _mapped(number, mmap.PROT_READ | mmap.PROT_WRITE, most=ARENA_BYTES)


def map_for_reading(number: int) -> mmap.mmap:
    """All of an arena as it is now; a write to it is an error."""
    return _mapped(number, mmap.PROT_READ, most=ARENA_BYTES)


def _mapped(number: int, may: int, how: int = mmap.MAP_SHARED, most: int = sys.maxsize) -> mmap.mmap:
    content = mmap.mmap(number, min(size(number), most), flags=how, prot=may)
    content.madvise(mmap.MADV_DONTDUMP)
    return content
