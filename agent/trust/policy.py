"""What an operator's signature counts for, and which releases nobody runs any more.

1. The policy is a TUF target of the top-level targets role, which is offline. Without one, every operators' key may do
   everything.
2. It is asked after TUF's threshold, never instead of it: of those who signed, only keys that it allows for this verb
   and group, today, count; as many of them must have signed as TUF's threshold and the policy's count, whichever is
   more. A key that it does not name may do nothing.
3. The list of withdrawn releases is signed by `operators-critical`: the online role that lists it cannot darken a
   fleet. Whoever reads it forgets nothing, so an older list, or none, takes nothing back.
"""

from collections.abc import Iterable
from datetime import datetime
from fnmatch import fnmatchcase

from tuf.api.metadata import Targets

from agent.core.errors import TrustError
from agent.core.intent import WITHDRAWN_TYPE, Operator, Policy, Withdrawn
from agent.trust.envelope import Opened, open_envelope, parse_bounded, parse_signed

POLICY_PATH = "policy/operators.json"
POLICY_BYTES = 256 * 1024  # an operator takes about 200 bytes
WITHDRAWN_PATH = "policy/withdrawn.json"
WITHDRAWN_BYTES = 512 * 1024  # about 1 000 releases


def read_policy(raw: bytes) -> Policy:
    """The policy in a verified target; raises TrustError where it is none."""
    return parse_bounded(Policy, raw, POLICY_BYTES, POLICY_PATH)


def check_act(policy: Policy | None, opened: Opened, verb: str, group: str, now: datetime) -> None:
    """Raises TrustError unless enough of those who signed may do this to a group today."""
    if policy is None:
        return
    against = {
        key: min(
            (objection(one, verb, group, now) for one in policy.operators if one.key == key),
            default=f"key {key[:12]} is not in the policy",
        )
        for key in opened.signers
    }
    may = list(against.values()).count("")
    quorums = [one.count for one in policy.signatures if matches(one.verbs, verb) and matches(one.groups, group)]
    needed = max([opened.threshold, *quorums])
    if may < needed:
        raise TrustError(
            f"policy: {verb} on group {group} needs signatures of {needed} operators who may; {needed - may} missing"
            + "".join(f"; {reason}" for reason in sorted(filter(None, against.values())))
        )


def objection(one: Operator, verb: str, group: str, now: datetime) -> str:
    """Why an operator may not do this, in a few words; empty where they may."""
    if not matches(one.verbs, verb):
        return f"{one.name} may not {verb}"
    if not matches(one.groups, group):
        return f"{one.name} may not act on {group}"
    if one.expires is not None and now > one.expires:
        return f"what {one.name} may do ended {one.expires.isoformat()}"
    return ""


def matches(patterns: Iterable[str], word: str) -> bool:
    """Whether one of the patterns is of this word."""
    return any(fnmatchcase(word, pattern) for pattern in patterns)


def believe_withdrawn(raw: bytes, targets: Targets) -> Withdrawn:
    """The releases that were withdrawn; raises TrustError unless `operators-critical` signed it."""
    opened = open_envelope(raw, WITHDRAWN_TYPE, "operators-critical", targets, WITHDRAWN_BYTES)
    return parse_signed(Withdrawn, opened.payload, WITHDRAWN_PATH)
