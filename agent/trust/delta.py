"""A delta: how a release is rebuilt from one that is here, in blocks, with no length believed.

1. A delta is sealed as a release is, under the content key of the release that it leads to, bound to a path of its
   own. Its first part is the recipe; each other part is the residual of one part of the result, as long as that part.
2. The recipe cuts the parts of the result into segments. A plain segment is its residual; any other is the sum of its
   residual and a range of the base. The ranges ascend, so that the base is read once, forward.
3. A residual is the difference of little-endian words: zigzag, so that small ones have zeros in front; in the order
   of the base's exponents, so that those of one size stand together. Layout: models/FORMAT.md.
4. Base and result are named by the digests of their plaintext. The base's are compared before the first octet, the
   result's at each part's end.
5. The result is compressed and sealed again as it was at the desk, under the same salt: it has to be, octet for octet,
   the release that was signed and deployed. So a delta is never believed, whoever made it: it is tried. What comes out
   counts only when the iteration ends without an error.
"""

import hashlib
from collections.abc import Generator, Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from agent.core.documents import Document
from agent.core.errors import InputError, TrustError
from agent.trust.envelope import parse_signed
from agent.trust.sealing import PARTS, SALT_BYTES, Group, Opener, SealedPart, seal

RUN_BYTES = 1024 * 1024  # sorted at a time; four times as much would spare a quarter of a point and cost 30 MB more
RECIPE_BYTES = 1024 * 1024  # a segment takes about 60 octets, a tensor two segments
HALF = 2  # octets of a float16
Kind = Literal["plain", "diff", "half"]  # half: of the base's float32, rounded to float16
Words = np.ndarray[Any, np.dtype[Any]]


class Segment(Document):
    """The next `size` octets of a part, and where in the base's part of the same name they come from."""

    kind: Kind
    size: Annotated[int, Meta(ge=1)]
    width: Group = 1  # octets of a word
    at: Annotated[int, Meta(ge=0)] = 0


class Change(Document):
    """A part of the result."""

    part: SealedPart
    base: str  # SHA-256 of the base's part of the same name; empty where nothing is taken from it
    segments: tuple[Segment, ...]


class Recipe(Document):
    """The delta's first part."""

    v: Literal[1]
    salt: Annotated[bytes, Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]  # of the sealed release
    parts: Annotated[tuple[Change, ...], Meta(min_length=1, max_length=PARTS)]


class Source:
    """The parts of an open bundle as one run of octets that is read forward."""

    def __init__(self, opener: Opener) -> None:
        sizes = [part.size for part in opener.parts]
        self.starts = {part.name: sum(sizes[:index]) for index, part in enumerate(opener.parts)}
        self.at = 0
        self._pieces = opener.pieces()
        self._piece = memoryview(b"")

    def exactly(self, start: int, length: int) -> bytes:
        """These octets, which are known to be there; raises TrustError where they were passed already."""
        if start < self.at:
            raise TrustError("delta: a range goes back in its base; publish the delta anew")
        content = bytearray()
        while len(content) < length:
            self._piece = self._piece or next(self._pieces)[1]
            skipped = min(max(0, start - self.at), len(self._piece))
            taken = self._piece[skipped : skipped + length - len(content)]
            content += taken
            self.at += skipped + len(taken)
            self._piece = self._piece[skipped + len(taken) :]
        return bytes(content)


def rebuild(delta: Opener, base: Opener, key: bytes, path: str, size: int, sha256: str) -> Generator[bytes, None, None]:
    """The sealed release at `path`, piece by piece.

    Args:
        delta: open, from its beginning.
        base: the same.
        key: the release's content key.
        path: its TUF path.
        size: the size of all its parts together that its signed listing gives.
        sha256: of the release as it was signed.

    Raises:
        TrustError: the delta is not one, or not of this base, or what it gives is not the release.
    """
    residual, old = Source(delta), Source(base)
    recipe = read_recipe(delta.parts, residual, size)
    held = {part.name: part for part in base.parts}
    for change in recipe.parts:
        check_change(change, held.get(change.part.name))
    parts, digest = [change.part for change in recipe.parts], hashlib.sha256()
    contents = (blocks_of(change, residual, old) for change in recipe.parts)
    try:
        for piece in seal(key, path, parts, contents, recipe.salt):
            digest.update(piece)
            yield piece
    except InputError as error:
        raise TrustError("delta: what it gives is not what it declares; publish the delta anew") from error
    if digest.hexdigest() != sha256:
        raise TrustError("delta: what it gives is not the release that was signed; publish the delta anew")


def read_recipe(parts: Sequence[SealedPart], residual: Source, size: int) -> Recipe:
    """The delta's first part; the result is as large as was signed, and so are all residuals together."""
    first, *others = parts
    if first.size > RECIPE_BYTES:
        raise TrustError(f"delta: its recipe has {first.size} bytes; at most {RECIPE_BYTES}. Publish it anew")
    recipe = parse_signed(Recipe, residual.exactly(0, first.size), f"delta: {first.name}")
    given, left = sum(change.part.size for change in recipe.parts), sum(part.size for part in others)
    if not given == left == size:
        raise TrustError(f"delta: {left} bytes give {given}; the signed listing says {size}. Publish the delta anew")
    return recipe


def check_change(change: Change, base: SealedPart | None) -> None:
    """The segments make the part, out of what the base's part holds."""
    name = f"delta: {change.part.name}"
    if sum(segment.size for segment in change.segments) != change.part.size:
        raise TrustError(f"{name}: its segments give another size than it declares; publish the delta anew")
    for segment in change.segments:
        if segment.kind == "plain":
            continue
        if segment.size % segment.width or (segment.kind == "half" and segment.width != HALF):
            raise TrustError(f"{name}: a segment is not of whole words; publish the delta anew")
        if base is None or base.sha256 != change.base:
            raise TrustError(
                f"{name}: was made from another base than the release that is here; publish the delta anew"
            )
        if segment.at + taken_by(segment, segment.size) > base.size:
            raise TrustError(f"{name}: a range ends behind its base; publish the delta anew")


def blocks_of(change: Change, residual: Source, base: Source) -> Iterator[bytes]:
    """The octets of one part."""
    for segment in change.segments:
        for done in range(0, segment.size, RUN_BYTES):
            length = min(RUN_BYTES, segment.size - done)
            block = residual.exactly(residual.at, length)
            if segment.kind == "plain":
                yield block
            else:
                start = base.starts[change.part.name] + segment.at + taken_by(segment, done)
                yield joined(block, words_of(segment, base.exactly(start, taken_by(segment, length))))


def taken_by(segment: Segment, length: int) -> int:
    """The octets of the base that so many of the result are made from."""
    return 2 * length if segment.kind == "half" else length


def words_of(segment: Segment, base: bytes) -> Words:
    """The base as the words that the residual is a difference from."""
    if segment.kind == "half":
        with np.errstate(over="ignore", invalid="ignore"):  # what a float16 cannot hold is Inf or NaN, as at the desk
            return np.frombuffer(base, "<f4").astype("<f2").view("<u2")
    return np.frombuffer(base, f"<u{segment.width}")


def by_exponent(words: Words) -> Words:
    """The places of the words, sorted by the eight bits below the sign: of float32 the exponent."""
    return np.argsort((words << 1 >> (8 * words.itemsize - 8)).astype(np.uint8), kind="stable")


def joined(block: bytes, base: Words) -> bytes:
    """The base's words plus the differences that a residual block holds."""
    coded = np.frombuffer(block, base.dtype)
    if not coded.any():
        return base.tobytes()
    words = np.empty_like(base)
    words[by_exponent(base)] = (coded >> 1) ^ np.negative(coded & 1)
    words += base
    return words.tobytes()
