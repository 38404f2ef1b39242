"""The floor: versions of metadata that may not fall, and a time that may not either.

1. python-tuf keeps its own state without syncing it and forgives a torn file: a rollback is accepted after a power
   cut. This floor is kept apart, durably, and asked after every refresh.
2. A version is bound to the keys that answer for it. When these change, the floor of that role begins anew: that is
   how TUF recovers when a stolen key published version 2^31.
3. Time is the newest of what is known: clock, signed issue time, build date. A clock ahead only stops updates; a
   clock behind would accept what is expired.
"""

from collections.abc import Mapping
from datetime import datetime

from msgspec import field
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from agent.core.documents import Document, from_tree
from agent.core.errors import InputError, TrustError
from agent.core.intent import Moment
from agent.trust.envelope import digest

ISSUED_AT = "x-issued-at"  # in the signed part of timestamp.json; other clients ignore it


class RoleFloor(Document):
    """The highest version seen of a role, and the digest of the keys that answer for it."""

    keys: str
    version: int


class Floor(Document):
    """What a device keeps durably. The first one is empty."""

    roles: Mapping[str, RoleFloor] = field(default_factory=dict)
    time: datetime | None = None


def seen(root: Root, timestamp: Timestamp, snapshot: Snapshot, targets: Targets) -> Mapping[str, RoleFloor]:
    """The versions of a verified chain of metadata, delegated roles included."""
    online = keys_of(root, "timestamp", "snapshot")
    top = keys_of(root, "timestamp", "snapshot", "targets")
    found = {
        "root": RoleFloor(keys="", version=root.version),
        "timestamp": RoleFloor(keys=keys_of(root, "timestamp"), version=timestamp.version),
        "snapshot": RoleFloor(keys=online, version=snapshot.version),
        "targets": RoleFloor(keys=top, version=targets.version),
    }
    delegated = targets.delegations.roles if targets.delegations is not None else None
    for name, role in (delegated or {}).items():
        listed = snapshot.meta.get(f"{name}.json")
        if listed is not None:
            found[name] = RoleFloor(keys=digest([top, sorted(role.keyids), role.threshold]), version=listed.version)
    return found


def keys_of(root: Root, *roles: str) -> str:
    """The digest of the keys and thresholds of top-level roles."""
    return digest([[sorted(root.roles[role].keyids), root.roles[role].threshold] for role in roles])


def check_floor(old: Floor, found: Mapping[str, RoleFloor], issued: datetime | None = None) -> Floor:
    """The floor after this refresh.

    Raises:
        TrustError: a role is older than it was under the same keys, or is gone while others stay.
    """
    for role, was in old.roles.items():
        now = found.get(role)
        if now is not None and now.keys == was.keys and now.version < was.version:
            raise TrustError(
                f"{role} metadata: version {now.version} is older than {was.version}, which this device has seen; "
                "somebody serves an old copy of the repository"
            )
    times = [time for time in (old.time, issued) if time is not None]
    return Floor(roles=found, time=max(times, default=None))


def issued_at(timestamp: Timestamp) -> datetime | None:
    """When a verified timestamp was made, where it says so.

    Raises:
        TrustError: it says something that is no time.
    """
    text = timestamp.unrecognized_fields.get(ISSUED_AT)
    try:
        return None if text is None else from_tree(Moment, text, f"timestamp metadata: {ISSUED_AT}")
    except InputError as error:
        raise TrustError(f"{error}; its publisher must sign anew") from error


def high_water(*times: datetime | None) -> datetime:
    """The newest of the times that are known; at least one must be."""
    return max(time for time in times if time is not None)
