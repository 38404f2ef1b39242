"""Publishing seals a checked release once and lists it under its name for ever.

1. One name is one set of bytes: a name that is listed is refused, whatever its bytes are.
2. The content key is random, wrapped to the newest epoch of each group, and then forgotten. A desk that missed a
   group's new epoch is told so: what it seals for the old one, a device that was taken out could open.
3. The sealed bytes are spooled to a file, because they are named by their digest.
"""

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from cryptography.cobblestone import Cobblestone256Encryptor
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.documents import from_json, to_tree
from agent.core.errors import InputError
from agent.core.release import Metadata, Ref
from agent.trust.listing import FORMAT, Listing, Wrap, target_path
from agent.trust.sealing import SealedPart, seal
from fleet.deploy import newest_epoch
from fleet.keyring import Keyring
from fleet.repository import Repository, listed
from fleet.sealing import best_group, wrap_key

PIECE_BYTES = 1024 * 1024
SAMPLE_BYTES = 1024 * 1024  # enough to tell float32 from float16

Publics = Mapping[tuple[str, int], ec.EllipticCurvePublicKey]
Tell = Callable[[str, int, int], None]  # step, bytes done, bytes in all


class Checked(Protocol):
    """A release that passed the checks of `models.check`."""

    @property
    def name(self) -> str:
        """The release's name."""
        ...

    @property
    def metadata(self) -> bytes:
        """metadata.json."""
        ...

    @property
    def config(self) -> bytes:
        """config.yaml."""
        ...

    @property
    def weights(self) -> bytes | Path:
        """model.onnx, or where it lies."""
        ...

    @property
    def golden(self) -> bytes:
        """golden.npz."""
        ...


def silent(step: str, done: int, total: int) -> None:
    """Tells nobody."""


def publish(repository: Repository, checked: Checked, groups: Publics, *, now: datetime, tell: Tell = silent) -> Ref:
    """Seals, uploads and lists a release for groups.

    Raises:
        InputError: its name was published before, there is no group, or a key is missing.
        TransferError: it could not be uploaded; nothing of it is visible.
    """
    path = target_path(checked.name)
    if repository.find(path) is not None:
        raise InputError(
            f"release {checked.name}: published before; a name is one set of bytes for ever: choose a new one"
        )
    if not groups:
        raise InputError("no group to publish for; make one with `edge-provision group init`")
    check_epochs(repository, groups, now)
    contents = contents_of(checked)
    parts = [describe(name, content) for name, content in contents.items()]
    key = Cobblestone256Encryptor.generate_key()
    listing = describe_listing(checked, sum(part.size for part in parts), wraps(key, path, groups))
    with tempfile.TemporaryFile() as spool:
        pieces = (
            told(read_pieces(content), part, tell) for part, content in zip(parts, contents.values(), strict=True)
        )
        length, digest = spool_digest(seal(key, path, parts, pieces), spool)
        tell("upload", 0, length)
        repository.add(listed(path, length, digest, to_tree(listing)), spool)
        tell("upload", length, length)
    repository.publish(now)
    return Ref(name=checked.name, digest=digest)


def check_epochs(repository: Repository, groups: Publics, now: datetime) -> None:
    """Raises InputError where a group has a newer epoch than is known here."""
    for group, epoch in groups:
        newest = newest_epoch(repository, group, now)
        if newest > epoch:
            raise InputError(
                f"group {group}: is at epoch {newest}, this desk knows {epoch}; copy groups/{group}/{newest}.pub from "
                "the desk that enrols devices"
            )


def newest_publics(keyring: Keyring, groups: Iterable[str]) -> Publics:
    """The newest epoch of each group; raises InputError for a group that is not known here."""
    found = {}
    for group in groups:
        epochs = keyring.publics(group)
        found[group, max(epochs)] = epochs[max(epochs)]
    return found


def contents_of(checked: Checked) -> Mapping[str, bytes | Path]:
    """The parts of a release under the names that devices know, small ones first."""
    return {
        "metadata.json": checked.metadata,
        "config.yaml": checked.config,
        "golden.npz": checked.golden,
        "model.onnx": checked.weights,
    }


def wraps(key: bytes, path: str, groups: Publics) -> tuple[Wrap, ...]:
    """The content key for each group."""
    return tuple(
        Wrap(group=group, epoch=epoch, key=wrap_key(key, public, path, group, epoch))
        for (group, epoch), public in sorted(groups.items(), key=lambda item: item[0])
    )


def describe(name: str, content: bytes | Path) -> SealedPart:
    """Size, digest and grouping of a part."""
    digest = hashlib.sha256()
    size = 0
    for piece in read_pieces(content):
        digest.update(piece)
        size += len(piece)
    return SealedPart(name=name, size=size, sha256=digest.hexdigest(), group=best_group(sample(content, size)))


def describe_listing(checked: Checked, size: int, keys: tuple[Wrap, ...]) -> Listing:
    """What TUF signs about the release beside length and hash."""
    metadata = from_json(Metadata, checked.metadata, f"metadata of {checked.name}")
    return Listing(
        fmt=FORMAT,
        size=size,
        wraps=keys,
        task=metadata.task,
        architecture=metadata.architecture,
        dataset=metadata.dataset,
        version=metadata.version,
        memory_mb=math.ceil(metadata.compatibility.memory_mb),
        opset=metadata.compatibility.opset,
    )


def read_pieces(content: bytes | Path) -> Iterator[bytes]:
    """The content in pieces."""
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def sample(content: bytes | Path, size: int) -> bytes:
    """A stretch from the middle, from a multiple of eight: the beginning of a file is not like the rest."""
    start = max(0, (size - SAMPLE_BYTES) // 2) // 8 * 8
    if isinstance(content, bytes):
        return content[start : start + SAMPLE_BYTES]
    with content.open("rb") as file:
        file.seek(start)
        return file.read(SAMPLE_BYTES)


def told(pieces: Iterable[bytes], part: SealedPart, tell: Tell) -> Iterator[bytes]:
    """The pieces, with word of how far they went."""
    done = 0
    for piece in pieces:
        yield piece
        done += len(piece)
        tell(f"seal {part.name}", done, part.size)


def spool_digest(pieces: Iterable[bytes], spool: BinaryIO) -> tuple[int, str]:
    """Writes the pieces, goes back to the beginning; (bytes, SHA-256)."""
    digest = hashlib.sha256()
    length = 0
    for piece in pieces:
        digest.update(piece)
        length += spool.write(piece)
    spool.seek(0)
    return length, digest.hexdigest()
