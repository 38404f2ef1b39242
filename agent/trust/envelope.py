"""A DSSE envelope is opened in one order, and nothing of it is looked at before its turn.

1. Length: the caller's limit, before any parsing.
2. Form: JSON with exactly payload, payloadType and signatures; no key id twice.
3. Type: the payload type the caller expects. A signature over one type says nothing about another.
4. Signatures: the threshold of a TUF role that the verified targets metadata delegates to.

Only then the payload is handed out, as the bytes that were signed. Keys are TUF's: rotating or revoking one in
targets metadata is all it takes. Format: https://github.com/secure-systems-lab/dsse, base64 with padding.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import TypeVar

from securesystemslib.dsse import Envelope as Dsse
from securesystemslib.signer import Signature
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Targets

from agent.core.documents import Document, from_json
from agent.core.errors import InputError, TrustError

T = TypeVar("T")


class EnvelopeSignature(Document):
    """One signature and the TUF id of the key that made it."""

    keyid: str
    sig: bytes


class Envelope(Document, rename="camel"):
    """The form of an envelope on the wire; nothing in it is believed yet."""

    payload: bytes
    payload_type: str
    signatures: tuple[EnvelopeSignature, ...]


class Opened(Document):
    """A payload whose signatures reached the threshold, and the ids of the keys that count."""

    payload: bytes
    signers: tuple[str, ...]
    threshold: int = 1

    @property
    def digest(self) -> str:
        """SHA-256 of the payload: what other documents name it by."""
        return hashlib.sha256(self.payload).hexdigest()


def open_envelope(raw: bytes, payload_type: str, role: str, targets: Targets, limit: int) -> Opened:
    """The signed payload and its signers.

    Raises:
        TrustError: too long, malformed, of another type, or not signed by enough keys of the role.
    """
    envelope = parse_bounded(Envelope, raw, limit, f"{role} envelope")
    return verify(envelope, payload_type, role, targets)


def parse_bounded(kind: type[T], raw: bytes, limit: int, where: str) -> T:
    """Untrusted JSON as a value.

    Raises:
        TrustError: longer than `limit` bytes, or not of this form.
    """
    if len(raw) > limit:
        raise TrustError(f"{where}: {len(raw)} bytes; at most {limit} are read. Ask who sent it")
    return parse_signed(kind, raw, where)


def parse_signed(kind: type[T], payload: bytes, where: str) -> T:
    """A payload as a value.

    Raises:
        TrustError: it is not of this form.
    """
    try:
        return from_json(kind, payload, where)
    except InputError as error:
        raise TrustError(f"{error}. Its author must make it anew, or this agent is too old for it") from error


def verify(envelope: Envelope, payload_type: str, role: str, targets: Targets) -> Opened:
    """The payload and its signers.

    Raises:
        TrustError: of another type, a key id twice, or not signed by enough keys of the role.
    """
    if envelope.payload_type != payload_type:
        raise TrustError(f"{role} envelope: its type is {envelope.payload_type!r}; {payload_type!r} was expected here")
    signatures = {one.keyid: Signature(one.keyid, one.sig.hex()) for one in envelope.signatures}
    if len(signatures) != len(envelope.signatures):
        raise TrustError(f"{role} envelope: one key id signs twice; its author must sign it anew")
    dsse = Dsse(envelope.payload, envelope.payload_type, signatures)
    try:
        result = targets.get_verification_result(role, dsse.pae(), signatures)
    except (RepositoryError, ValueError, KeyError, TypeError) as error:
        raise TrustError(f"{role} envelope: {error}; the targets metadata must delegate to {role}") from error
    if not result.verified:
        raise TrustError(
            f"{role} envelope: signed by {len(result.signed)} of the {result.threshold} keys of {role} that it needs; "
            "if a key was replaced, sign it anew"
        )
    return Opened(payload=envelope.payload, signers=tuple(sorted(result.signed)), threshold=result.threshold)


def still_believed(signers: Iterable[str], role: str, targets: Targets) -> bool:
    """Whether what these keys signed would reach the role's threshold today."""
    try:
        now = targets.get_delegated_role(role)
    except ValueError:
        return False
    return len(set(signers) & set(now.keyids)) >= now.threshold


def keyset(targets: Targets, role: str) -> str:
    """The digest of a role's keys and threshold.

    Counters are bound to it: a thief who used up the counter of a stolen key leaves nothing behind when it is revoked.

    Raises:
        TrustError: the targets metadata does not delegate to the role.
    """
    try:
        delegated = targets.get_delegated_role(role)
    except ValueError as error:
        raise TrustError(f"the targets metadata does not delegate to {role}; its owner must add the role") from error
    return digest([sorted(delegated.keyids), delegated.threshold])


def digest(tree: list[object]) -> str:
    """SHA-256 of a tree of JSON."""
    return hashlib.sha256(json.dumps(tree).encode()).hexdigest()
