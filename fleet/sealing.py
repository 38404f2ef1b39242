"""What a desk signs and seals, for devices to believe and open (agent/trust has their half, and the rules).

1. An envelope carries the bytes that were signed; a deployment is two of them.
2. A content key is wrapped to a group's epoch, an epoch's private key to a device: what it is for is bound into it.
"""

import json
from collections.abc import Iterable, Mapping
from typing import get_args

import zstandard
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.dsse import Envelope as Dsse
from securesystemslib.signer import Signer

from agent.core.documents import to_json
from agent.core.intent import GRANT_TYPE
from agent.trust.grant import GRANT_DOMAIN, SUITE, WRAP_DOMAIN, Grant, GrantedKey
from agent.trust.sealing import LEVEL, Group, bind, grouped

SCALAR_BYTES = 32  # a P-256 private key


def make_envelope(payload: bytes, payload_type: str, signers: Iterable[Signer]) -> bytes:
    """The payload in an envelope, signed by every signer."""
    envelope = Dsse(payload, payload_type, {})
    for signer in signers:
        envelope.sign(signer)
    return json.dumps(envelope.to_dict(), separators=(",", ":")).encode()


def make_pair(rollout: bytes, wave: bytes) -> bytes:
    """Two envelopes as one deployment."""
    return b'{"rollout":' + rollout + b',"wave":' + wave + b"}"


def wrap_key(key: bytes, public: ec.EllipticCurvePublicKey, path: str, group: str, epoch: int) -> bytes:
    """The content key of the release at `path`, for the holders of a group's epoch key."""
    return SUITE.encrypt(key, public, info=bind(WRAP_DOMAIN, path, group, epoch))


def make_grant(
    device: str,
    group: str,
    keys: Mapping[int, ec.EllipticCurvePrivateKey],
    public: ec.EllipticCurvePublicKey,
    signers: Iterable[Signer],
    counter: int = 0,
) -> bytes:
    """The signed grant of a group's epoch keys to the device that holds the private half of `public`."""
    sealed = tuple(
        GrantedKey(
            epoch=epoch, key=SUITE.encrypt(private_bytes(key), public, info=bind(GRANT_DOMAIN, device, group, epoch))
        )
        for epoch, key in sorted(keys.items())
    )
    return make_envelope(to_json(Grant(device=device, group=group, keys=sealed, counter=counter)), GRANT_TYPE, signers)


def private_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The scalar, big-endian."""
    return key.private_numbers().private_value.to_bytes(SCALAR_BYTES, "big")


def best_group(sample: bytes) -> Group:
    """The element size under which a sample of a part compresses best."""
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    sizes: dict[Group, int] = {group: len(compressor.compress(grouped(sample, group))) for group in get_args(Group)}
    return min(sizes, key=lambda group: (sizes[group], group))
