"""Vectors of sealed releases: what is under the seal, and what happens to it."""

from base64 import b64decode

from tests.vectors.primitives import (
    CHUNK,
    base64,
    bind,
    bundle,
    chunked,
    compact,
    frame,
    frame_of_zeros,
    listed,
    secret,
    stream,
)

NAME = "face_detection_retinaface_widerface_20250628"
OTHER = "face_detection_retinaface_widerface_20250701-2"
PATH = f"releases/{NAME}.sealed"


def refused(stage, **case):
    return {**case, "refused": stage}


KEY, SALT, CONTEXT = secret("content key"), secret("salt", 24), bind("edge-model-agent/release/v1", PATH)
TEXT = ("metadata.json", b'{"name": "face"}', 1)
PLAIN = [TEXT, ("model.onnx", secret("weights", 1003), 4)]
LARGE = [TEXT, ("model.onnx", secret("large weights", 2 * CHUNK + 500), 8)]


def sealed(parts, header=None, packed=None, key=KEY, context=CONTEXT):
    """The octets of a release, in base64."""
    head = compact({"v": 1, "parts": listed(parts)}) if header is None else header
    return base64(chunked(key, context, bundle(head, frame(stream(parts)) if packed is None else packed), SALT))


def opens(parts, **case):
    """A release that opens: what comes out of it."""
    return {"size": sum(len(content) for _, content, _ in parts), "parts": listed(parts), **case}


def full_chunks():
    """Parts whose bundle fills a chunk to the last octet, so that the last chunk is empty."""
    for length in range(CHUNK - 600, CHUNK):
        parts = [TEXT, ("model.onnx", secret("full", length), 1)]
        if len(bundle(compact({"v": 1, "parts": listed(parts)}), frame(stream(parts)))) == CHUNK:
            return parts
    raise AssertionError


def releases():
    """Sealed releases."""
    chunk, end = CHUNK + 16, len(b64decode(sealed(LARGE)))
    first, second, third = [56, 56 + chunk], [56 + chunk, 56 + 2 * chunk], [56 + 2 * chunk, end]
    size = {"size": 1019}
    cases = {
        "one chunk": opens(PLAIN, sealed=sealed(PLAIN)),
        "three chunks": opens(LARGE, sealed=sealed(LARGE)),
        "an empty last chunk": opens(full_chunks(), sealed=sealed(full_chunks())),
        "an empty part": opens([TEXT, ("empty", b"", 8)], sealed=sealed([TEXT, ("empty", b"", 8)])),
        "another key": refused("seal", **size, sealed=sealed(PLAIN, key=secret("another key"))),
        "another path": refused(
            "seal", **size, sealed=sealed(PLAIN, context=bind("edge-model-agent/release/v1", PATH + "x"))
        ),
        "another domain": refused("seal", **size, sealed=sealed(PLAIN, context=bind("edge-model-agent/wrap/v1", PATH))),
    }
    cut = {
        "a bit of the salt": {"cut": [[0, end]], "flip": 0},
        "a bit of the commitment": {"cut": [[0, end]], "flip": 24},
        "a bit of the first chunk": {"cut": [[0, end]], "flip": 56},
        "a bit of the last tag": {"cut": [[0, end]], "flip": end - 1},
        "cut to nothing": {"cut": []},
        "cut inside the commitment": {"cut": [[0, 40]]},
        "cut inside a chunk": {"cut": [[0, 56 + chunk + 100]]},
        "cut between chunks": {"cut": [[0, 56 + 2 * chunk]]},
        "cut by an octet": {"cut": [[0, end - 1]]},
        "chunks that changed places": {"cut": [[0, 56], second, first, third]},
        "a chunk twice": {"cut": [[0, 56], first, first, second, third]},
        "a chunk too few": {"cut": [[0, 56], first, third]},
        "the last chunk twice": {"cut": [[0, end], third]},
        "an octet more": {"cut": [[0, end], [0, 1]]},
    }
    large = sum(len(content) for _, content, _ in LARGE)
    cases |= {name: refused("seal", size=large, of="three chunks", **how) for name, how in cut.items()}
    return {"given": {"key": KEY.hex(), "path": PATH}, "cases": {**cases, **bundles()}}


def bundles():
    """What must not be under the seal."""
    parts, packed, size = listed(PLAIN), frame(stream(PLAIN)), 1019

    def header(tree):
        return sealed(PLAIN, header=compact(tree))

    def part(**changes):
        return header({"v": 1, "parts": [parts[0], {**parts[1], **changes}]})

    return {
        "a header of another version": refused("header", size=size, sealed=header({"v": 2, "parts": parts})),
        "a header with a key more": refused("header", size=size, sealed=header({"v": 1, "parts": parts, "more": 1})),
        "a header without parts": refused("header", size=0, sealed=header({"v": 1, "parts": []})),
        "a header that is no JSON": refused("header", size=size, sealed=sealed(PLAIN, header=b"{")),
        "a header that is too long": refused(
            "header length", size=size, sealed=base64(chunked(KEY, CONTEXT, b"\0\1\0\1{}", SALT))
        ),
        "no header": refused("header end", size=size, sealed=base64(chunked(KEY, CONTEXT, b"\0\0\0\x10{}", SALT))),
        "a part that is called like a path": refused("header", size=size, sealed=part(name="../model.onnx")),
        "a part without a name": refused("header", size=size, sealed=part(name="")),
        "a part of elements of three octets": refused("header", size=size, sealed=part(group=3)),
        "a digest in capitals": refused("header", size=size, sealed=part(sha256=parts[1]["sha256"].upper())),
        "two parts of one name": refused("names", size=size, sealed=part(name="metadata.json")),
        "parts of another size than is listed": refused("sizes", size=size + 1, sealed=sealed(PLAIN)),
        "a part that is shorter than its size": refused("part end", size=size + 1, sealed=part(size=1004)),
        "a stream that goes on": refused("end", size=size, sealed=sealed(PLAIN, packed=frame(stream(PLAIN) + b"x"))),
        "a second frame": refused("end", size=size, sealed=sealed(PLAIN, packed=packed + frame(b"x"))),
        "an empty second frame and a bomb": refused(
            "end", size=size, sealed=sealed(PLAIN, packed=packed + frame(b"") + frame_of_zeros(512))
        ),
        "octets behind the frame": refused("stream", size=size, sealed=sealed(PLAIN, packed=packed + b"more")),
        "a stream that is no frame": refused("stream", size=size, sealed=sealed(PLAIN, packed=b"\0" * 2000)),
        "a window of 16 MiB": refused(
            "stream", size=size, sealed=sealed(PLAIN, packed=frame(stream(PLAIN), window=0x70))
        ),
        "a digest of other octets": refused("digest", size=size, sealed=part(sha256="0" * 64)),
        "another grouping than is said": refused("digest", size=size, sealed=part(group=2)),
    }
