"""An insider: TUF's signatures are right and the group's key is known, and what is under the seal is not as it should be."""

import hashlib
import json

import onnx
import pytest
import zstandard
from cryptography.cobblestone import Cobblestone256Encryptor

import fleet.publish
from agent.trust.sealing import DOMAIN, SealedPart, bind, seal
from tests.faults.test_bad_intent import pair
from tests.system.plant import ONE
from tests.vectors.primitives import frame, frame_of_zeros

WINDOW_128_MIB = 0x88  # 2^(10 + 17)
HEAD, CHUNK = 56, 16400  # octets: salt and commitment, then chunks


def sealed_by(monkeypatch, craft):
    """From now on a release is sealed as `craft(key, path, parts, contents)` does; the parts are those of a sound one."""
    monkeypatch.setattr(fleet.publish, "seal", craft)


def reject(besieged, release, kind, words):
    """Deploy it, whatever the desk would say to that; why the device rejected it for good."""
    with besieged.unharmed(but={"deployment"}):
        besieged.say(pair(besieged, release=release))
        failure = besieged.rejection(release)
        assert failure["kind"] == kind
        assert words in failure["reason"]
        assert besieged.device.slot()["serving"] == ONE
        besieged.until_told(words)
    return failure["reason"]


# --- chunks --------------------------------------------------------------------------------------------------------

CHUNKS = {
    "truncated": lambda chunks: chunks[:-1],
    "extended": lambda chunks: [*chunks[:-1], chunks[0][: len(chunks[-1])], chunks[-1]],
    "reordered": lambda chunks: [chunks[1], chunks[0], *chunks[2:]],
    "duplicated": lambda chunks: [chunks[0], *chunks],
}


@pytest.mark.parametrize("case", CHUNKS)
def test_chunks(besieged, stopped, monkeypatch, case):
    """Each chunk is sealed to its place, and the last one to the end."""

    def craft(*sealed):
        whole = b"".join(seal(*sealed))
        chunks = [whole[at : at + CHUNK] for at in range(HEAD, len(whole), CHUNK)]
        assert len(chunks) > 3
        yield whole[:HEAD] + b"".join(CHUNKS[case](chunks))

    sealed_by(monkeypatch, craft)
    release = besieged.another(f"2025080{1 + list(CHUNKS).index(case)}")
    said = reject(besieged, release, "trust", "does not open under its content key")
    stopped(f"chunks {case}", "seal", said)


def test_another_releases_seal(besieged, stopped, monkeypatch):
    """The sealed bytes of one release, listed under the name of another, with the right content key."""

    def craft(key, path, parts, contents):
        yield from seal(key, path.replace("20250809", "20250628"), parts, contents)

    sealed_by(monkeypatch, craft)
    said = reject(besieged, besieged.another("20250809"), "trust", "sealed for another path")
    stopped("a release under another's name", "seal", said)


# --- what is in the bundle -----------------------------------------------------------------------------------------


def bundle(key, path, header, stream):
    """Octets of our own under the seal."""
    encryptor = Cobblestone256Encryptor(key, bind(DOMAIN, path))
    raw = json.dumps(header).encode()
    yield encryptor.update(len(raw).to_bytes(4, "big") + raw + stream)
    yield encryptor.finalize()


def header_of(parts, **changes):
    """The header of a sound release, with changes of its last part."""
    listed = [{"name": part.name, "size": part.size, "sha256": part.sha256, "group": 1} for part in parts]
    listed[-1] |= changes
    return {"v": 1, "parts": listed}


def test_a_decompression_bomb(besieged, stopped, monkeypatch):
    """A frame of two gigabytes behind parts of some kilobytes: no more is unpacked than was declared."""
    bomb = frame_of_zeros(2**31 // 2**17)
    assert len(bomb) < 2**17

    def craft(key, path, parts, contents):
        packed = zstandard.compress(b"".join(map(b"".join, contents)), 3)
        yield from bundle(key, path, header_of(parts), packed + bomb)

    sealed_by(monkeypatch, craft)
    said = reject(besieged, besieged.another("20250811"), "trust", "goes on behind its last part")
    stopped("decompression bomb", "declared size", said)


def test_a_decompression_bomb_of_memory(besieged, stopped, monkeypatch):
    """A frame that wants a window of 128 MiB to be unpacked."""

    def craft(key, path, parts, contents):
        yield from bundle(key, path, header_of(parts), frame(b"x", window=WINDOW_128_MIB))

    sealed_by(monkeypatch, craft)
    said = reject(besieged, besieged.another("20250812"), "trust", "the compressed stream is damaged")
    stopped("decompression bomb: window", "window limit", said)


def test_a_decompression_bomb_that_is_declared(besieged, stopped, monkeypatch):
    """A terabyte, signed as such: it is not even fetched."""
    describe = fleet.publish.describe_listing
    monkeypatch.setattr(fleet.publish, "describe_listing", lambda one, _, wraps: describe(one, 2**40, wraps))
    said = reject(besieged, besieged.another("20250813"), "trust", "`int` <= 8589934592")
    stopped("decompression bomb: declared", "listing", said)


def test_names_that_leave_their_folder_under_the_seal(besieged, stopped, monkeypatch):
    """A part of a release is called like a path."""

    def craft(key, path, parts, contents):
        yield from bundle(key, path, header_of(parts, name="../../../etc/cron.d/x"), b"")

    sealed_by(monkeypatch, craft)
    said = reject(besieged, besieged.another("20250814"), "trust", "header of releases/")
    stopped("path traversal: part of a release", "header under the seal", said)


def test_another_digest_under_the_seal(besieged, stopped, monkeypatch):
    """Weights that are not those that the header names."""

    def craft(key, path, parts, contents):
        *most, weights = map(b"".join, contents)
        other = bytes([weights[0] ^ 1]) + weights[1:]
        false = [
            *parts[:-1],
            SealedPart(name=parts[-1].name, size=len(other), sha256=hashlib.sha256(other).hexdigest()),
        ]
        whole = seal(key, path, false, [[one] for one in (*most, other)])
        monkeypatch.setattr("agent.trust.sealing.to_json", lambda _: json.dumps(header_of(parts)).encode())
        yield from whole

    sealed_by(monkeypatch, craft)
    said = reject(besieged, besieged.another("20250822"), "trust", "has another digest than its header says")
    stopped("arbitrary software under the seal", "plaintext digest", said)


# --- what is in the model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["../../../../../../etc/passwd", "/etc/passwd"])
def test_weights_in_a_file_of_the_device(besieged, stopped, location):
    """A model whose weights are said to lie in /etc/passwd: no runtime is asked what it thinks of that."""
    date = "20250823" if location.startswith("/") else "20250824"
    model = onnx.load_from_string(besieged.sound.weights)
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], location)
    model.graph.initializer[0].ClearField("raw_data")
    release = besieged.plant.publish_checked(besieged.unsound(date, weights=model.SerializeToString()))
    said = reject(besieged, release, "structure", "its weights lie in another file")
    stopped(f"ONNX external data: {location}", "ONNX structure", said)
