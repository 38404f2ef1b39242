"""models/FORMAT.md written a second time, from its sources and from plain primitives alone.

Nothing here comes from the product, and nothing is random: whatever should be is given. AES-GCM, ECDH and Ed25519 are
`cryptography`'s; HKDF, HPKE, DSSE, chunked encryption and zstd frames are made here, after RFC 5869, RFC 9180, the
DSSE protocol, C2SP chunked encryption and RFC 8878.
"""

import hashlib
import hmac
import json
from base64 import b64encode

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CHUNK = 16384
BLOCK = 4_194_304
RAW, RLE = 0, 1  # kinds of a zstd block
ZSTD_BLOCK = 128 * 1024
WINDOW_8_MIB = 0x68  # 2^(10 + 13)
KEM, HPKE = b"KEM\x00\x10", b"HPKE\x00\x10\x00\x01\x00\x02"


def secret(name, length=32):
    """Octets that are the same for ever, and look like chance."""
    return b"".join(hashlib.sha256(f"{name} {n}".encode()).digest() for n in range(-(-length // 32)))[:length]


def compact(tree):
    """JSON without spaces."""
    return json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()


def base64(content):
    return b64encode(content).decode()


def bind(*words):
    """Section 1."""
    encoded = [str(word).encode() for word in words]
    return b"".join(len(word).to_bytes(4, "big") + word for word in encoded)


# --- RFC 5869 ------------------------------------------------------------------------------------------------------


def expand(key, info, length, hashed):
    """HKDF-Expand."""
    made, block = b"", b""
    for counter in range(1, -(-length // hashlib.new(hashed).digest_size) + 1):
        block = hmac.digest(key, block + info + bytes([counter]), hashed)
        made += block
    return made[:length]


# --- section 3 -----------------------------------------------------------------------------------------------------


def chunked(key, context, content, salt):
    """C2SP chunked encryption with AES-256-GCM."""
    info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0" + salt + context
    derived = expand(key, info, 76, "sha512")
    cipher, base = AESGCM(derived[:32]), int.from_bytes(derived[32:44], "big")
    pieces = [content[at : at + CHUNK] for at in range(0, len(content) + 1, CHUNK)]
    sealed = (cipher.encrypt((base ^ n).to_bytes(12, "big"), piece, None) for n, piece in enumerate(pieces))
    return salt + derived[44:] + b"".join(sealed)


def grouped(block, size):
    """The first octets of all elements, then the second ones, and so on."""
    whole = len(block) // size * size
    return b"".join(block[at:whole:size] for at in range(size)) + block[whole:]


def frame(content, window=WINDOW_8_MIB):
    """One zstd frame of raw blocks: no size, no checksum, no dictionary."""
    pieces = [content[at : at + ZSTD_BLOCK] for at in range(0, len(content), ZSTD_BLOCK)] or [b""]
    blocks = (zstd_block(RAW, len(piece), piece, last=n == len(pieces) - 1) for n, piece in enumerate(pieces))
    return b"\x28\xb5\x2f\xfd\x00" + bytes([window]) + b"".join(blocks)


def frame_of_zeros(count):
    """One zstd frame of so many times 128 KiB of zeros, in four octets each."""
    blocks = (zstd_block(RLE, ZSTD_BLOCK, b"\0", last=n == count - 1) for n in range(count))
    return b"\x28\xb5\x2f\xfd\x00" + bytes([WINDOW_8_MIB]) + b"".join(blocks)


def zstd_block(kind, size, content, *, last):
    return (last | kind << 1 | size << 3).to_bytes(3, "little") + content


def listed(parts):
    """The header's parts; each is given as (name, content, group)."""
    return [
        {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "group": group}
        for name, content, group in parts
    ]


def blocks(parts):
    """The grouped blocks of all parts."""
    return [
        grouped(content[at : at + BLOCK], group) for _, content, group in parts for at in range(0, len(content), BLOCK)
    ]


def stream(parts):
    return b"".join(blocks(parts))


def bundle(header, packed):
    return len(header).to_bytes(4, "big") + header + packed


# --- sections 4 and 6: RFC 9180, base mode, suite 0x0010 0x0001 0x0002 -----------------------------------------------


def private(name):
    """A P-256 private key."""
    return ec.derive_private_key(int.from_bytes(secret(name), "big") % (2**255) + 1, ec.SECP256R1())


def scalar(key):
    return key.private_numbers().private_value.to_bytes(32, "big")


def point(key):
    """The public half, uncompressed."""
    numbers = key.public_key().public_numbers()
    return b"\x04" + numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")


def hpke(content, recipient, info, ephemeral):
    """enc || ciphertext."""

    def extract(suite, salt, label, keyed):
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + keyed, "sha256")

    def derive(suite, key, label, context, length):
        return expand(key, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + context, length, "sha256")

    enc = point(ephemeral)
    shared = ephemeral.exchange(ec.ECDH(), recipient.public_key())
    agreed = derive(KEM, extract(KEM, b"", b"eae_prk", shared), b"shared_secret", enc + point(recipient), 32)
    context = b"\0" + extract(HPKE, b"", b"psk_id_hash", b"") + extract(HPKE, b"", b"info_hash", info)
    keyed = extract(HPKE, agreed, b"secret", b"")
    key, nonce = derive(HPKE, keyed, b"key", context, 32), derive(HPKE, keyed, b"base_nonce", context, 12)
    return enc + AESGCM(key).encrypt(nonce, content, b"")


# --- section 5 -----------------------------------------------------------------------------------------------------


class Signer:
    """An Ed25519 key and its TUF key id."""

    def __init__(self, name):
        self._key = ed25519.Ed25519PrivateKey.from_private_bytes(secret(name))
        self.public = self._key.public_key().public_bytes_raw().hex()
        self.keyid = self.keyid_of(self.public)

    @staticmethod
    def keyid_of(public):
        key = {"keytype": "ed25519", "keyval": {"public": public}, "scheme": "ed25519"}
        return hashlib.sha256(json.dumps(key, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def sign(self, kind, payload):
        """One signature of an envelope."""
        pae = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
        return {"keyid": self.keyid, "sig": base64(self._key.sign(pae))}


def envelope(payload, kind, *signers):
    """A payload (a tree, or octets) as it is sent."""
    raw = payload if isinstance(payload, bytes) else compact(payload)
    signatures = [signer.sign(kind, raw) for signer in signers]
    return {"payload": base64(raw), "payloadType": kind, "signatures": signatures}
