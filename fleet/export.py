"""An export is a repository's part for one group in one file: what its devices read, for a site without a network.

1. It holds bytes under the keys that they have in the store, uncompressed, so that a device reads it in place: all
   roots, the newest metadata, the group's deployment and grants, policies, and releases with the deltas to them.
2. It is looked at as a device looks at it before it gets its name: what no device would take is not written.
3. It proves nothing: devices verify it as they verify a store. It is as fresh as its timestamp, which expires.
"""

import hashlib
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from tuf.api.metadata import TargetFile

from agent.adapters import files
from agent.adapters.archive import ArchiveStore
from agent.adapters.store import Store
from agent.adapters.tuf_client import METADATA, TufClient
from agent.core.errors import InputError, TrustError
from agent.trust.listing import target_path
from agent.trust.policy import POLICY_PATH, WITHDRAWN_PATH
from fleet.deploy import check_readable, current, deployment_path
from fleet.keyring import check_word
from fleet.publish import Tell
from fleet.repository import Repository, key_of
from fleet.versions import METADATA_BYTES

MODE = 0o644 << 16  # of every entry: a plain file


def export(
    repository: Repository, group: str, releases: Iterable[str], out: Path, *, now: datetime, tell: Tell
) -> tuple[str, ...]:
    """Writes the file; the releases that are in it: those of the group's deployment, and the ones named.

    Raises:
        InputError: a release is not listed or not for this group, nothing would be in it, or the file cannot be there.
        TrustError: bytes in the store are not the signed ones, or the metadata has expired.
        TransferError: the store or the disk refuses.
    """
    names = chosen(repository, check_word("group", group), releases, now)
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise InputError(f"{out}: is a folder, or in no folder; give --out the name of a file in one that is there")
    paths = (*targets_of(repository, names), deployment_path(group), POLICY_PATH, WITHDRAWN_PATH)
    with files.saying_why(out), tempfile.TemporaryDirectory(prefix=files.TEMP, dir=out.absolute().parent) as folder:
        part = Path(folder) / "export.zip"
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            for key in documents(repository, group):
                archive.writestr(entry(key), repository.store.read(key, METADATA_BYTES))
            for target in filter(None, map(repository.find, paths)):
                copy(repository.store, target, archive, tell)
        look(part, repository, Path(folder) / "tuf", now)
        files.sync_file(part)
        part.replace(out)
        files.sync_folder(out.absolute().parent)
    return names


def chosen(repository: Repository, group: str, releases: Iterable[str], now: datetime) -> tuple[str, ...]:
    """The releases that go along; raises InputError where there is none, or the group could not open one."""
    names = sorted({*deployed(repository, group, now), *releases})
    for name in names:
        repository.ref(name)
        check_readable(repository, name, group)
    if not names:
        raise InputError(f"{group}: nothing is deployed there; name a release with --release, or roll one out first")
    return tuple(names)


def deployed(repository: Repository, group: str, now: datetime) -> set[str]:
    """The releases that a group's deployment names: where it leads, and where a revert leads."""
    last = current(repository, group, now)
    moves = last.rollout.slots.values() if last is not None else ()
    return {ref.name for move in moves for ref in (move.goal, move.start) if ref is not None}


def targets_of(repository: Repository, names: Iterable[str]) -> Iterator[str]:
    """Where releases are listed, and every delta to them: a device finds in the file what the metadata promises."""
    for name in names:
        yield target_path(name)
        yield from repository.paths(target_path(name).removesuffix("sealed") + "from.")


def documents(repository: Repository, group: str) -> Iterator[str]:
    """Keys of everything small beside the targets."""
    for version in range(1, repository.root.signed.version + 1):
        yield f"{METADATA}{version}.root.json"
    yield f"{METADATA}timestamp.json"
    yield f"{METADATA}{repository.snapshot.signed.version}.snapshot.json"
    for name, meta in sorted(repository.snapshot.signed.meta.items()):
        yield f"{METADATA}{meta.version}.{name}"
    yield from repository.store.keys(f"grants/{group}/")


def copy(store: Store, target: TargetFile, archive: zipfile.ZipFile, tell: Tell) -> None:
    """One target into the file, if its bytes are the signed ones."""
    digest, name = hashlib.sha256(), target.path.rsplit("/", 1)[1]
    with store.stream(key_of(target)) as download, archive.open(entry(key_of(target)), "w", force_zip64=True) as file:
        done = 0
        for piece in download.pieces:
            digest.update(piece)
            done += file.write(piece)
            tell(name, done, target.length)
            if done > target.length:
                break
    if (done, digest.hexdigest()) != (target.length, target.hashes["sha256"]):
        raise TrustError(f"{target.path}: what lies in the store is not what was signed: publish it again")


def entry(key: str) -> zipfile.ZipInfo:
    """The head of an entry: nothing in it depends on when or where it was made."""
    head = zipfile.ZipInfo(key)
    head.external_attr = MODE
    return head


def look(part: Path, repository: Repository, folder: Path, now: datetime) -> None:
    """Raises what a device would say to this file."""
    folder.mkdir()
    TufClient(folder, ArchiveStore(part), repository.keyring.root(), lambda _: None).refresh(now)
