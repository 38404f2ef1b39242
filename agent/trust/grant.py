"""Who may read: content keys are sealed to groups, and group keys to devices.

One suite: HPKE (RFC 9180), base mode, DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-256-GCM; P-256 because a TPM can
hold it.

1. A content key is wrapped to a group's epoch key and stands inside the signed listing of its release.
2. A grant brings a device the private keys of its group's epochs, each sealed to the device's own key, in an
   envelope signed by the role `grants`: base mode alone says nothing about who sealed. Its counter only rises.
3. What a sealed key is for is bound into it: path, group and epoch; device, group and epoch. A key lifted into
   another place does not open.
4. Revoking a device is a new epoch that its grant lacks. It keeps what it could read before.
"""

from typing import Annotated

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from msgspec import Meta
from tuf.api.metadata import Targets

from agent.core.documents import Document
from agent.core.errors import TrustError
from agent.core.intent import GRANT_TYPE
from agent.trust.envelope import open_envelope, parse_signed
from agent.trust.sealing import bind

SUITE = Suite(KEM.P256, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
CURVE = ec.SECP256R1()
GRANT_BYTES = 64 * 1024  # an epoch takes about 200 bytes
WRAP_DOMAIN = "edge-model-agent/wrap/v1"
GRANT_DOMAIN = "edge-model-agent/grant/v1"

Epoch = Annotated[int, Meta(ge=1, le=2**31)]


class GrantedKey(Document):
    """The private key of one epoch, sealed to a device."""

    epoch: Epoch
    key: bytes


class Grant(Document):
    """What a grant's envelope holds."""

    device: str
    group: str
    keys: tuple[GrantedKey, ...]
    counter: int = 0  # milliseconds since 1970 when it was made; the first grants had none


def unwrap_key(wrapped: bytes, private: ec.EllipticCurvePrivateKey, path: str, group: str, epoch: int) -> bytes:
    """The content key.

    Raises:
        TrustError: it was wrapped for another key, path, group or epoch, or changed.
    """
    info = bind(WRAP_DOMAIN, path, group, epoch)
    return open_sealed_key(wrapped, private, info, f"{path}: its content key for epoch {epoch} of group {group}")


def believe_grant(raw: bytes, targets: Targets, device: str, group: str) -> Grant:
    """The grant, still sealed to the device.

    Raises:
        TrustError: not signed by `grants`, or for another device or group.
    """
    grant = parse_signed(Grant, open_envelope(raw, GRANT_TYPE, "grants", targets, GRANT_BYTES).payload, "grant")
    if (grant.device, grant.group) != (device, group):
        raise TrustError(
            f"grant: it is for {grant.device} of {grant.group}; this is {device} of {group}: enrol it anew"
        )
    return grant


def open_granted(
    granted: GrantedKey, device: str, group: str, private: ec.EllipticCurvePrivateKey
) -> ec.EllipticCurvePrivateKey:
    """The private key of one epoch; raises TrustError where it was sealed to another key."""
    where = f"grant: epoch {granted.epoch} of group {group}"
    scalar = open_sealed_key(granted.key, private, bind(GRANT_DOMAIN, device, group, granted.epoch), where)
    try:
        return ec.derive_private_key(int.from_bytes(scalar, "big"), CURVE)
    except ValueError as error:
        raise TrustError(f"{where} is not a P-256 key; enrol the device anew") from error


def open_sealed_key(sealed: bytes, private: ec.EllipticCurvePrivateKey, info: bytes, where: str) -> bytes:
    """What was sealed to this key for this purpose; raises TrustError where it was not."""
    try:
        return SUITE.decrypt(sealed, private, info=info)
    except (InvalidTag, ValueError) as error:
        raise TrustError(f"{where} does not open with this key; it was sealed for another, or changed") from error
