"""What stands when keys change: rollouts, waves, grants and other documents that count by the keys of today.

1. A signature of a role's new keys is added to what its old keys signed, and to nothing else. Nothing else of a
   document changes: devices see the deployment they have, and stay where they are.
2. After a theft nothing is signed again: what stands may be the thief's.
3. What is not signed is named. Devices go on as they are, but believe such a document no more.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from securesystemslib.dsse import Envelope as Dsse
from tuf.api.metadata import Targets

from agent.core.documents import from_json, to_json
from agent.core.errors import InputError, TrustError
from agent.trust.deployment import PAIR_BYTES
from agent.trust.envelope import Envelope, EnvelopeSignature, verify
from agent.trust.grant import GRANT_BYTES
from agent.trust.policy import WITHDRAWN_BYTES
from fleet.keyring import Keyring
from fleet.policy import current_policy
from fleet.repository import Repository, listed_bytes
from fleet.roles import Authority, delegated, listing_roles

GRANTS = "grants/"


def carry_over(repository: Repository) -> list[str]:
    """Signs what stands with the keys that count after the change; a sentence for each document that is left behind.

    Grants are written at once, listed documents with the next `publish`.

    Raises:
        TransferError: something could not be read or written now.
    """
    before, after = repository.before, repository.authority
    roles = changed_signers(before, after)
    behind: list[str] = []
    for path, raw in documents(repository, roles):
        signed = resigned(raw, roles, before.targets, after.targets, repository.keyring)
        if signed != raw and path.startswith(GRANTS):
            repository.store.write(path, signed)
        elif signed != raw:
            repository.add(listed_bytes(path, signed), signed)
        behind += left_behind(path, signed, roles, before.targets, after.targets)
    return [*behind, *unnamed(repository)]


def leave_all(repository: Repository) -> list[str]:
    """A sentence for each document that counts no more after the change; raises as `carry_over`."""
    before, after = repository.before, repository.authority
    roles = changed_signers(before, after)
    behind: list[str] = []
    for path, raw in documents(repository, roles):
        behind += left_behind(path, raw, roles, before.targets, after.targets)
    return [*behind, *unnamed(repository)]


def documents(repository: Repository, roles: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """(path, content) of everything that these roles may have signed."""
    if not roles:
        return
    for path in [target.path for _, target in repository.listings.owned() if not target.path.startswith("releases/")]:
        yield path, repository.read(path, max(PAIR_BYTES, WITHDRAWN_BYTES))
    for key in repository.store.keys(GRANTS) if "grants" in roles else ():
        yield key, repository.store.read(key, GRANT_BYTES)


def unnamed(repository: Repository) -> Iterator[str]:
    """A sentence for each new operators' key that the policy does not know, so that it may do nothing."""
    policy = current_policy(repository)
    known = {one.key for one in policy.operators} if policy is not None else set()
    before, after = (set(one.role("operators").keyids) for one in (repository.before, repository.authority))
    for keyid in sorted(after - before - known) if policy is not None else ():
        yield f"policy: key {keyid[:16]} of operators may do nothing yet; name it with `edge-fleet policy set`"


def changed_signers(before: Authority, after: Authority) -> list[str]:
    """The roles that sign documents and have lost a key."""
    signing = delegated(after.targets).keys() - set(listing_roles(after.targets))
    return sorted(name for name in signing if set(before.role(name).keyids) - set(after.role(name).keyids))


def resigned(raw: bytes, roles: Iterable[str], before: Targets, after: Targets, keyring: Keyring) -> bytes:
    """A document, or several in one object, with the signatures that it lacks after the change."""
    tree = envelopes(raw)
    made = {name: carried(one, roles, before, after, keyring) for name, one in tree.items()}
    return raw if made == tree else to_json(made.get("", made))


def carried(envelope: Envelope, roles: Iterable[str], before: Targets, after: Targets, keyring: Keyring) -> Envelope:
    """An envelope with the signatures of the keys here, of each role that signed it and counts no more."""
    for role in lost(envelope, roles, before, after):
        keyids = set(delegated(after)[role].keyids)
        try:
            signers = [signer for signer in keyring.signers(role) if signer.public_key.keyid in keyids]
        except InputError:  # told by `left_behind`
            continue
        octets = Dsse(envelope.payload, envelope.payload_type, {}).pae()
        new = [signer.sign(octets) for signer in signers]
        made = {one.keyid: one for one in envelope.signatures}
        made |= {one.keyid: EnvelopeSignature(keyid=one.keyid, sig=bytes.fromhex(one.signature)) for one in new}
        envelope = Envelope(
            payload=envelope.payload, payload_type=envelope.payload_type, signatures=tuple(made.values())
        )
    return envelope


def left_behind(path: str, raw: bytes, roles: Iterable[str], before: Targets, after: Targets) -> Iterator[str]:
    """A sentence for each role whose signatures in a document do not suffice after the change."""
    for envelope in envelopes(raw).values():
        for role in lost(envelope, roles, before, after):
            yield f"{path}: devices believe it no more, since too few keys of {role} have signed it; make it anew"


def lost(envelope: Envelope, roles: Iterable[str], before: Targets, after: Targets) -> list[str]:
    """The roles that signed an envelope, and do not by the keys after the change."""
    return [role for role in roles if counts(envelope, role, before) and not counts(envelope, role, after)]


def counts(envelope: Envelope, role: str, targets: Targets) -> bool:
    """Whether enough keys of a role signed."""
    try:
        verify(envelope, envelope.payload_type, role, targets)
    except TrustError:
        return False
    return True


def envelopes(raw: bytes) -> Mapping[str, Envelope]:
    """The envelopes that a document holds, by their names, or by "" where it is one; none where it holds others."""
    try:
        tree: Any = json.loads(raw)
        found = {"": tree} if "payloadType" in tree else dict(tree)
        return {name: from_json(Envelope, json.dumps(one), name) for name, one in found.items()}
    except (ValueError, TypeError, InputError):
        return {}
