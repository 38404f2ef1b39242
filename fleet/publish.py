"""Publishing seals a checked release once and lists it under its name for ever.

1. One name is one set of bytes: a name that is listed is refused, whatever its bytes are.
2. The content key is random, wrapped to the newest epoch of each group, and then forgotten. A desk that missed a
   group's new epoch is told so: what it seals for the old one, a device that was taken out could open.
3. The sealed bytes are spooled to a file, because they are named by their digest.
4. A delta is sealed under the content key of the release that it leads to, and is made only from a release that all
   readers of that one may read: who has both can work the base out. It is listed where it is clearly smaller.
5. Nothing depends on a delta: a device that cannot use it takes the release whole.
"""

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from cryptography.cobblestone import Cobblestone256Encryptor
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace
from tuf.api.metadata import TargetFile

from agent.core.documents import from_json, to_tree
from agent.core.errors import InputError
from agent.core.names import age_of, check_form
from agent.core.release import Metadata, Ref
from agent.trust.listing import FORMAT, DeltaListing, Listing, Wrap, delta_path, read_listing, target_path
from agent.trust.sealing import SALT_BYTES, ZSTD, SealedPart, seal
from fleet.delta import Release, make
from fleet.deploy import newest_epoch
from fleet.keyring import Keyring
from fleet.repository import Repository, listed
from fleet.sealing import best_group, wrap_key

PIECE_BYTES = 1024 * 1024
WORTH = 0.9  # a delta above this share of the whole file is not worth a second object in the store
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

    @property
    def variants(self) -> Mapping[str, bytes]:
        """Weights in other precisions, by precision."""
        ...


def silent(step: str, done: int, total: int) -> None:
    """Tells nobody."""


def publish(
    repository: Repository,
    checked: Checked,
    groups: Publics,
    *,
    bases: Sequence[Checked] = (),
    now: datetime,
    tell: Tell = silent,
) -> Ref:
    """Seals, uploads and lists a release for groups, with deltas from published releases where these pay.

    Raises:
        InputError: its name was published before, there is no group, a key is missing, or a base does not fit.
        TransferError: it could not be uploaded; nothing of it is visible.
    """
    path = target_path(checked.name)
    require_new(repository, path, groups)
    check_epochs(repository, groups, now)
    for base in bases:
        require_fit(repository, checked.name, base, groups)
    contents = contents_of(checked)
    parts = [describe(name, content) for name, content in contents.items()]
    key = Cobblestone256Encryptor.generate_key()
    listing = describe_listing(checked, size_of(parts), wraps(key, path, groups))
    with tempfile.TemporaryFile() as spool:
        length, digest = spool_digest(seal(key, path, parts, all_told(parts, contents, tell)), spool)
        salt = spool.read(SALT_BYTES)
        spool.seek(0)
        upload(repository, listed(path, length, digest, to_tree(listing)), spool, tell)
    for base in bases:
        add_delta(repository, key, salt, in_memory(checked, parts), base, int(WORTH * length), tell)
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


def add_delta(
    repository: Repository, key: bytes, salt: bytes, new: Release, base: Checked, limit: int, tell: Tell
) -> None:
    """Uploads the delta from a published release, if it has at most `limit` bytes."""
    old = in_memory(base, [describe(name, content) for name, content in contents_of(base).items()])
    path = delta_path(new.name, repository.ref(base.name).digest)
    with tempfile.TemporaryFile() as spool:
        step, total = f"delta from {base.name}", size_of(new.parts)
        length, digest, size = seal_delta(key, salt, path, new, old, spool, lambda done: tell(step, done, total))
        if length <= limit:
            custom = to_tree(DeltaListing(fmt="cob256+zstd+delta/v1", size=size, zstd=ZSTD))
            upload(repository, listed(path, length, digest, custom), spool, tell)


def seal_delta(
    key: bytes, salt: bytes, path: str, new: Release, old: Release, spool: BinaryIO, count: Callable[[int], None]
) -> tuple[int, str, int]:
    """Writes a sealed delta; its bytes, SHA-256, and the bytes of its parts."""
    with tempfile.TemporaryDirectory() as folder:
        contents = make(new, old, salt, Path(folder), count)
        groups = {part.name: part.group for part in new.parts}  # a sample would find the zeros of what did not change
        parts = [replace(describe(name, one), group=groups.get(name, 1)) for name, one in contents.items()]
        return *spool_digest(seal(key, path, parts, map(read_pieces, contents.values())), spool), size_of(parts)


def require_new(repository: Repository, path: str, groups: Publics) -> None:
    """Raises InputError where something was published here before, or nobody could read it."""
    if repository.find(path) is not None:
        raise InputError(f"{path}: published before; a name is one set of bytes for ever: choose a new one")
    if not groups:
        raise InputError("no group to publish for; make one with `edge-provision group init`")


def require_fit(repository: Repository, name: str, base: Checked, groups: Publics) -> None:
    """Raises InputError where a delta from a base would fit no device, or tell of it those who may not read it.

    A desk cannot open what it published; whether the files are still the same is told from their size.
    """
    if check_form(base.name)[0] != check_form(name)[0]:
        raise InputError(f"{base.name}: another model than {name}; devices look for deltas from the same model alone")
    size = sum(len(piece) for content in contents_of(base).values() for piece in read_pieces(content))
    path = target_path(base.name)
    target = repository.find(path)
    if target is None:
        raise InputError(f"{base.name}: not published here, so a delta from it would fit no device; publish it first")
    signed = read_listing(target.custom, path)
    if signed.size != size:
        raise InputError(
            f"{base.name}: its files have {size} bytes, {signed.size} were published: they are others now; "
            "publish without a delta from it"
        )
    if others := {group for group, _ in groups} - {wrap.group for wrap in signed.wraps}:
        raise InputError(
            f"{base.name}: {', '.join(sorted(others))} may not read it, and could work it out from a delta; "
            "publish without a delta from it"
        )


def newest_base(repository: Repository, name: str, there: Iterable[str]) -> str | None:
    """The newest published release of the same model, out of those whose files are there."""
    stem, _ = check_form(name)
    listed_names = {ref.name for ref in repository.refs()}
    same = [one for one in there if one != name and one in listed_names and check_form(one)[0] == stem]
    return max(same, key=age_of, default=None)


def in_memory(checked: Checked, parts: Sequence[SealedPart]) -> Release:
    """A release as deltas are made from it."""
    contents = contents_of(checked).items()
    return Release(checked.name, parts, {name: b"".join(read_pieces(content)) for name, content in contents})


def size_of(parts: Iterable[SealedPart]) -> int:
    """Bytes of all parts together."""
    return sum(part.size for part in parts)


def upload(repository: Repository, target: TargetFile, content: BinaryIO, tell: Tell) -> None:
    """Uploads a blob, with word of it."""
    tell(f"upload {target.path}", 0, target.length)
    repository.add(target, content)
    tell(f"upload {target.path}", target.length, target.length)


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
        **{f"model.{precision}.onnx": weights for precision, weights in checked.variants.items()},
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


def all_told(
    parts: Iterable[SealedPart], contents: Mapping[str, bytes | Path], tell: Tell
) -> Iterator[Iterator[bytes]]:
    """The pieces of each part, with word of how far they went."""
    for part in parts:
        yield told(read_pieces(contents[part.name]), part, tell)


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
