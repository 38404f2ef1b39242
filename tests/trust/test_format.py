"""A second implementation of models/FORMAT.md, out of plain primitives, reads what ours writes."""

import base64
import hashlib
import hmac
import json
import struct

import numpy as np
import zstandard
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from agent.trust.grant import CURVE
from agent.trust.sealing import SealedPart, bind, seal
from fleet.delta import Release
from fleet.publish import describe, seal_delta
from fleet.sealing import wrap_key
from tests.fleet.test_delta import model

PATH = "releases/face_detection_retinaface_widerface_20250628.sealed"
KEY = bytes(range(32))
WEIGHTS = np.random.default_rng(2).normal(size=1_200_001).astype(np.float32).tobytes() + b"xyz"
TEXT = b'{"name": "face"}'


def opened(sealed, key, context):
    """Section 3: the chunks of C2SP chunked encryption, AES-256-GCM."""
    salt, commitment = sealed[:24], sealed[24:56]
    info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0" + salt + context
    derived = HKDFExpand(hashes.SHA512(), 76, info).derive(key)
    assert hmac.compare_digest(derived[44:], commitment)
    cipher, base = AESGCM(derived[:32]), int.from_bytes(derived[32:44], "big")
    chunks = [sealed[at : at + 16400] for at in range(56, len(sealed), 16400)]
    assert len(chunks[-1]) < 16400
    return b"".join(
        cipher.decrypt((base ^ index).to_bytes(12, "big"), chunk, None) for index, chunk in enumerate(chunks)
    )


def ungrouped(block, group):
    """Section 3: element by element."""
    whole = len(block) // group
    plain = bytearray(block)
    for j in range(group):
        plain[j : whole * group : group] = block[j * whole : (j + 1) * whole]
    return bytes(plain)


def unwrapped(wrapped, private, info):
    """RFC 9180, base mode, suite 0x0010 0x0001 0x0002, from HMAC and ECDH alone."""

    def extract(salt, suite, label, secret):
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + secret, "sha256")

    def expand(secret, suite, label, context, length):
        labelled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + context
        return HKDFExpand(hashes.SHA256(), length, labelled).derive(secret)

    kem, hpke = b"KEM\x00\x10", b"HPKE\x00\x10\x00\x01\x00\x02"
    enc, sealed = wrapped[:65], wrapped[65:]
    shared = private.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(CURVE, enc))
    numbers = private.public_key().public_numbers()
    public = b"\x04" + numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
    secret = expand(extract(b"", kem, b"eae_prk", shared), kem, b"shared_secret", enc + public, 32)
    schedule = b"\x00" + extract(b"", hpke, b"psk_id_hash", b"") + extract(b"", hpke, b"info_hash", info)
    secret = extract(secret, hpke, b"secret", b"")
    key, nonce = expand(secret, hpke, b"key", schedule, 32), expand(secret, hpke, b"base_nonce", schedule, 12)
    return AESGCM(key).decrypt(nonce, sealed, b"")


def test_a_sealed_release_is_as_it_is_written_down():
    """Layout, grouping and compression follow the document."""
    parts = [
        SealedPart(name=name, size=len(content), sha256=hashlib.sha256(content).hexdigest(), group=group)
        for name, content, group in (("metadata.json", TEXT, 1), ("model.onnx", WEIGHTS, 4))
    ]
    sealed = b"".join(seal(KEY, PATH, parts, [[TEXT], [WEIGHTS]]))
    context = b"".join(len(word).to_bytes(4, "big") + word for word in (b"edge-model-agent/release/v1", PATH.encode()))
    bundle = opened(sealed, KEY, context)
    length = int.from_bytes(bundle[:4], "big")
    header = json.loads(bundle[4 : 4 + length])
    assert list(header["parts"][1]) == ["name", "size", "sha256", "group"]
    stream = zstandard.ZstdDecompressor().decompressobj().decompress(bundle[4 + length :])
    text, weights = stream[: len(TEXT)], stream[len(TEXT) :]
    assert text == TEXT
    assert b"".join(ungrouped(weights[at : at + 4194304], 4) for at in range(0, len(weights), 4194304)) == WEIGHTS


def test_a_wrapped_key_is_as_it_is_written_down():
    """HPKE by its RFC, with the info of the document."""
    private = ec.generate_private_key(CURVE)
    wrapped = wrap_key(KEY, private.public_key(), PATH, "g1", 12)
    words = (b"edge-model-agent/wrap/v1", PATH.encode(), b"g1", b"12")
    info = b"".join(len(word).to_bytes(4, "big") + word for word in words)
    assert unwrapped(wrapped, private, info) == KEY


def test_the_example_of_bound_words_is_right():
    """Section 1."""
    assert bind("a", 12).hex() == "00000001" + "61" + "00000002" + "3132"


def rebuilt(recipe, residuals, base):
    """Section 12, word by word: the parts of the result."""
    return {
        change["part"]["name"]: rebuilt_part(change, residuals[change["part"]["name"]], base[change["part"]["name"]])
        for change in recipe["parts"]
    }


def rebuilt_part(change, residual, base):
    result, done = b"", 0
    for segment in change["segments"]:
        for at in range(0, segment["size"], 1048576):
            length = min(1048576, segment["size"] - at)
            block = residual[done + at : done + at + length]
            result += block if segment["kind"] == "plain" else added(segment, block, base, at)
        done += segment["size"]
    return result


def added(segment, block, base, at):
    width, start, length = segment["width"], segment["at"] + at, len(block)
    words = [int.from_bytes(base[i : i + width], "little") for i in range(start, start + length, width)]
    if segment["kind"] == "half":
        start = segment["at"] + 2 * at
        halves = b"".join(
            struct.pack("<e", *struct.unpack("<f", base[i : i + 4])) for i in range(start, start + 2 * length, 4)
        )
        words = [int.from_bytes(halves[i : i + 2], "little") for i in range(0, length, 2)]
    order = sorted(range(len(words)), key=lambda i: (2 * words[i]) // 2 ** (8 * width - 8) % 256)
    result = list(words)
    for k, i in enumerate(order):
        z = int.from_bytes(block[k * width : (k + 1) * width], "little")
        result[i] = (words[i] + (z // 2 if z % 2 == 0 else -(z + 1) // 2)) % 2 ** (8 * width)
    return b"".join(word.to_bytes(width, "little") for word in result)


def test_a_delta_is_as_it_is_written_down(tmp_path):
    """Recipe, ranges, order, differences and the seal of the result follow the document."""
    random = np.random.default_rng(4)
    old = {"a": random.normal(size=270_000).astype("<f4"), "b": random.normal(size=900).astype("<f4"), "c": np.ones(64)}
    new = {"a": (old["a"] + 0.001).astype("<f4"), "b": (old["b"] * 1.001).astype("<f2"), "c": np.ones(64)}
    base = {"metadata.json": b"old", "model.onnx": model(old)}
    wanted = {"metadata.json": b"newer", "model.onnx": model(new)}
    releases = [Release("", [describe(*one) for one in contents.items()], contents) for contents in (wanted, base)]
    whole = b"".join(seal(KEY, PATH, releases[0].parts, [[one] for one in wanted.values()]))
    path = PATH.replace("sealed", "from.0011223344556677.delta")
    with (tmp_path / "delta").open("w+b") as spool:
        seal_delta(KEY, whole[:24], path, *releases, spool, lambda _: None)
    context = b"".join(len(word).to_bytes(4, "big") + word for word in (b"edge-model-agent/release/v1", path.encode()))
    bundle = opened((tmp_path / "delta").read_bytes(), KEY, context)
    length = int.from_bytes(bundle[:4], "big")
    stream, parts = zstandard.ZstdDecompressor().decompressobj().decompress(bundle[4 + length :]), {}
    for part in json.loads(bundle[4 : 4 + length])["parts"]:
        parts[part["name"]], stream = ungrouped(stream[: part["size"]], part["group"]), stream[part["size"] :]
    recipe = json.loads(parts["delta.json"])
    assert base64.b64decode(recipe["salt"]) == whole[:24]
    assert {one["kind"] for one in recipe["parts"][1]["segments"]} == {"plain", "diff", "half"}
    assert rebuilt(recipe, parts, base) == wanted
