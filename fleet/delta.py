"""Making deltas: which octets of a new release come from which of an older one, and what is left of them.

1. Tensors are paired by name and number of elements, in the order of the files; where names changed, by number alone.
   Their octets are looked for in the file: where they lie does not matter, as long as the ranges ascend.
2. Each pair takes the way (plain, difference, difference from float16) whose sample compresses best.
3. What lies between tensors, and whatever is no ONNX, keeps its common beginning and end.
4. What is left is spooled to a file, so that a delta needs the two releases in memory and no more.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib import import_module
from pathlib import Path
from typing import get_args

import numpy as np
import zstandard
from msgspec.structs import replace

from agent.core.documents import to_json
from agent.core.errors import InputError
from agent.trust.delta import RECIPE_BYTES, RUN_BYTES, Change, Recipe, Segment, Words, by_exponent, taken_by, words_of
from agent.trust.sealing import LEVEL, Group, SealedPart, grouped

RECIPE = "delta.json"  # the part of it that comes first
SMALL_BYTES = 64  # tensors below are as the octets between tensors
SAMPLE_BYTES = 1024 * 1024
HALF_BYTES = 2  # a float16


@dataclass(frozen=True, slots=True)
class Release:
    """A release in memory: its parts and their octets."""

    name: str
    parts: Sequence[SealedPart]
    contents: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's octets in its file."""

    name: str
    start: int
    size: int
    elements: int

    @property
    def width(self) -> Group:
        """Octets of an element; 1 where elements have no whole octets."""
        return next((group for group in get_args(Group) if group * self.elements == self.size), 1)


def make(
    new: Release, base: Release, salt: bytes, folder: Path, count: Callable[[int], None]
) -> Mapping[str, bytes | Path]:
    """The parts of the delta that leads from base to new, the recipe first; the others are written into `folder`.

    The salt is that of the new release's seal.

    Raises:
        InputError: it takes more segments than a device reads.
    """
    done = 0
    changes: list[Change] = []
    made: dict[str, bytes | Path] = {RECIPE: b""}
    held = {part.name: part for part in base.parts}
    for part in new.parts:
        content, old = new.contents[part.name], base.contents.get(part.name, b"")
        segments = tuple(merged(segments_of(part.name, content, old)))
        changes.append(Change(part=part, base=held[part.name].sha256 if part.name in held else "", segments=segments))
        made[part.name] = folder / part.name
        with (folder / part.name).open("wb") as file:
            for block in residuals(segments, content, old):
                done += file.write(block)
                count(done)
    made[RECIPE] = recipe = to_json(Recipe(v=1, salt=salt, parts=tuple(changes)))
    if len(recipe) > RECIPE_BYTES:
        raise InputError(
            f"the recipe takes {len(recipe)} bytes, a device reads {RECIPE_BYTES}: publish without a delta"
        )
    return made


def merged(segments: Iterable[Segment]) -> Iterator[Segment]:
    """The segments, neighbours that are octet for octet from the base as one."""
    last: Segment | None = None
    for one in segments:
        if last is not None and follows(one, last):
            last = replace(last, size=last.size + one.size)
            continue
        if last is not None:
            yield last
        last = one
    if last is not None:
        yield last


def follows(one: Segment, last: Segment) -> bool:
    """Whether both are one range of octets."""
    return one.kind == last.kind == "diff" and one.width == last.width == 1 and one.at == last.at + last.size


def segments_of(name: str, new: bytes, old: bytes) -> Iterator[Segment]:
    """How the octets of a part come from those of the base's part of the same name."""
    done = passed = 0
    if name.endswith(".onnx"):
        for here, there in pairs(tensors(new), tensors(old)):
            yield from between(new[done : here.start], old[passed : there.start], passed)
            yield best(new, old, here, there)
            done, passed = here.start + here.size, there.start + there.size
    yield from between(new[done:], old[passed:], passed)


def tensors(content: bytes) -> Sequence[Tensor]:
    """The weights of an ONNX file in the order of their octets; none where it is no such file."""
    onnx = import_module("onnx")
    try:
        graph = onnx.load_from_string(content).graph
    except Exception:  # noqa: BLE001  whatever protobuf says of bytes that are no model
        return ()
    found, place = [], 0
    for tensor in graph.initializer:
        raw = tensor.raw_data or onnx.numpy_helper.to_array(tensor).tobytes()
        start = content.find(raw, place) if len(raw) >= SMALL_BYTES else -1
        if start >= 0:
            found.append(Tensor(tensor.name, start, len(raw), int(np.prod(tensor.dims))))
            place = start + len(raw)
    return found


def pairs(new: Sequence[Tensor], old: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Tensors that follow one another, in the same order in both files; by name, or by size where that pairs more."""
    by_name = matched(new, old, [(one.name, one.elements) for one in new], [(one.name, one.elements) for one in old])
    by_size = matched(new, old, [one.elements for one in new], [one.elements for one in old])
    return max(by_name, by_size, key=lambda found: sum(here.size for here, _ in found))


def matched(
    new: Sequence[Tensor], old: Sequence[Tensor], mine: Sequence[Hashable], theirs: Sequence[Hashable]
) -> list[tuple[Tensor, Tensor]]:
    """The pairs that have the same keys."""
    matcher = SequenceMatcher(None, mine, theirs, autojunk=False)
    return [
        (new[block.a + step], old[block.b + step])
        for block in matcher.get_matching_blocks()
        for step in range(block.size)
    ]


def between(new: bytes, old: bytes, start: int) -> Iterator[Segment]:
    """What is no tensor: common octets at the beginning and the end, the rest as it is."""
    shorter = min(len(new), len(old))
    head = common(new[:shorter], old[:shorter])
    tail = common(new[len(new) - shorter + head :][::-1], old[len(old) - shorter + head :][::-1])
    if head:
        yield Segment(kind="diff", size=head, at=start)
    if middle := new[head : len(new) - tail]:
        yield Segment(kind="plain", size=len(middle))
    if tail:
        yield Segment(kind="diff", size=tail, at=start + len(old) - tail)


def common(one: bytes, other: bytes) -> int:
    """How many octets are the same before the first that is not; both have one length."""
    differ = np.frombuffer(one, np.uint8) != np.frombuffer(other, np.uint8)
    return int(differ.argmax()) if differ.any() else len(one)


def best(new: bytes, old: bytes, here: Tensor, there: Tensor) -> Segment:
    """The way in which a tensor takes the fewest octets."""
    size, width, at = here.size, here.width, there.start
    if new[here.start : here.start + size] == old[at : at + there.size]:
        return Segment(kind="diff", size=size, at=at)
    ways = [Segment(kind="plain", size=size)]
    if here.size == there.size:
        ways.append(Segment(kind="diff", size=size, width=width, at=at))
    if 2 * here.size == there.size and here.width == HALF_BYTES:
        ways.append(Segment(kind="half", size=size, width=HALF_BYTES, at=at))
    return min(ways, key=lambda way: sampled(way, new, old, here)) if len(ways) > 1 else ways[0]


def sampled(way: Segment, new: bytes, old: bytes, here: Tensor) -> int:
    """The compressed size of a tensor's first stretch."""
    length = min(way.size, SAMPLE_BYTES)
    block = residual(way, new[here.start : here.start + length], old[way.at : way.at + taken_by(way, length)])
    return len(zstandard.ZstdCompressor(level=LEVEL).compress(grouped(block, here.width)))


def residuals(segments: Sequence[Segment], new: bytes, old: bytes) -> Iterator[bytes]:
    """What the delta holds of a part, in blocks."""
    start = 0
    for one in segments:
        for done in range(0, one.size, RUN_BYTES):
            length = min(RUN_BYTES, one.size - done)
            at = one.at + taken_by(one, done)
            yield residual(one, new[start : start + length], old[at : at + taken_by(one, length)])
            start += length


def residual(segment: Segment, new: bytes, old: bytes) -> bytes:
    """One block; the device's `joined` undoes it."""
    if segment.kind == "plain":
        return new
    base = words_of(segment, old)
    difference = np.frombuffer(new, base.dtype) - base
    return zigzag(difference)[by_exponent(base)].tobytes() if difference.any() else bytes(len(new))


def zigzag(words: Words) -> Words:
    """0, -1, 1, -2, ... as 0, 1, 2, 3, ..."""
    signs: Words = np.negative(words >> (8 * words.itemsize - 1))
    return (words << 1) ^ signs
