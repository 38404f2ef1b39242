"""Who may do what: the roles of root and targets metadata, read and changed as values.

1. Roles that list are terminating, the most specific one first: each path has one owner.
2. A key answers for one role. A signature that counts twice would let one role's metadata pass as another's.
3. No role is left with fewer keys than must sign.
4. A version beyond HIGHEST is a thief's, who wants ours to look old for ever. It is counted below again when the keys
   of snapshot and timestamp are new: devices forget what these vouched for.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Role, Root, SuccinctRoles, Targets

from agent.core.errors import InputError
from agent.trust.policy import WITHDRAWN_PATH
from fleet.keyring import ROLES, Keyring, check_word

TOP = ("root", "targets", "snapshot", "timestamp")
OFFLINE = frozenset({"root", "targets"})  # their keys need not be where a change begins
GENERAL = "releases"  # lists what no team's role owns
PATHS: Mapping[str, list[str]] = {
    "releases": ["releases/*"],
    "deployments": ["deployments/*", WITHDRAWN_PATH],
    "operators": [],  # these four lend their keys to signed documents and list nothing
    "operators-critical": [],
    "controller": [],
    "grants": [],
}
# A stolen bucket can withhold news until the timestamp expires: three days outlive a weekend without `refresh`.
DAYS: Mapping[str, int] = {"root": 365, "targets": 365, "snapshot": 14, "timestamp": 3}
LISTING_DAYS = 180
PATTERN = re.compile(rf"{GENERAL}/[A-Za-z0-9_.-]{{2,}}\*", re.ASCII)
BIN = re.compile(r"[0-9a-f]{2}", re.ASCII)
BIN_BITS = 8  # 256 bins: a device that wants one release of 10,000 fetches 30 kB of snapshot and 20 kB of bin
HIGHEST = 2**31 - 1  # versions: one a second for 68 years


def make_root(keyring: Keyring, now: datetime) -> bytes:
    """Version 1 of the root, signed by its keys.

    Raises:
        InputError: fewer keys are here than must sign.
    """
    root = Root(expires=expiry("root", now))
    for role in TOP:
        add_keys(root, role, (keyring.keys(role) or keyring.lack(role)).values())
        root.roles[role].threshold = ROLES[role].threshold
    check_roles(Authority(root, Targets()).roles_by_key(), root.roles)
    metadata = Metadata(root)
    for signer in keyring.signers("root"):
        metadata.sign(signer, append=True)
    if not root.get_root_verification_result(None, metadata.signed_bytes, metadata.signatures):
        raise InputError(f"{keyring.folder}: {ROLES['root'].threshold} root keys must be here to begin; bring them")
    return metadata.to_bytes()


def delegations(keyring: Keyring) -> Delegations:
    """Every role that targets delegates to at the beginning."""
    targets = Targets(delegations=Delegations({}, roles={}))
    for role, paths in PATHS.items():
        delegated(targets)[role] = DelegatedRole(role, [], ROLES[role].threshold, terminating=True, paths=paths)
        add_keys(targets, role, (keyring.keys(role) or keyring.lack(role)).values())
    made = targets.delegations
    if made is None:
        raise AssertionError
    return made


def expiry(role: str, now: datetime) -> datetime:
    """When what is signed now expires."""
    return (now + timedelta(days=DAYS.get(role, LISTING_DAYS))).astimezone(UTC).replace(microsecond=0)


def delegated(targets: Targets) -> dict[str, DelegatedRole]:
    """The roles that targets delegates to, the most specific first."""
    made = targets.delegations.roles if targets.delegations is not None else None
    return {} if made is None else made


def listing_roles(targets: Targets) -> tuple[str, ...]:
    """The roles that list targets."""
    return tuple(name for name, role in delegated(targets).items() if role.paths)


def owner(targets: Targets, path: str) -> str:
    """The one role that may list a path; `targets` itself where it gave the path to nobody."""
    return next((name for name, role in delegated(targets).items() if role.is_delegated_path(path)), "targets")


def role_of(targets: Targets, page: str) -> str:
    """The role that a page of listings belongs to: the role's own metadata, or a bin of it (`releases-3f`)."""
    role, dash, number = page.rpartition("-")
    is_bin = dash and page not in delegated(targets) and role in delegated(targets) and BIN.fullmatch(number)
    return role if is_bin else page


@dataclass(frozen=True, slots=True)
class Authority:
    """Who answers for what at one moment: the keys of root and the delegations of targets."""

    root: Root
    targets: Targets

    def role(self, name: str) -> Role:
        """Keys and threshold of a role; a bin has those of the role that it belongs to.

        Raises:
            InputError: there is none of this name.
        """
        found = self.root.roles[name] if name in TOP else delegated(self.targets).get(role_of(self.targets, name))
        if found is None:
            known = ", ".join([*TOP, *delegated(self.targets)])
            raise InputError(f"role {name}: there is none (there are {known})")
        return found

    def has(self, name: str) -> bool:
        """Whether there is a role or bin of this name."""
        return name in TOP or role_of(self.targets, name) in delegated(self.targets)

    def roles_by_key(self) -> Mapping[str, list[str]]:
        """Key id: the roles it answers for."""
        found: dict[str, list[str]] = {}
        for name, role in (*self.root.roles.items(), *delegated(self.targets).items()):
            for keyid in role.keyids:
                found.setdefault(keyid, []).append(name)
        return found


def bins_of(listing: Targets) -> SuccinctRoles | None:
    """The hashed bins of a listing role that has outgrown one file."""
    return listing.delegations.succinct_roles if listing.delegations is not None else None


def check_roles(users: Mapping[str, list[str]], roles: Mapping[str, Role]) -> None:
    """Raises InputError where a key answers for two roles, or a role has fewer keys than must sign."""
    for keyid, names in users.items():
        if len(names) > 1:
            raise InputError(f"key {keyid[:16]}: it would answer for {' and '.join(names)}; give each role its own")
    for name, role in roles.items():
        if len(role.keyids) < role.threshold:
            raise InputError(
                f"role {name}: {role.threshold} keys must sign and it would have {len(role.keyids)}; "
                "bring or add keys, or replace one with `edge-provision keys rotate`"
            )


def with_keys(was: Authority, role: str, old: Iterable[str], new: Iterable[Key]) -> Authority:
    """What it is when a role has lost and won keys.

    Raises:
        InputError: the role has no such key, a new key is used already, or too few are left.
    """
    made, known, new = copy.deepcopy(was), was.roles_by_key(), list(new)
    delegator = made.root if role in TOP else made.targets
    made.role(role)
    for key in new:
        if key.keyid in known:
            raise InputError(f"key {key.keyid[:16]}: it answers for {' and '.join(known[key.keyid])} already")
    for keyid in old:
        if role not in known.get(keyid, ()):
            raise InputError(f"key {keyid[:16]}: not of the role {role}; `edge-provision trust show` lists its keys")
        delegator.revoke_key(keyid, role)
    add_keys(delegator, role, new)
    check_roles({}, {role: made.role(role)})
    return made


def add_keys(delegator: Root | Targets, role: str, keys: Iterable[Key]) -> None:
    """Names keys of a role."""
    for key in keys:
        delegator.add_key(key, role)


def with_role(was: Authority, name: str, paths: Iterable[str], need: int) -> Authority:
    """What it is when a new role may list these paths, and `need` of its keys must sign; it has none yet.

    Raises:
        InputError: the role exists, or a path is no team's to have.
    """
    made, paths = copy.deepcopy(was), list(paths)
    roles = delegated(made.targets)
    check_name(made, name)
    for path in paths:
        check_path(made.targets, path)
    roles[name] = DelegatedRole(name, [], need, terminating=True, paths=paths)
    ordered = sorted(roles.items(), key=lambda item: -max((len(path) for path in item[1].paths or ()), default=0))
    roles.clear()
    roles.update(ordered)
    check_order(made.targets)
    return made


def check_name(was: Authority, name: str) -> None:
    """Raises InputError where a team's role cannot have this name."""
    if BIN.fullmatch(check_word("role", name).rpartition("-")[2]):
        raise InputError(f"role {name}: a name that ends like {name.rpartition('-')[2]!r} is a bin's; choose another")
    if was.has(name) or name in PATHS:
        raise InputError(f"role {name}: there is one; remove it first, or choose another name")


def check_order(targets: Targets) -> None:
    """Raises InputError where a role would never be asked for a path it has."""
    for name, role in delegated(targets).items():
        for path in role.paths or ():
            if owner(targets, path.replace("*", "x")) != name:
                raise InputError(f"path {path!r} of {name}: another role would have it first; use a role for each path")


def check_path(targets: Targets, path: str) -> None:
    """Raises InputError where a pattern is not one that a team may have."""
    if not PATTERN.fullmatch(path):
        raise InputError(f"path {path!r}: write 'releases/PREFIX*', e.g. 'releases/face_detection_*'")
    taken = next((name for name, role in delegated(targets).items() if path in (role.paths or ())), None)
    if taken is not None:
        raise InputError(f"path {path!r}: the role {taken} has it")


def without_role(was: Authority, name: str) -> Authority:
    """What it is without a team's role.

    Raises:
        InputError: there is none of this name, or the product cannot do without it.
    """
    if name in {*TOP, *PATHS}:
        raise InputError(f"role {name}: every repository needs it; only a team's role can be removed")
    made = copy.deepcopy(was)
    for keyid in list(made.role(name).keyids):
        made.targets.revoke_key(keyid, name)
    del delegated(made.targets)[name]
    return made


def binned(targets: Targets, name: str) -> Delegations:
    """The delegation of a listing role to its bins: the same keys sign them."""
    role = delegated(targets)[name]
    keys = {keyid: targets.get_key(keyid) for keyid in role.keyids}
    return Delegations(keys, succinct_roles=SuccinctRoles(list(role.keyids), role.threshold, BIN_BITS, name))


def changed_roles(old: Targets, new: Targets) -> Iterator[str]:
    """The listing roles of `new` whose keys or threshold are others than in `old`, or that are new."""
    for name in listing_roles(new):
        was, now = delegated(old).get(name), delegated(new)[name]
        if was is None or (set(was.keyids), was.threshold) != (set(now.keyids), now.threshold):
            yield name


def paths_of(targets: Targets) -> list[tuple[str, tuple[str, ...]]]:
    """Which role may list what, in the order in which they are asked."""
    return [(name, tuple(role.paths)) for name, role in delegated(targets).items() if role.paths]
