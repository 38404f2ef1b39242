"""Large weights may be kept compressed: `.onnx.zst` beside or instead of `.onnx`.

1. The plain file goes only after the compressed one was read back and is the same.
2. Loading unpacks into a sealed memory file, never into a temporary file.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import zstandard

from agent.core.errors import InputError
from models.folder import open_folder

LEVEL = 19  # compressed once, read often: the slowest level that needs no more memory to unpack
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_PIECE = 1 << 20  # bytes


def compress_weights(name: str, folder: str | Path | None = None) -> Path:
    """The `.onnx.zst` that takes the place of a release's `.onnx`; as it is where it is compressed already.

    Raises:
        ModelNotFoundError: there are no weights of that name.
        OSError: the folder cannot be written.
    """
    plain = open_folder(folder).weights(name)
    if plain.suffix == ".zst":
        return plain
    packed = plain.with_name(f"{plain.name}.zst")
    part = packed.with_name(f"{packed.name}.part")
    with plain.open("rb") as source, part.open("wb") as target:
        zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).copy_stream(
            source, target, size=plain.stat().st_size
        )
        target.flush()
        os.fsync(target.fileno())
    with plain.open("rb") as before, opened(part) as path, Path(path).open("rb") as after:
        if _digest(before) != _digest(after):
            raise InputError(f"{part}: reads back differently: {plain.name} is kept; check this disk")
    part.replace(packed)
    plain.unlink()
    _sync(packed.parent)
    return packed


@contextmanager
def opened(path: Path) -> Iterator[str]:
    """A path under which a runtime reads the plain model while the context lasts.

    Raises:
        InputError: a compressed file is damaged.
    """
    if path.suffix not in {".zst", ".part"}:
        yield str(path)
        return
    with path.open("rb") as source, in_memory(lambda target: _unpack(source, target, path)) as plain:
        yield plain


@contextmanager
def in_memory(write: Callable[[BinaryIO], object]) -> Iterator[str]:
    """The path of a sealed memory file that `write` filled, while the context lasts."""
    descriptor = os.memfd_create("model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as target:
            write(target)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _unpack(source: BinaryIO, target: BinaryIO, path: Path) -> None:
    try:
        zstandard.ZstdDecompressor().copy_stream(source, target)
    except zstandard.ZstdError as error:
        raise InputError(f"{path}: this compressed model is damaged ({error}); take it from a backup") from error


def _digest(file: BinaryIO) -> bytes:
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.digest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
