"""Who may do what, and until when, in a table; and the same of a change that waits for signatures."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from rich.table import Column, Table
from tuf.api.metadata import Role, Root, Targets

from agent.trust.expiry import expiring
from fleet import terminal
from fleet.pending import Pending
from fleet.repository import Repository, expiries
from fleet.roles import HIGHEST, TOP, delegated
from fleet.signatures import metadata_of

SHOWN = 16  # characters of a key id
MAY: Mapping[str, str] = {
    "root": "name the keys of root, targets, snapshot and timestamp",
    "targets": "name all other roles, their keys and paths",
    "snapshot": "say which versions belong together",
    "timestamp": "say what is newest",
    "operators": "sign rollouts and commands",
    "operators-critical": "sign what needs more than one operator",
    "controller": "sign waves of a rollout",
    "grants": "sign devices' grants",
}


def trust_table(repository: Repository) -> Table:
    """Every role: its keys, how many must sign, what they may do, and when it expires."""
    table = terminal.table("role", keys_column(), "must sign", "may", "expires")
    ends = dict(expiries(repository))
    authority = repository.authority
    for name in (*TOP, *delegated(authority.targets)):
        end = f"{ends[name]:%Y-%m-%d}" if name in ends else "with targets"
        table.add_row(*row(name, authority.role(name)), end)
    return table


def keys_column() -> Column:
    """Key ids are copied from the screen, so they are never cut."""
    return Column("keys", no_wrap=True, min_width=SHOWN)


def row(name: str, role: Role) -> tuple[str, str, str, str]:
    """A role, its keys, how many must sign, and what for."""
    paths: Iterable[str] = getattr(role, "paths", None) or ()
    may = f"list {', '.join(paths)}" if paths else MAY.get(name, "nothing")
    return name, "\n".join(keyid[:SHOWN] for keyid in role.keyids), f"{role.threshold} of {len(role.keyids)}", may


def warnings(repository: Repository, now: datetime) -> Iterable[str]:
    """What expires, and which key answers for too much."""
    yield from expiring(dict(expiries(repository)), now)
    for keyid, names in repository.authority.roles_by_key().items():
        if len(names) > 1:
            yield f"key {keyid[:SHOWN]} answers for {' and '.join(names)}: rotate one of them"


def burnt(repository: Repository) -> Iterable[str]:
    """Which versions only a thief can have made; told first, because what he left may not be readable."""
    versions = {"timestamp": repository.timestamp.signed.version, "snapshot": repository.snapshot.signed.version}
    versions |= {name.removesuffix(".json"): one.version for name, one in repository.snapshot.signed.meta.items()}
    for name, version in versions.items():
        if version > HIGHEST:
            yield f"{name} is at version {version}, where only a thief counts: rotate snapshot and timestamp together"


def waiting_tables(pending: Pending) -> Iterable[Table | str]:
    """What somebody signs, read from what is signed."""
    signed: Any = metadata_of(pending).signed
    yield f"{pending.kind} {signed.version}, good until {signed.expires:%Y-%m-%d}"
    roles = {name: signed.roles[name] for name in TOP} if isinstance(signed, Root) else delegated(signed)
    if roles:
        table = terminal.table("role", keys_column(), "must sign", "may")
        for name, role in roles.items():
            table.add_row(*row(name, role))
        yield table
    if isinstance(signed, Targets) and signed.targets:
        table = terminal.table("lists", "sha256")
        for path, target in sorted(signed.targets.items()):
            table.add_row(path, target.hashes.get("sha256", "")[:SHOWN])
        yield table


def signed_words(pending: Pending) -> str:
    """Who has signed."""
    names = ", ".join(one.keyid[:SHOWN] for one in pending.signatures)
    return f"signed by {names}" if names else "signed by nobody yet"
