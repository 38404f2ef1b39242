"""Signatures of several desks under one document, gathered in a file (fleet/pending.py).

A desk signs what it was shown: the words are read from the very bytes that are signed. What is signed is DSSE's
encoding of type and payload, so that a file of one kind never counts for another.
"""

from collections.abc import Iterator

from securesystemslib.dsse import Envelope as Dsse

from agent.core.documents import from_json, to_json
from agent.core.errors import InputError
from agent.core.intent import ROLLOUT_TYPE, WITHDRAWN_TYPE, Rollout, Withdrawn
from agent.trust.envelope import Envelope
from fleet.keyring import Keyring
from fleet.pending import Pending

ROLES = {ROLLOUT_TYPE: ("operators", "operators-critical"), WITHDRAWN_TYPE: ("operators-critical",)}


def signed(pending: Pending, keyring: Keyring, role: str) -> Pending:
    """The same with a signature of every key of the role that is here.

    Raises:
        InputError: this role signs no such document, or no key of it is here.
    """
    if role not in ROLES.get(pending.kind, ()):
        allowed = " or ".join(ROLES.get(pending.kind, ())) or "edge-provision keys sign"
        raise InputError(f"{pending.kind}: is not signed by {role}; use {allowed}")
    return pending.signed_by(keyring.signers(role), Dsse(pending.payload, pending.kind, {}).pae())


def enveloped(pending: Pending) -> bytes:
    """The envelope that devices know."""
    return to_json(Envelope(payload=pending.payload, payload_type=pending.kind, signatures=pending.signatures))


def words(pending: Pending) -> Iterator[str]:
    """What a document says, line by line, for whoever is to sign it; raises InputError where it is of no known kind."""
    if pending.kind == ROLLOUT_TYPE:
        yield from rollout_words(from_json(Rollout, pending.payload, "rollout"))
    elif pending.kind == WITHDRAWN_TYPE:
        yield from withdrawn_words(from_json(Withdrawn, pending.payload, "list of withdrawn releases"))
    else:
        raise InputError(f"{pending.kind}: neither a rollout nor a withdrawal; metadata is signed by edge-provision")
    ids = ", ".join(one.keyid[:16] for one in pending.signatures)
    yield f"signed so far by {ids or 'nobody'}"


def rollout_words(rollout: Rollout) -> Iterator[str]:
    """A rollout in words."""
    yield f"rollout {rollout.counter} for group {rollout.group}, made {rollout.issued:%Y-%m-%d %H:%M} UTC"
    for slot, move in sorted(rollout.slots.items()):
        if move.goal == move.start:
            yield f"  {slot}: stays at {move.goal}"
        else:
            yield f"  {slot}: moves from {move.start or 'nothing'} to {move.goal} ({move.goal.digest[:16]})"
    shares = ", ".join(f"{share:.0%}" for share in rollout.shares)
    ends = f", until {rollout.expires:%Y-%m-%d %H:%M} UTC" if rollout.expires else ""
    yield f"  in waves of {shares} of the group; each device watches it for {rollout.soak_s:g} s{ends}"


def withdrawn_words(listed: Withdrawn) -> Iterator[str]:
    """A list of withdrawn releases in words, the newest first."""
    yield f"withdrawn for ever, on every device (list {listed.counter}):"
    for one in reversed(listed.releases):
        yield f"  {one.release} ({one.release.digest[:16]}), {one.at:%Y-%m-%d}: {one.reason}"
