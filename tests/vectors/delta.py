"""Vectors of deltas: what is taken from a base, what is left of it, and the sealed release that comes out.

A result is compressed by the library that section 12 names, because its octets count; with another version of it
these vectors are made anew. All else is made here: floats are rounded by `struct`, words are counted as integers.
"""

import hashlib
import struct
from base64 import b64decode

import zstandard

from tests.vectors.primitives import base64, bind, blocks, bundle, chunked, compact, frame, listed, secret, stream
from tests.vectors.sealed import KEY, OTHER, PATH, TEXT, refused

RUN = 1_048_576
DOMAIN = "edge-model-agent/release/v1"
BASE_KEY, BASE_SALT, DELTA_SALT, SALT = (
    secret("base key"),
    *(secret(f"{of} salt", 24) for of in ("base", "delta", "result")),
)
RESULT_PATH = f"releases/{OTHER}.sealed"
ODD = (
    0.0,
    -0.0,
    1.0,
    1 + 2**-11,
    1 + 3 * 2**-11,
    -1 - 2**-11,
    2**-24,
    2**-25,
    3 * 2**-25,
    -(2**-26),
    2**-14 - 2**-25,
    65504.0,
    65519.0,
    65520.0,
    -1e9,
    float("inf"),
)
FLOATS = struct.pack("<16f", *ODD)
WORDS = secret("base weights", 160) + b"\0\x7f\x80\xff" * 8
MODEL = WORDS + FLOATS  # the floats lie at 192
BASE = [TEXT, ("model.onnx", MODEL, 4)]


# --- section 12 ----------------------------------------------------------------------------------------------------


def words(content, width):
    return [int.from_bytes(content[at : at + width], "little") for at in range(0, len(content), width)]


def rounded(content):
    """Floats of four octets as words of two; what is too large is infinite."""
    found = []
    for (number,) in struct.iter_unpack("<f", content):
        try:
            found.append(int.from_bytes(struct.pack("<e", number), "little"))
        except OverflowError:
            found.append(0xFC00 if number < 0 else 0x7C00)
    return found


def coded(new, old, width):
    """One run of differences."""
    many = 1 << 8 * width
    order = sorted(range(len(old)), key=lambda i: (2 * old[i] >> 8 * width - 8) % 256)
    differences = ((new[i] - old[i] + many // 2) % many - many // 2 for i in order)
    return b"".join((2 * d if d >= 0 else -2 * d - 1).to_bytes(width, "little") for d in differences)


def plain(content, **about):
    return {"kind": "plain", "size": len(content), "width": 1, "at": 0, **about}, content, content


def diff(content, at, width=1, old=MODEL):
    """Octets as what is left of them beside those of the base."""
    runs = [
        coded(
            words(content[done : done + RUN], width),
            words(old[at + done : at + done + RUN][: len(content) - done], width),
            width,
        )
        for done in range(0, len(content), RUN)
    ]
    return {"kind": "diff", "size": len(content), "width": width, "at": at}, content, b"".join(runs)


def half(content, at):
    old = rounded(MODEL[at : at + 2 * len(content)])
    return {"kind": "half", "size": len(content), "width": 2, "at": at}, content, coded(words(content, 2), old, 2)


def change(name, group, /, *segments, base=None, about=None, **part):
    """A part of the result: what the recipe says of it, the part, and its residual."""
    content, left = (b"".join(one[place] for one in segments) for place in (1, 2))
    olds = {name: hashlib.sha256(content).hexdigest() for name, content, _ in BASE}
    said = {
        "part": {**listed([(name, content, group)])[0], **part},
        "base": olds.get(name, "") if base is None else base,
        "segments": [{**one[0], **(about or {})} for one in segments],
    }
    return said, (name, content, group), (name, left, group)


def release(parts, key, path, salt, pack):
    return chunked(key, bind(DOMAIN, path), bundle(compact({"v": 1, "parts": listed(parts)}), pack(parts)), salt)


def library(parts):
    """One zstd frame as the library makes it, level 3."""
    packer = zstandard.ZstdCompressor(level=3).compressobj()
    return b"".join(packer.compress(block) for block in blocks(parts)) + packer.flush()


def raw(parts):
    return frame(stream(parts))


def sum_of(parts):
    return sum(len(content) for _, content, _ in parts)


OCTETS = release(BASE, BASE_KEY, PATH, BASE_SALT, raw)


def path_of(base):
    return f"releases/{OTHER}.from.{hashlib.sha256(base).hexdigest()[:16]}.delta"


def delta(*changes, pack=raw, salt=SALT, recipe=None, path=None, key=KEY, base=OCTETS, **about):
    """A sealed delta."""
    tree = {"v": 1, "salt": base64(salt), "parts": [said for said, _, _ in changes], **about}
    parts = [("delta.json", compact(tree) if recipe is None else recipe, 1), *(left for _, _, left in changes)]
    octets = release(parts, key, path or path_of(base), DELTA_SALT, pack)
    given = [part for _, part, _ in changes]
    signed = release(given, KEY, RESULT_PATH, SALT, library)
    return {
        "sealed": base64(octets),
        "size": sum_of(parts),
        "result": {"parts": sum_of(given), "octets": len(signed), "sha256": hashlib.sha256(signed).hexdigest()},
    }


# --- the vectors ---------------------------------------------------------------------------------------------------


def text(content=TEXT[1], at=0):
    """The first part of the result."""
    return change("metadata.json", 1, diff(content, at, old=TEXT[1]))


def model(*segments, group=4, **about):
    return change("model.onnx", group, *segments, **about)


NEW = secret("new weights", len(MODEL))
NEAR = bytes((octet + step) % 256 for octet, step in zip(MODEL, (0, 0, 1, 0, 255, 0, 0, 128) * 32, strict=True))
SHORT = secret("halves", 32)
GOOD = text(), model(plain(b"new!"), diff(NEAR[8:88], 8, 4), half(SHORT[:16], 192), diff(MODEL[240:], 240))
LONG = (secret("some", 61) * (RUN // 61 + 3))[: RUN + 128]
LONGER = bytearray(LONG)
LONGER[3 :: 8 * 1021] = bytes(len(LONGER[3 :: 8 * 1021]))
LONGER[-5] ^= 7


def deltas():
    """Deltas, and what they give."""
    cases = {
        "plain": delta(text(), model(plain(NEW))),
        "nothing but plain": delta(change("metadata.json", 1, plain(b"{}"), base=""), model(plain(NEW), base="")),
        "nothing that is new": delta(text(), model(diff(MODEL, 0))),
    }
    for width in (1, 2, 4, 8):
        cases[f"differences of {width}"] = delta(text(), model(diff(NEAR, 0, width)))
        cases[f"large differences of {width}"] = delta(text(), model(diff(NEW, 0, width), group=width))
        cases[f"differences of {width} from the middle"] = delta(text(), model(diff(NEW[:48], 19, width)))
    long = [("model.onnx", LONG, 8)]
    base = release(long, BASE_KEY, PATH, BASE_SALT, library)
    whole = diff(bytes(LONGER), 0, 8, LONG)
    about = {"path": PATH, "key": BASE_KEY.hex(), "size": len(LONG), "sealed": base64(base)}
    digest = hashlib.sha256(LONG).hexdigest()
    recipe = compact({"v": 1, "salt": base64(SALT), "parts": [said for said, _, _ in GOOD]})
    cases |= {
        "halves": delta(text(), model(half(SHORT, 192), group=2)),
        "halves that stay": delta(text(), model(half(struct.pack("<16H", *rounded(FLOATS)), 192), group=2)),
        "several segments": delta(*GOOD),
        "plain beside a range": delta(text(), model(plain(b"abc", width=8, at=10**6), diff(MODEL[7:], 7))),
        "several parts": delta(
            text(b'{"name": "fac2"}'), change("config.yaml", 1, plain(b"a: 1\n")), model(diff(NEAR, 0, 4)),
            change("empty", 1), change("more.bin", 8, plain(NEW[:13])),
        ),
        "a part less": delta(model(diff(NEAR, 0, 4))),
        "an end that another part had": delta(text(TEXT[1][:4]), model(diff(MODEL[4:], 4))),
        "more than a run": delta(model(whole, group=8, base=digest), pack=library, base=base) | {
            "base": about, "delta": path_of(base)
        },
        "a recipe as long as may be": delta(*GOOD, pack=library, recipe=recipe.ljust(RUN)),
    }  # fmt: skip
    given = {
        "key": KEY.hex(),
        "path": RESULT_PATH,
        "delta": path_of(OCTETS),
        "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
        "base": {"path": PATH, "key": BASE_KEY.hex(), "size": sum_of(BASE), "sealed": base64(OCTETS)},
    }
    return {"given": given, "cases": {**cases, **no_recipes(), **lies(), **seals()}}


def seals():
    """Section 3, which a delta is held to as well."""
    good = delta(*GOOD)
    end, about = len(b64decode(good["sealed"])), {**good, "of": "several segments"}
    del about["sealed"]
    cuts = {
        "cut to nothing": {"cut": []},
        "cut inside the commitment": {"cut": [[0, 40]]},
        "cut in half": {"cut": [[0, end // 2]]},
        "cut by an octet": {"cut": [[0, end - 1]]},
        "with an octet more": {"cut": [[0, end], [0, 1]]},
        "with a bit turned": {"cut": [[0, end]], "flip": 100},
    }
    cases = {f"a delta {how}": refused("seal", **about, **cut) for how, cut in cuts.items()}
    return cases | {
        "a delta under another key": refused("seal", **delta(*GOOD, key=BASE_KEY)),
        "a delta under the release's path": refused("seal", **delta(*GOOD, path=RESULT_PATH)),
        "a delta of another base's path": refused("seal", **delta(*GOOD, base=b"another")),
        "a delta of other parts than its listing says": refused("sizes", **{**good, "size": good["size"] + 1}),
        "a delta that ends early": refused("part end", **delta(*GOOD, pack=lambda parts: frame(stream(parts)[:-4]))),
        "a delta that is no frame": refused("stream", **delta(*GOOD, pack=lambda parts: bytes(2000))),
        "a release instead of a delta": refused("recipe", **delta(*GOOD, recipe=MODEL)),
    }


def no_recipes():
    """What is no recipe."""

    def segment(**about):
        return delta(text(), model(diff(MODEL, 0), about=about))

    trees = {
        "of another version": delta(*GOOD, v=2),
        "with a key more": delta(*GOOD, more=1),
        "with a salt that is too short": delta(*GOOD, salt=SALT[:23]),
        "with a salt that is too long": delta(*GOOD, salt=SALT + b"x"),
        "of no parts": delta(*GOOD, parts=[]),
        "that is no JSON": delta(*GOOD, recipe=b"{"),
        "that is nothing": delta(*GOOD, recipe=b"null"),
        "with another kind": segment(kind="patch"),
        "with a segment of nothing": segment(size=0),
        "with a segment of less than nothing": segment(size=-1),
        "with words of three octets": segment(width=3),
        "with words of sixteen octets": segment(width=16),
        "with a range before its base": segment(at=-1),
        "with a range from a fraction": segment(at=0.5),
        "with a segment that has a key more": segment(more=1),
        "of a part that is called like a path": delta(text(), model(plain(NEW), name="../model.onnx")),
        "of elements of three octets": delta(text(), change("model.onnx", 4, plain(NEW), group=3)),
        "of a digest in capitals": delta(text(), model(plain(NEW), sha256="A" * 64)),
        "of a base that is none": delta(text(), model(plain(NEW), base=0)),
    }
    cases = {f"a recipe {how}": refused("recipe", **case) for how, case in trees.items()}
    return cases | {
        "a recipe that is too long": refused("recipe length", **delta(*GOOD, pack=library, recipe=b"{}".ljust(RUN + 1)))
    }


def lies():
    """Recipes that say what is not so."""
    whole, size = hashlib.sha256(MODEL).hexdigest(), len(MODEL)
    other = hashlib.sha256(b"another").hexdigest()
    start, first, second = diff(MODEL, 0), diff(MODEL[:100], 0), diff(MODEL[100:], 100)

    def one(segment, **about):
        return delta(text(), model((segment[0] | about, *segment[1:])))

    def left(*segments, octets):
        said, part, (name, content, group) = model(*segments)
        return delta(text(), (said, part, (name, (content + bytes(8))[: len(content) + octets], group)))

    good = delta(*GOOD)
    listing = {**good["result"], "parts": good["result"]["parts"] + 1}
    return {
        "another size than the release's": refused("delta sizes", **{**good, "result": listing}),
        "a residual that is shorter than its part": refused("delta sizes", **left(start, octets=-1)),
        "a residual that is longer than its part": refused("delta sizes", **left(start, octets=1)),
        "a part that is longer than its residual": refused("delta sizes", **delta(text(), model(start, size=size + 1))),
        "a segment that is shorter than declared": refused("segments", **one(start, size=size - 1)),
        "a segment that is longer than declared": refused("segments", **one(start, size=size + 1)),
        "a segment too few": refused("segments", **delta(text(), cut_short(model(first, second)))),
        "a word that is cut in two": refused("words", **delta(text(), model(diff(MODEL[:101], 0), plain(b"abc"), about={"width": 8}))),
        "halves of four octets": refused("words", **one(half(SHORT, 192), width=4)),
        "halves of one octet": refused("words", **one(half(SHORT, 192), width=1)),
        "half of a half": refused("words", **delta(text(), model(plain(b"a"), (half(SHORT, 192)[0] | {"size": 31}, SHORT[:31], SHORT[:31])))),
        "another base": refused("base", **delta(text(), model(start, base=other))),
        "no base": refused("base", **delta(text(), model(start, base=""))),
        "a base in capitals": refused("base", **delta(text(), model(start, base=whole.upper()))),
        "a part that the base lacks": refused("base", **delta(text(), change("more.onnx", 4, start, base=whole))),
        "another part's digest": refused("base", **delta(change("metadata.json", 1, start, base=whole))),
        "a range behind its base": refused("range end", **one(diff(MODEL[1:], 1), at=2)),
        "a range far behind its base": refused("range end", **one(start, at=2**60)),
        "halves behind their base": refused("range end", **one(half(SHORT, 192), at=193)),
        "a range that goes back": refused("range order", **delta(text(), model(second, first))),
        "a range that overlaps by an octet": refused("range order", **delta(text(), model(first, diff(MODEL[99:], 99)))),
        "halves that overlap": refused("range order", **delta(text(), model(half(SHORT[:16], 192), half(SHORT[16:], 222)))),
        "a range twice": refused("range order", **delta(text(), model(first, first))),
        "parts in another order than the base's": refused("range order", **delta(model(start), text())),
        "a part's digest that lies": refused("result part", **delta(text(), model(start, sha256=other))),
        "a residual that is another's": refused("result part", **delta(text(), (*model(diff(NEAR, 0, 4))[:2], model(diff(NEAR, 0, 2))[2]))),
        "another salt": refused("result", **delta(*GOOD, salt=DELTA_SALT)),
        "a release of other octets": refused("result", **{**delta(text(), model(plain(NEAR))), "result": delta(text(), model(plain(NEW)))["result"]}),
        "a release of another grouping": refused("result", **{**delta(text(), model(start, group=8)), "result": delta(text(), model(start))["result"]}),
        "a release of another order": refused("result", **{**delta(text(), model(plain(NEW))), "result": delta(model(plain(NEW)), text())["result"]}),
    }  # fmt: skip


def cut_short(changed):
    """A part without its last segment."""
    said, *others = changed
    return {**said, "segments": said["segments"][:-1]}, *others
