"""What the runner holds of releases: sealed memory files, one per part, and engines of them.

1. A part is believed when its sealed bytes have the size and digest that the agent announced, not before. Those of
   weights, which take a second, are compared while the first seat loads: until then it is not loaded.
2. A release that seats or standing orders need is kept. So are a few that were sealed and never served: their
   other candidates come next. The rest is forgotten at once: weights in memory are memory the models lack.
3. What fails at handing over says nothing against the release: the agent verified it before. Only documents that
   break their form do.
4. An engine is believed by nobody: a seat proves it. One that a seat failed with is not tried again; one whose
   candidate left goes, too.
5. Reserving and hashing take a while for large weights: they are done in a thread.
"""

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import yaml  # noqa: F401 - here and not while the first release is sealed: it holds the loop up for 20 ms

from agent.adapters.memory_file import digest, read, reserve, seal, size
from agent.adapters.packets import close_all
from agent.core.candidate import Candidate
from agent.core.documents import from_json, from_yaml
from agent.core.errors import BackendError, InputError, Kind, TransferError
from agent.core.messages import CONFIG, METADATA, PARTS, Part, encode, engine_of, parts_of
from agent.core.release import Config, Metadata, Ref

WEIGHTS_END = ".onnx"
FRESH = 4  # releases that never served: one for each slot of a device that updates four at once
VARIANT = re.compile(r"model\.[a-z0-9]+\.onnx")  # weights in another precision, which the config names
PART_BYTES = 4 * 1024**3  # the largest vision model of the field is a quarter of that

log = logging.getLogger("edge-runner")


@dataclass(frozen=True, slots=True)
class Held:
    """A release in memory that was checked; its weights were, when `doubt` is done."""

    ref: Ref
    parts: tuple[Part, ...]
    descriptors: tuple[int, ...]
    metadata: Metadata
    config: Config
    engines: dict[str, int] = field(default_factory=dict)  # name: its memory file, sealed
    doubt: "asyncio.Future[str] | None" = None  # what is wrong with the digests of its weights; empty: nothing

    def engine(self, candidate: Candidate) -> tuple[int, ...]:
        """A candidate's engine; empty where none is held."""
        return tuple(number for name, number in self.engines.items() if name == engine_of(candidate))

    def keep_engine(self, candidate: Candidate, given: list[int]) -> None:
        """Holds what a seat gave away, in place of an earlier one."""
        self.drop_engine(candidate)
        try:
            seal(given[0])
        except TransferError as error:  # a corrupt process may give anything
            log.warning("release=%s step=engine outcome=refused reason=%s", self.ref, error)
        else:
            self.engines[engine_of(candidate)] = given.pop(0)
        close_all(given)

    def drop_engine(self, candidate: Candidate) -> None:
        """Forgets a candidate's engine."""
        close_all(self.engine(candidate))
        self.engines.pop(engine_of(candidate), None)


class Holdings:
    """The releases offered (being written) and held (sealed)."""

    def __init__(self) -> None:
        self._offered: dict[Ref, tuple[tuple[Part, ...], tuple[int, ...]]] = {}
        self.held: dict[Ref, Held] = {}  # oldest first
        self._served: set[Ref] = set()

    async def offer(self, ref: Ref, parts: Sequence[Part]) -> tuple[int, ...]:
        """One empty memory file for each part, to be written by the agent; ours to close.

        Raises:
            BackendError: they are neither the parts of a release nor an engine of one that is held (STRUCTURE), or
                there is no room (MEMORY).
        """
        if ref not in self.held or not _is_engine(parts):
            _check_parts(ref, parts)
        descriptors = await asyncio.to_thread(_reserve, ref, parts)
        self._withdraw(ref)
        self._offered[ref] = (tuple(parts), descriptors)
        return descriptors

    async def seal(self, ref: Ref) -> None:
        """Holds the release, or the engine of one.

        Raises:
            BackendError: why not; a release that was refused is forgotten.
        """
        held = self.held.get(ref)
        if held is not None and not _is_engine(self._offered.get(ref, ((), ()))[0]):
            self._withdraw(ref)
            return
        if ref not in self._offered:
            raise BackendError(f"{ref}: nothing of it is offered, or another seal took it: offer its parts again")
        parts, descriptors = self._offered.pop(ref)
        try:
            await asyncio.to_thread(_seal, ref, parts, descriptors)
            if held is not None:
                held.engines[parts[0].name] = descriptors[0]
                return
            metadata, config = await asyncio.to_thread(_parsed, ref, parts, descriptors)
        except BackendError:
            close_all(descriptors)
            raise
        doubt = asyncio.create_task(self._check_weights(ref, parts, descriptors), name=f"check {ref}")
        self.held[ref] = Held(ref, parts, descriptors, metadata, config, doubt=doubt)

    async def _check_weights(self, ref: Ref, parts: Sequence[Part], descriptors: Sequence[int]) -> str:
        try:
            for part, number in zip(parts, descriptors, strict=True):
                if part.name.endswith(WEIGHTS_END):
                    await asyncio.to_thread(_check, ref, part, number)
        except BackendError as error:
            if self.held.pop(ref, None) is not None:
                close_all(descriptors)
            return str(error)
        return ""

    def served(self, ref: Ref) -> None:
        """Notes that a release has served: from now on it is kept only while it is needed."""
        self._served.add(ref)

    def forget(self, needed: Iterable[Ref]) -> list[int]:
        """Drops the releases that nobody needs; the descriptors that hold their memory, to be closed."""
        kept = set(needed)
        fresh = [ref for ref in self.held if ref not in kept | self._served]
        kept.update(fresh[-FRESH:])
        dropped = [self.held.pop(ref) for ref in list(self.held) if ref not in kept]
        self._served &= kept
        return [number for held in dropped for number in (*held.descriptors, *held.engines.values())]

    def withdraw(self) -> list[int]:
        """Drops all that is offered and not sealed; the descriptors that hold its memory, to be closed."""
        offered, self._offered = self._offered, {}
        return [number for _, descriptors in offered.values() for number in descriptors]

    def _withdraw(self, ref: Ref) -> None:
        _, descriptors = self._offered.pop(ref, ((), ()))
        close_all(descriptors)


def _is_engine(parts: Sequence[Part]) -> bool:
    return len(parts) == 1 and parts[0].name not in PARTS


def _check_parts(ref: Ref, parts: Sequence[Part]) -> None:
    _require_names(ref, parts, (*PARTS, *{part.name for part in parts if VARIANT.fullmatch(part.name)}))
    for part in parts:
        if not 0 <= part.size <= PART_BYTES:
            reason = f"{ref}: {part.name} is {part.size} bytes; 0 to {PART_BYTES} are allowed"
            raise BackendError(reason, Kind.STRUCTURE)


def _require_names(ref: Ref, parts: Sequence[Part], wanted: Iterable[str]) -> None:
    names = sorted(part.name for part in parts)
    if names != sorted(wanted):
        raise BackendError(f"{ref}: its parts are {names}; a release has {sorted(wanted)}", Kind.STRUCTURE)


def _reserve(ref: Ref, parts: Sequence[Part]) -> tuple[int, ...]:
    descriptors: list[int] = []
    try:
        for part in parts:
            descriptors += [reserve(f"{ref.name}/{part.name}", part.size)]
    except TransferError as error:
        close_all(descriptors)
        raise BackendError(str(error), Kind.MEMORY) from error
    return tuple(descriptors)


def _seal(ref: Ref, parts: Sequence[Part], descriptors: Sequence[int]) -> None:
    for part, number in zip(parts, descriptors, strict=True):
        try:
            seal(number)
        except TransferError as error:
            raise BackendError(f"{ref}: {error}") from error
        if not part.name.endswith(WEIGHTS_END):
            _check(ref, part, number)


def _check(ref: Ref, part: Part, number: int) -> None:
    if (size(number), digest(number)) != (part.size, part.sha256):
        raise BackendError(
            f"{ref}: {part.name} is not what was announced: another offer took its place, or not all "
            "of it was written; it is handed over again"
        )


def _parsed(ref: Ref, parts: Sequence[Part], descriptors: Sequence[int]) -> tuple[Metadata, Config]:
    files = dict(zip((part.name for part in parts), descriptors, strict=True))
    try:
        metadata = from_json(Metadata, read(files[METADATA]), f"{ref}: {METADATA}")
        config = from_yaml(Config, read(files[CONFIG]), f"{ref}: {CONFIG}")
        config = from_json(Config, encode(config), f"{ref}: {CONFIG}")  # as a seat is told: no infinity, no megabyte
    except InputError as error:
        raise BackendError(str(error), Kind.STRUCTURE) from error
    if metadata.name != ref.name:
        raise BackendError(f"{ref}: its metadata is that of {metadata.name}", Kind.STRUCTURE)
    _require_names(ref, parts, parts_of(config))
    return metadata, config
