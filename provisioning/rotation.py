"""Changing who may do what: keys of a role replaced, revoked, renewed; teams' roles made and removed.

1. Each act is one change of root or targets, and everything that follows from it, in one publication.
2. A new key is written before anything names it. What is cut leaves a key that nobody names, never a name without
   its key.
3. While a change of root or targets waits for signatures here, no other one begins: two of the same number would
   make each other void.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Root

from agent.adapters.files import write_durably
from agent.adapters.tuf_client import METADATA
from agent.core.errors import InputError
from fleet.keyring import Keyring
from fleet.pending import Pending, read_pending, write_pending
from fleet.repository import Repository
from fleet.roles import OFFLINE, Authority, with_keys, with_role, without_role
from fleet.signatures import metadata_of
from fleet.stores import DeskStore
from provisioning.keys import new_key
from provisioning.standing import carry_over

Stand = Callable[[Repository], object]  # what becomes of documents that old keys signed


def rotate(
    repository: Repository,
    roles: Sequence[str],
    now: datetime,
    *,
    stand: Stand = carry_over,
    old: str | None = None,
    to: Sequence[str] = (),
    passphrase: str | None = None,
) -> Mapping[str, Sequence[str]]:
    """Replaces the keys of roles, all in one step; role: ids of its new keys.

    Args:
        repository: where it counts.
        roles: whose keys.
        now: the time of signing.
        stand: what becomes of what the old keys signed: carried over, or left where they were stolen.
        old: the one key to replace (the beginning of its id), of one role; None replaces all.
        to: ids of keys of one role that are named in the keyring already; none makes new keys here.
        passphrase: for the keys made here.

    Raises:
        Unfinished: others must sign, too.
        InputError: there is no such role or key, or a change waits already.
    """
    if len(roles) > 1 and (old is not None or to):
        raise InputError(f"{' '.join(roles)}: --old and --to belong to one role; rotate one at a time")
    after, keyring, made = repository.authority, repository.keyring, {}
    check_nothing_waits(keyring)
    for role in roles:
        leaving = [the_key(old, after.role(role).keyids)] if old is not None else list(after.role(role).keyids)
        named = keyring.keys(role) if to else {}
        joining = [named[the_key(keyid, named)] for keyid in to]
        joining = joining or [new_key(keyring, role, passphrase) for _ in leaving]
        after = with_keys(after, role, leaving, joining)
        made[role] = [key.keyid for key in joining]
    put_in_force(repository, after, now, stand)
    return made


def revoke(repository: Repository, role: str, keyid: str, now: datetime, *, stand: Stand = carry_over) -> None:
    """Takes a key from a role, without another in its place; raises as `rotate`."""
    check_nothing_waits(repository.keyring)
    authority = repository.authority
    leaving = the_key(keyid, authority.role(role).keyids)
    put_in_force(repository, with_keys(authority, role, [leaving], []), now, stand)


def put_in_force(repository: Repository, after: Authority, now: datetime, stand: Stand) -> None:
    """Publishes other keys, and what becomes of what stands."""
    repository.change(after)
    stand(repository)
    repository.publish(now)


def renew(repository: Repository, role: str, now: datetime) -> None:
    """Signs a role's metadata anew, with the same keys and content; raises as `rotate`."""
    if role in OFFLINE:
        check_nothing_waits(repository.keyring)
    repository.renew(role)
    repository.publish(now)


def add_role(
    repository: Repository,
    name: str,
    paths: Iterable[str],
    now: datetime,
    *,
    count: int = 1,
    need: int = 1,
    passphrase: str | None = None,
) -> tuple[Key, ...]:
    """A team's role that lists the releases of these paths; its keys: those named in the keyring, or `count` new ones.

    Raises:
        Unfinished: others must sign, too.
        InputError: the name or a path cannot be a team's, or a change waits already.
    """
    keyring = repository.keyring
    check_nothing_waits(keyring)
    if not 1 <= need <= count:
        raise InputError(f"role {name}: {need} of {count} keys cannot sign; give --keys-count at least --threshold")
    made = with_role(repository.authority, name, paths, need)
    keys = tuple(keyring.keys(name).values()) or tuple(new_key(keyring, name, passphrase) for _ in range(count))
    repository.change(with_keys(made, name, [], keys))
    repository.publish(now)
    return keys


def remove_role(repository: Repository, name: str, now: datetime) -> None:
    """Ends a team's role; what it listed is listed by the role that owns the paths now. Raises as `add_role`."""
    check_nothing_waits(repository.keyring)
    repository.change(without_role(repository.authority, name))
    repository.publish(now)


def add_signatures(path: Path, keyring: Keyring) -> tuple[Pending, int]:
    """Signs what waits in a file with every key of its role that is here; what waits, and how many are new.

    Raises:
        InputError: no key of the role is here.
    """
    pending = read_pending(path)
    names = (pending.kind, pending.kind.rpartition("-")[0])  # a role, or a bin of one
    signers = keyring.signers(next((name for name in names if name and keyring.holds(name)), pending.kind))
    signed = pending.signed_by(signers, pending.payload)
    write_pending(path, signed)
    return signed, len(signed.signatures) - len(pending.signatures)


def finish(
    repository: Repository, paths: Iterable[Path], now: datetime, *, stand: Stand = carry_over
) -> tuple[str, ...]:
    """Publishes what waits in files; the roles. The files are deleted.

    Raises:
        InputError: signatures are missing, or something else was published since they were begun.
    """
    waiting = {path: read_pending(path) for path in paths}
    for pending in sorted(waiting.values(), key=lambda one: one.kind != "root"):  # the root names the keys of the rest
        repository.take(pending)
    put_in_force(repository, repository.authority, now, stand)
    for path in waiting:
        path.unlink(missing_ok=True)
    return tuple(pending.kind for pending in waiting.values())


def mend_root(store: DeskStore, keyring: Keyring, paths: Iterable[Path]) -> tuple[str, ...]:
    """Uploads a new root that a cut kept back after its timestamp; what was uploaded: root, or nothing."""
    pinned = Metadata[Root].from_bytes(keyring.root()).signed
    for path in paths:
        metadata = metadata_of(read_pending(path))
        signed: Any = metadata.signed
        follows = isinstance(signed, Root) and signed.version == pinned.version + 1
        if follows and signed.get_root_verification_result(pinned, metadata.signed_bytes, metadata.signatures):
            store.write(f"{METADATA}{signed.version}.root.json", metadata.to_bytes(), if_absent=True)
            write_durably(keyring.root_file, metadata.to_bytes(), 0o644)
            path.unlink()
            return ("root",)
    return ()


def the_key(begin: str, keyids: Iterable[str]) -> str:
    """The one key id that begins so.

    Raises:
        InputError: none does, or several.
    """
    known = list(keyids)
    found = [keyid for keyid in known if begin and keyid.startswith(begin)]
    if len(found) != 1:
        shown = ", ".join(keyid[:16] for keyid in known) or "none"
        raise InputError(f"key {begin!r}: {len(found)} of the role's keys begin so (they are: {shown})")
    return found[0]


def check_nothing_waits(keyring: Keyring) -> None:
    """Raises InputError while a change of root or targets waits here."""
    waiting = [path for role in sorted(OFFLINE) for path in (keyring.folder / "pending").glob(f"*.{role}.json")]
    if waiting:
        raise InputError(
            f"{waiting[0]}: a change waits for signatures; finish it (`edge-provision keys finish`) or delete the file"
        )
