"""Shared memory regions: files in /dev/shm where clients keep tensors, under the names that they registered.

1. A region's file is opened once, when it is registered: a plain file in /dev/shm, never a path or a link. Who may
   use which is the file's permission: the group edge-clients, to which the runner belongs, must be able to read it.
2. Its bytes are copied, never mapped. The client may shrink its file at any time, and whoever touches what was
   mapped there dies of it; a frame that changes inside a model would be blamed on the model.
3. Each use is held against what was registered, and against the file as it is by then.
4. A region belongs to no connection, slot or protocol; it stays through swaps until it is unregistered.
"""

import asyncio
import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, field

from agent.core.errors import InputError

FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open(3) keeps them
REGIONS = 256  # each is an open file; sixteen cameras with four regions each need 64
AT_ONCE = 1024**2  # bytes: copied in 0.1 ms, which is what asking a thread for it costs
HOW = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # not blocking: a pipe in its place would hold the runner up

Size = Annotated[int, Meta(ge=0, le=2**40)]


class Span(msgspec.Struct, frozen=True):
    """Where a tensor lies, as the parameters of a request say it."""

    region: str = field(name="shared_memory_region")
    size: Size = field(name="shared_memory_byte_size")
    offset: Size = field(name="shared_memory_offset", default=0)


class Registered(msgspec.Struct, frozen=True):
    """One region, in the protocol's words."""

    key: str
    byte_size: Size
    offset: Size = 0
    name: str = ""


class _File:
    """An open file. It is closed when nobody uses it any more: a copy in a thread may outlast the registration."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class Regions:
    """The regions that are registered."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._regions: dict[str, tuple[Registered, _File]] = {}

    def register(self, region: Registered) -> None:
        """Opens a region; from then on spans may name it.

        Raises:
            InputError: the name is taken, there are too many, or the file cannot be used.
        """
        name = region.name
        if not name:
            raise InputError("a shared memory region is registered under a name: give it one")
        if name in self._regions and not _is_removed(self._regions[name][1]):
            raise InputError(f"shared memory region {name!r} is registered already: unregister it first")
        if len(self._regions) >= REGIONS:  # clients that died left theirs behind
            self._regions = {one: held for one, held in self._regions.items() if not _is_removed(held[1])}
        if len(self._regions) >= REGIONS:
            raise InputError(f"{REGIONS} shared memory regions are registered: unregister some")
        file = _open(self._folder, region)
        length = os.fstat(file.number).st_size
        if not 0 < region.byte_size <= length - region.offset:
            raise InputError(
                f"shared memory region {name!r}: {region.byte_size} bytes from {region.offset} on do not lie "
                f"within {region.key}, which has {length}"
            )
        self._regions[name] = region, file

    def unregister(self, name: str | None) -> None:
        """Forgets a region, or all; what is being copied is still copied."""
        for one in [name] if name is not None else list(self._regions):
            self._regions.pop(one, None)

    def status(self, name: str | None) -> list[Registered]:
        """One region, or all.

        Raises:
            InputError: there is none of that name.
        """
        if name is None:
            return [region for region, _ in self._regions.values()]
        return [self._find(name)[0]]

    def check(self, span: Span) -> None:
        """Return when a span lies within its region.

        Raises:
            InputError: it does not, or there is no such region.
        """
        region, _ = self._find(span.region)
        if span.offset + span.size > region.byte_size:
            raise InputError(
                f"shared memory region {span.region!r}: {span.size} bytes from {span.offset} on do not lie within "
                f"its {region.byte_size}"
            )

    async def read(self, span: Span, target: memoryview) -> None:
        """Copies a span to `target`, which is as long.

        Raises:
            InputError: the region does not hold it, or not any more.
        """
        copied = await self._copy(lambda file, place: os.preadv(file.number, [target], place), span)
        if copied != span.size:
            raise _is_cut(span)

    async def write(self, span: Span, content: memoryview) -> None:
        """Copies `content` to the beginning of a span.

        Raises:
            InputError: it does not fit, or the region cannot be written.
        """
        if len(content) > span.size:
            raise InputError(
                f"shared memory region {span.region!r}: {span.size} bytes were given for an output of {len(content)}"
            )
        try:
            await self._copy(partial(_write, span, content), span)
        except OSError as error:
            raise InputError(
                f"shared memory region {span.region!r}: an output could not be written there ({error.strerror}); its "
                f"file must be writable by the group edge-clients, and {self._folder} have room"
            ) from error

    async def _copy(self, copy: Callable[[_File, int], int], span: Span) -> int:
        self.check(span)
        region, file = self._find(span.region)
        if span.size <= AT_ONCE:
            return copy(file, region.offset + span.offset)
        copying = asyncio.ensure_future(asyncio.to_thread(copy, file, region.offset + span.offset))
        try:
            return await asyncio.shield(copying)
        except asyncio.CancelledError:  # whoever asked has left, and the thread copies on: his lane is not free before
            await asyncio.wait([copying])
            raise

    def _find(self, name: str) -> tuple[Registered, _File]:
        if name not in self._regions:
            raise InputError(f"unknown shared memory region {name!r}: register it first")
        return self._regions[name]


def _write(span: Span, content: memoryview, file: _File, place: int) -> int:
    if os.fstat(file.number).st_size < place + len(content):  # writing would make it long again, at our cost
        raise _is_cut(span)
    if (written := os.pwrite(file.number, content, place)) < len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return written


def _is_cut(span: Span) -> InputError:
    return InputError(f"shared memory region {span.region!r}: its file was cut short after it was registered")


def _is_removed(file: _File) -> bool:
    return os.fstat(file.number).st_nlink == 0


def _open(folder: Path, region: Registered) -> _File:
    key = region.key.removeprefix("/")
    what = f"shared memory region {region.name!r}"
    if not key or "/" in key or "\0" in key or key in {".", ".."}:
        raise InputError(f"{what}: key {region.key!r} is not a name in {folder}, as shm_open(3) has it")
    path = folder / key
    file = _File(_descriptor(path, what))
    if not stat.S_ISREG(os.fstat(file.number).st_mode):
        raise InputError(f"{what}: {path} is no shared memory, but a file of another kind")
    return file


def _descriptor(path: Path, what: str) -> int:
    try:
        for how in (os.O_RDWR, os.O_RDONLY):  # what may only be read is enough for inputs
            with suppress(PermissionError):
                return os.open(path, how | HOW)
        found = path.lstat()
    except (OSError, UnicodeEncodeError) as error:
        raise InputError(f"{what}: {path} cannot be opened ({error})") from error
    raise InputError(
        f"{what}: {path} is of user {found.st_uid} with mode {stat.S_IMODE(found.st_mode):04o}, and the runner may not "
        f"read it: chgrp edge-clients {path} && chmod 660 {path}"
    )
