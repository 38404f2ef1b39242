"""The policy at the desk: who may do what, and which releases nobody runs any more. Rules: agent/trust/policy.py.

1. A policy that would lock everybody out by a slip is refused: unknown keys, unknown verbs, a quorum that nobody can
   reach.
2. A withdrawal is for ever. The list only grows, and the desk looks first whether a group still stands on the release.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime

from msgspec.structs import replace
from tuf.api.metadata import DelegatedRole

from agent.core.documents import from_json, from_yaml, to_json
from agent.core.errors import InputError
from agent.core.intent import WITHDRAWN_TYPE, Operator, Policy, Quorum, Verb, Withdrawal, Withdrawn
from agent.core.release import Ref
from agent.trust.policy import (
    POLICY_BYTES,
    POLICY_PATH,
    WITHDRAWN_BYTES,
    WITHDRAWN_PATH,
    believe_withdrawn,
    matches,
    read_policy,
)
from fleet.pending import Pending
from fleet.repository import Repository, listed_bytes
from fleet.roles import PATHS
from fleet.signing import enveloped

VERBS = ("rollout", *(verb.value for verb in Verb))
SHORTEST = 8  # letters of a key's id that name it


def current_policy(repository: Repository) -> Policy | None:
    """The policy in force; None where there is none."""
    if repository.find(POLICY_PATH) is None:
        return None
    return read_policy(repository.read(POLICY_PATH, POLICY_BYTES))


def set_policy(repository: Repository, content: bytes, where: str, now: datetime) -> Policy:
    """Puts a policy (YAML or JSON) in force; key ids may be shortened to what `edge-provision keys show` prints.

    Raises:
        InputError: it is not one, names a key or verb that is not known, or asks for more operators than there are.
    """
    policy = from_yaml(Policy, content, where)
    role = repository.targets.signed.get_delegated_role("operators")
    policy = replace(policy, operators=tuple(known(one, role.keyids, where) for one in policy.operators))
    check_policy(policy, role.threshold, where, now)
    raw = to_json(policy)
    if len(raw) > POLICY_BYTES:
        raise InputError(f"{where}: {len(raw)} bytes; devices read {POLICY_BYTES} at most: use patterns")
    lister(repository).paths = PATHS["deployments"]  # in a repository from before there were withdrawals
    repository.add(listed_bytes(POLICY_PATH, raw), raw)
    repository.publish(now)
    return policy


def known(one: Operator, keys: Iterable[str], where: str) -> Operator:
    """The operator with the whole id of the key."""
    found = [key for key in keys if key.startswith(one.key) and len(one.key) >= SHORTEST]
    if len(found) != 1:
        ids = ", ".join(key[:16] for key in keys)
        raise InputError(f"{where}: {one.name}: {one.key!r} is no key of the role operators; they are {ids}")
    return replace(one, key=found[0])


def check_policy(policy: Policy, threshold: int, where: str, now: datetime) -> None:
    """Raises InputError where a verb is none, or nobody could do what a quorum asks for."""
    patterns = [pattern for one in policy.operators for pattern in one.verbs]
    patterns += [pattern for quorum in policy.signatures for pattern in quorum.verbs]
    for pattern in patterns:
        if not any(matches([pattern], verb) for verb in VERBS):
            raise InputError(f"{where}: {pattern!r} is no verb; they are {', '.join(VERBS)}, or a pattern of them")
    for quorum in (*policy.signatures, Quorum(count=threshold, verbs=("rollout",))):
        for verb in (verb for verb in VERBS if matches(quorum.verbs, verb)):
            able = {one.key for one in policy.operators if matches(one.verbs, verb) and is_current(one, now)}
            if len(able) < quorum.count:
                raise InputError(f"{where}: {verb} takes {quorum.count} operators, and {len(able)} may; name more")


def is_current(one: Operator, now: datetime) -> bool:
    """Whether what an operator may do has not ended."""
    return one.expires is None or now <= one.expires


def lister(repository: Repository) -> DelegatedRole:
    """The role that lists deployments and withdrawals."""
    role = repository.targets.signed.get_delegated_role("deployments")
    if not isinstance(role, DelegatedRole):
        raise InputError("the repository has no role deployments; look who changed its targets")
    return role


def current_withdrawn(repository: Repository) -> Mapping[Ref, Withdrawal]:
    """Every release that was withdrawn."""
    return {one.release: one for one in withdrawn_list(repository).releases}


def withdrawn_list(repository: Repository) -> Withdrawn:
    """The list that stands; raises TrustError where `operators-critical` did not sign it."""
    if repository.find(WITHDRAWN_PATH) is None:
        return Withdrawn(counter=1, releases=())
    return believe_withdrawn(repository.read(WITHDRAWN_PATH, WITHDRAWN_BYTES), repository.targets.signed)


def propose_withdrawal(repository: Repository, release: str, reason: str, now: datetime) -> Pending:
    """The list with one release more, which nobody has signed yet.

    Raises:
        InputError: the release is not listed, withdrawn already, or the reason is too long.
    """
    last, ref = withdrawn_list(repository), repository.ref(release)
    if any(one.release == ref for one in last.releases):
        raise InputError(f"release {release}: was withdrawn already")
    said = {"release": {"name": ref.name, "digest": ref.digest}, "reason": reason, "at": now}
    new = from_json(Withdrawal, to_json(said), f"withdrawal of {release}")
    return Pending(
        kind=WITHDRAWN_TYPE, payload=to_json(Withdrawn(counter=last.counter + 1, releases=(*last.releases, new)))
    )


def put_withdrawal(repository: Repository, pending: Pending, now: datetime) -> tuple[Withdrawal, ...]:
    """Publishes a list that was signed; what is new in it.

    Raises:
        InputError: another list was published since it was made, or a key is missing.
        TrustError: it takes more signatures.
    """
    if WITHDRAWN_PATH not in (lister(repository).paths or ()):
        raise InputError(
            f"the role deployments may not list {WITHDRAWN_PATH} in this repository yet: "
            "`edge-fleet policy set` with the keys of targets lets it"
        )
    raw = enveloped(pending)
    new, old = believe_withdrawn(raw, repository.targets.signed), withdrawn_list(repository)
    if new.counter <= old.counter or new.releases[: len(old.releases)] != old.releases:
        raise InputError("another release was withdrawn since this list was made; make it anew")
    repository.add(listed_bytes(WITHDRAWN_PATH, raw), raw)
    repository.publish(now)
    return new.releases[len(old.releases) :]
