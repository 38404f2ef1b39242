"""Attacks and faults on deltas: whatever an insider seals, nothing comes out but what was declared."""

import hashlib
import tracemalloc

import numpy as np
import pytest

from agent.core.documents import to_json
from agent.core.errors import TrustError
from agent.trust.delta import Change, Recipe, Segment, rebuild
from agent.trust.sealing import BLOCK_BYTES, Opener, SealedPart, seal
from fleet.delta import RECIPE

KEY, BASE_KEY = bytes(range(32)), bytes(32)
PATH, BASE_PATH, DELTA_PATH = "releases/new.sealed", "releases/old.sealed", "releases/new.from.0.delta"
SALT = bytes(24)
OLD = np.random.default_rng(1).normal(size=3_000).astype("<f4").tobytes()


def part(name, content, **changes):
    fields = {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return SealedPart(**fields | changes)


def sealed(key, path, contents):
    return b"".join(
        seal(
            key, path, [part(name, content) for name, content in contents.items()], [[one] for one in contents.values()]
        )
    )


def opener(key, path, contents):
    return Opener(key, path, [sealed(key, path, contents)], sum(map(len, contents.values())))


def rebuilt(recipe, residuals, size=None, sha256=""):
    """The octets that come out of a delta."""
    raw = recipe if isinstance(recipe, bytes) else to_json(recipe)
    delta = opener(KEY, DELTA_PATH, {RECIPE: raw, **residuals})
    base = opener(BASE_KEY, BASE_PATH, {"model.onnx": OLD})
    size = sum(map(len, residuals.values())) if size is None else size
    return b"".join(rebuild(delta, base, KEY, PATH, size, sha256))


def change(result, *segments, base=OLD, **changes):
    base_digest = hashlib.sha256(base).hexdigest()
    return Change(**{"part": part("model.onnx", result), "base": base_digest, "segments": segments} | changes)


def recipe(*changes, salt=SALT):
    return Recipe(v=1, salt=salt, parts=changes)


def signed(result):
    """The release that holds this model, as a desk seals it: its octets, salt and digest."""
    octets = sealed(KEY, PATH, {"model.onnx": result})
    return octets, octets[:24], hashlib.sha256(octets).hexdigest()


SAME = Segment(kind="diff", size=len(OLD))


def test_a_part_that_did_not_change_is_taken_from_the_base():
    """Its residual is nothing but zeros, and what comes out is the very file that was signed."""
    octets, salt, sha256 = signed(OLD)
    residual = {"model.onnx": bytes(len(OLD))}
    assert rebuilt(recipe(change(OLD, SAME), salt=salt), residual, sha256=sha256) == octets


def test_segments_are_put_together_in_order():
    """New octets, a range of the base, and a range of it as halves, which the residual of zeros leaves as they are."""
    halves = np.frombuffer(OLD, "<f4")[1000:].astype("<f2").tobytes()
    result = b"new" + OLD[400:800] + halves
    segments = (
        Segment(kind="plain", size=3),
        Segment(kind="diff", size=400, at=400, width=4),
        Segment(kind="half", size=len(halves), at=4000, width=2),
    )
    octets, salt, sha256 = signed(result)
    residual = {"model.onnx": b"new" + bytes(400 + len(halves))}
    assert rebuilt(recipe(change(result, *segments), salt=salt), residual, sha256=sha256) == octets


def test_what_is_not_the_signed_release_to_the_octet_is_refused():
    """A thief of the keys that list deltas cannot change what a deployed digest means: other contents, another salt."""
    _, salt, sha256 = signed(OLD)
    other = OLD[:-1] + b"x"
    consistent = change(other, Segment(kind="plain", size=len(OLD)))
    with pytest.raises(TrustError, match="not the release that was signed"):
        rebuilt(recipe(consistent, salt=salt), {"model.onnx": other}, sha256=sha256)
    with pytest.raises(TrustError, match="not the release that was signed"):
        rebuilt(recipe(change(OLD, SAME)), {"model.onnx": bytes(len(OLD))}, sha256=sha256)


WRONG = {
    "another base": (recipe(change(OLD, SAME, base=b"other")), "made from another base"),
    "a base without the part": (recipe(change(OLD, SAME, part=part("more.onnx", OLD))), "made from another base"),
    "a range behind the end": (recipe(change(OLD, Segment(kind="diff", size=len(OLD), at=1))), "ends behind its base"),
    "halves behind the end": (
        recipe(change(OLD, Segment(kind="half", size=len(OLD), width=2))), "ends behind its base",
    ),
    "ranges that overlap": (
        recipe(change(OLD, Segment(kind="diff", size=6000), Segment(kind="diff", size=6000, at=5999))), "goes back",
    ),
    "segments that give less": (recipe(change(OLD, Segment(kind="diff", size=100))), "another size"),
    "words cut in two": (
        recipe(change(OLD, Segment(kind="diff", size=11_999, width=4), Segment(kind="plain", size=1))), "whole words",
    ),
    "halves of another width": (recipe(change(OLD, Segment(kind="half", size=len(OLD), width=4))), "whole words"),
    "another result": (recipe(change(b"x" * len(OLD), SAME)), "is not what it declares"),
    "no recipe": (b"null", "Expected `object`"),
    "an unknown way": (b'{"v":1,"salt":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","parts":[{"part":{},"base":"","segments":[{"kind":"patch","size":1}]}]}', "delta.json"),
    "a segment of nothing": (
        b'{"v":1,"salt":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","parts":[{"part":{"name":"a","size":0,"sha256":"","group":1},"base":"","segments":[{"kind":"diff","size":0}]}]}',
        "delta.json",
    ),
    "a salt that is too short": (recipe(change(OLD, SAME), salt=bytes(8)), "delta.json"),
    "a recipe that is too long": (b" " * (1024 * 1024 + 1), "has 1048577 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_delta_that_lies_gives_nothing(case):
    """Signed and sealed by an insider: refused, each lie by its own name."""
    wrong, words = WRONG[case]
    name = wrong.parts[0].part.name if isinstance(wrong, Recipe) else "model.onnx"
    with pytest.raises(TrustError, match=words):
        rebuilt(wrong, {name: bytes(len(OLD))})


def test_a_delta_that_gives_more_than_was_signed_is_refused_before_the_first_octet():
    """The release's signed size caps what a delta may give."""
    with pytest.raises(TrustError, match="signed listing says"):
        next(rebuild(*pair(bytes(len(OLD))), KEY, PATH, len(OLD) - 1, ""))


def pair(residual):
    raw = to_json(recipe(change(OLD, SAME)))
    return opener(KEY, DELTA_PATH, {RECIPE: raw, "model.onnx": residual}), opener(
        BASE_KEY, BASE_PATH, {"model.onnx": OLD}
    )


@pytest.mark.parametrize("left", [len(OLD) - 1, len(OLD) + 1])
def test_residuals_of_another_size_are_refused(left):
    """Before the first octet: reading never comes to an end that was not expected."""
    with pytest.raises(TrustError, match=f"delta: {left} bytes give {len(OLD)}"):
        rebuilt(recipe(change(OLD, SAME)), {"model.onnx": bytes(left)}, size=len(OLD))


def test_a_sealed_release_is_no_delta():
    """Its first part is no recipe."""
    release = opener(KEY, DELTA_PATH, {"model.onnx": OLD})
    with pytest.raises(TrustError, match="this is not valid JSON"):
        next(rebuild(release, opener(BASE_KEY, BASE_PATH, {"model.onnx": OLD}), KEY, PATH, len(OLD), ""))


@pytest.mark.parametrize("cut", [60, 5_000, -1])
def test_a_delta_that_ends_early_is_refused(cut):
    """Truncation is noticed, and what came out until then does not open either."""
    residual = np.random.default_rng(3).bytes(len(OLD))
    result = part("model.onnx", OLD, sha256="0" * 64)
    raw = to_json(recipe(change(OLD, Segment(kind="plain", size=len(OLD)), part=result)))
    whole = sealed(KEY, DELTA_PATH, {RECIPE: raw, "model.onnx": residual})
    with pytest.raises(TrustError, match="does not open"):
        list(rebuild(
            Opener(KEY, DELTA_PATH, [whole[:cut]], len(raw) + len(OLD)),
            opener(BASE_KEY, BASE_PATH, {"model.onnx": OLD}), KEY, PATH, len(OLD),
        ))  # fmt: skip


def test_rebuilding_needs_little_memory():
    """Base, delta and result pass through it in blocks, whatever their size."""
    block = np.random.default_rng(1).normal(size=BLOCK_BYTES // 4).astype("<f4").tobytes()
    old = block * 6
    residual = np.random.default_rng(2).integers(0, 1 << 20, len(old) // 4, "<u4").tobytes()
    result = part("model.onnx", old, sha256="0" * 64)
    raw = to_json(recipe(change(old, Segment(kind="diff", size=len(old), width=4), base=old, part=result)))
    delta = opener(KEY, DELTA_PATH, {RECIPE: raw, "model.onnx": residual})
    base = opener(BASE_KEY, BASE_PATH, {"model.onnx": old})
    tracemalloc.start()
    with pytest.raises(TrustError, match="is not what it declares"):
        for _ in rebuild(delta, base, KEY, PATH, len(old), ""):
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 * 1024 * 1024
