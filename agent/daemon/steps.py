"""Do one step of the planner. Each returns what came of it: Success, Later (back off) or Never (with its failure).

Whatever a step leaves behind when it is cut off is a state that the planner knows: a part file that the next fetch
takes up, a seat that is loaded, a ledger without the fact. Blocking work goes to a thread at the call.
"""

import asyncio
import contextlib
import math
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from agent.adapters import files
from agent.adapters.fetch import RESERVE_BYTES, Mismatch, NoRoom, fetch
from agent.adapters.ledger import Ledger
from agent.adapters.packets import close_all
from agent.adapters.source import Source
from agent.adapters.tuf_client import TargetInfo, Trusted
from agent.core import messages, plan
from agent.core.candidate import Evidence, Failure, judge
from agent.core.documents import from_json, from_yaml, to_tree
from agent.core.errors import BackendError, InputError, Kind, TransferError, TrustError
from agent.core.messages import Place
from agent.core.names import check_form
from agent.core.records import Device, Rejection, ReleaseRecord, TrialRecord, trial_key
from agent.core.release import Config, Metadata, Ref
from agent.core.slot import SlotRecord, confirm
from agent.daemon.deltas import Deltas
from agent.daemon.engines import Engines
from agent.daemon.keyring import Keyring
from agent.daemon.runner_link import RunnerLink, announced, pour
from agent.trust.listing import read_listing, target_path
from agent.trust.sealing import Opener

DOCUMENT_BYTES = 1024 * 1024  # metadata or config; a real one has a few KB
DOCUMENTS = ("metadata.json", "config.yaml")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Success:
    """The fact is so now."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Later:
    """Not now; the reason is shown, and it is tried again."""

    reason: str
    lacks_room: bool = False


@dataclass(frozen=True, slots=True)
class Never:
    """Not with these bytes, or not on this candidate."""

    failure: Failure


Outcome = Success | Later | Never


@dataclass(slots=True)
class Progress:
    """Bytes of a running fetch."""

    done: int = 0
    total: int = 0


@dataclass(eq=False)
class Steps:
    """Does the planner's steps for every slot."""

    folder: Path
    source: Source
    ledger: Ledger
    keyring: Keyring
    runner: RunnerLink
    trusted: Callable[[], Trusted | None]
    hold_s: Callable[[str], float]
    moving: threading.Lock  # whoever moves a slot's record holds it
    quota_mb: float | None = None

    def __post_init__(self) -> None:
        self.progress: dict[str, Progress] = {}
        self._deltas = Deltas(self.ledger, self.keyring, self._open)
        self._engines = Engines(self.folder / "engines", self.keyring, self.runner)
        self._handing_over = asyncio.Lock()

    async def act(self, slot: str, step: plan.Step, device: Device) -> Outcome:
        """What came of one step."""
        try:
            said = await self._do(slot, step, device)
        except (Mismatch, TransferError) as error:  # a mismatch is one of the bytes that came, not of the release
            return Later(str(error), isinstance(error, NoRoom))
        except (TrustError, BackendError, InputError) as error:
            return Never(Failure.of(error))
        return Success(said if isinstance(said, str) else "")

    def _do(self, slot: str, step: plan.Step, device: Device) -> Awaitable[object]:  # noqa: C901, PLR0911  one line per step
        match step:
            case plan.Fetch(release):
                return self._fetch(slot, release)
            case plan.Verify(release):
                return self._verify(slot, release, device)
            case plan.Load(place):
                return self._load(slot, place, device)
            case plan.Trial(place):
                return self._try(slot, place, device)
            case plan.Prove(place):
                return self.prove(slot, place, device)
            case plan.Promote(place, fallback):
                hold_s = self.hold_s(slot)
                return self.runner.ask(messages.Promote(slot=slot, place=place, fallback=fallback, hold_s=hold_s))
            case plan.Confirm(place):
                return asyncio.to_thread(self._confirm, slot, place)
            case plan.Unload(place):
                return self.runner.ask(messages.Unload(slot=slot, place=place))
            case plan.Delete(release):
                return asyncio.to_thread(self._delete, release)
            case plan.Reject(release):
                return asyncio.to_thread(self._reject, release, device)
            case plan.Wait():
                raise AssertionError("waiting is not done here")

    # --- files -------------------------------------------------------------------------------------------------

    async def _fetch(self, slot: str, ref: Ref) -> str:
        """Download a listed release, resumable, to its place; what a delta saved, or why it did not."""
        stop = threading.Event()
        progress = self.progress[slot] = Progress()
        try:
            return await asyncio.to_thread(self._fetch_blocking, ref, progress, stop)
        finally:
            stop.set()
            self.progress.pop(slot, None)

    def _fetch_blocking(self, ref: Ref, progress: Progress, stop: threading.Event) -> str:
        check_form(ref.name)
        trusted, info = self._listed(ref)
        listing = read_listing(info.custom, info.path)
        destination = self.sealed_path(ref)
        with files.saying_why(destination):
            destination.parent.mkdir(parents=True, exist_ok=True)
        progress.total = info.length
        if files.free_bytes(destination) < info.length + RESERVE_BYTES:
            self._engines.fit(0)
        self._require_quota(ref)

        def count(done: int) -> None:
            progress.done = done

        def get(target: TargetInfo, place: Path) -> None:
            progress.total = target.length
            fetch(
                self.source, target.key, place, target.length, target.sha256,
                on_progress=count, should_stop=stop.is_set, rate_limit=self.source.pace(),
            )  # fmt: skip

        try:
            said = self._deltas.take(ref, info, destination, trusted, get)
            if not said:
                get(info, destination)
        except TransferError:
            self.free_of_strays()  # stopped because another release is wanted: what came is of no use
            raise
        self._record(ReleaseRecord(ref=ref, stored=True, size=info.length, listing=to_tree(listing)))
        return said or self._deltas.failed.get(ref, "")

    def _require_quota(self, ref: Ref) -> None:
        """Raises NoRoom where what is kept and what every slot fetches now are more than the quota."""
        kept = self._kept_mb(ref)
        coming = sum(one.total for one in self.progress.values()) / 1e6
        self._engines.fit(self._room(ref) - coming * 1e6)
        if self.quota_mb is not None and coming + sum(kept.values()) > self.quota_mb:
            names = ", ".join(f"{name} {size:.1f}" for name, size in kept.items()) or "nothing"
            raise NoRoom(
                f"{ref.name}: {coming:.1f} MB are to come and {sum(kept.values()):.1f} MB are kept ({names}), "
                f"more than the quota_mb of {self.quota_mb:.1f} in agent.yaml: raise it, or deploy a smaller release"
            )

    def _kept_mb(self, but: Ref | None = None) -> dict[str, float]:
        known = self.ledger.all("release", ReleaseRecord).values()
        return {one.ref.name: one.size / 1e6 for one in known if one.ref != but}

    def _room(self, but: Ref | None = None) -> float:
        """Bytes that the quota leaves beside the releases that are kept."""
        return math.inf if self.quota_mb is None else (self.quota_mb - sum(self._kept_mb(but).values())) * 1e6

    def _listed(self, ref: Ref) -> tuple[Trusted, TargetInfo]:
        trusted = self.trusted()
        if trusted is None:
            raise TransferError("nothing verified is known of the store yet: waiting for the first contact")
        try:
            info = trusted.find(target_path(ref.name))
        except TrustError as error:  # of what the store serves now, not of the release
            raise TransferError(f"{ref.name}: {error}") from error
        if info is None:
            raise TransferError(
                f"{ref.name}: the store did not list it when last asked; it is asked again. Is the release published?"
            )
        if info.sha256 != ref.digest:
            raise TrustError(
                f"{ref.name}: the deployment means {ref.digest[:12]}, the store lists {info.sha256[:12]} under this "
                "name; one name is one set of bytes for ever: deploy a release that is listed"
            )
        return trusted, info

    async def _verify(self, slot: str, ref: Ref, device: Device) -> None:
        record = await asyncio.to_thread(self._verify_blocking, slot, ref)
        assert record.config is not None
        await asyncio.to_thread(self._record, record)
        if not device.candidates(record.config):
            raise BackendError(
                f"{ref.name} runs on {', '.join(record.config.backends)}; this device has none of them: "
                "see `edge-agent doctor`"
            )

    def _verify_blocking(self, slot: str, ref: Ref) -> ReleaseRecord:
        """Open all of it once, and read its two documents."""
        record = self._release(ref)
        documents = self._blaming(ref, lambda: self._documents(self._open(ref, record)))
        metadata = from_json(Metadata, documents["metadata.json"], f"{ref.name}: metadata.json")
        config = from_yaml(Config, documents["config.yaml"], f"{ref.name}: config.yaml")
        check_metadata(metadata, ref, slot)
        self._keep_documents(ref, documents)
        return replace(record, verified=True, metadata=metadata, config=config)

    def _documents(self, opener: Opener) -> dict[str, bytes]:
        contents = {name: bytearray() for name in DOCUMENTS}
        sizes = {part.name: part.size for part in opener.parts}
        for name in DOCUMENTS:
            if not 0 < sizes.get(name, 0) <= DOCUMENT_BYTES:
                raise InputError(f"the release holds no {name}, or one over {DOCUMENT_BYTES} bytes; publish it anew")
        for index, piece in opener.pieces():
            if (name := opener.parts[index].name) in contents:
                contents[name] += piece
        return {name: bytes(content) for name, content in contents.items()}

    def _keep_documents(self, ref: Ref, documents: dict[str, bytes]) -> None:
        """The two documents beside the sealed weights, for people; nothing here reads them again."""
        for path, content in zip(self._document_paths(ref), documents.values(), strict=True):
            with files.saying_why(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            files.write_durably(path, content)

    def _document_paths(self, ref: Ref) -> tuple[Path, Path]:
        return (
            self.folder / "metadata" / f"{ref.name}_metadata.json",
            self.folder / "configs" / f"{ref.name}_config.yaml",
        )

    def sealed_path(self, ref: Ref) -> Path:
        """Where a release lies, sealed."""
        return self.folder / "weights" / f"{ref.name}.sealed"

    def _delete(self, ref: Ref) -> None:  # the ledger first: files that are left are strays at the next start
        trials = self.ledger.all("trial", TrialRecord)
        measured = [(("trial"), key, None) for key, trial in trials.items() if trial.place.ref == ref]
        self.ledger.put_all([("release", ref.digest, None), *measured], precious=True)
        self._remove_files(ref)

    def _remove_files(self, ref: Ref) -> None:
        sealed = self.sealed_path(ref)
        for path in (*self.folder.glob(f"*/{sealed.name}*"), *self._document_paths(ref)):
            path.unlink(missing_ok=True)

    # --- seats -------------------------------------------------------------------------------------------------

    async def _load(self, slot: str, place: Place, device: Device) -> str:
        """Load a place, with its engine where one is kept; what was done, in words."""
        await self.hold(place.ref)
        return await self._engines.load(messages.Load(slot=slot, place=place), device)

    async def prove(self, slot: str, place: Place, device: Device) -> None:
        """Have a loaded seat compute its golden samples; what it built is kept."""
        _, engine = await self.runner.ask(messages.Prove(slot=slot, place=place))
        await asyncio.to_thread(self._engines.keep, place, device, engine, self._room())

    async def hold(self, ref: Ref) -> None:
        """Make the runner hold a release that is verified here."""
        async with self._handing_over:  # a bench and a swap may want the same release
            facts = self.runner.facts.value
            if facts is None or ref not in facts.held:
                await self._hand_over(ref)
                await self.runner.look()

    async def _hand_over(self, ref: Ref) -> None:
        """Open the sealed release into memory files that the runner made."""
        opener = await asyncio.to_thread(self._blaming, ref, lambda: self._open(ref, self._release(ref)))
        _, received = await self.runner.ask(messages.Offer(ref=ref, parts=announced(opener)))
        await asyncio.to_thread(self._blaming, ref, lambda: pour(opener, received))
        await self.runner.ask(messages.Seal(ref=ref))

    async def _try(self, slot: str, place: Place, device: Device) -> None:
        key, release = device.key(place.candidate), self._release(place.ref)
        assert release.config is not None
        reply, engine = await self.runner.ask(messages.Trial(slot=slot, place=place, key=key))
        assert isinstance(reply, messages.Tried), reply
        failure = judge(reply.evidence, release.config.gates)
        if failure is not None and not failure.kind.is_final and self._is_last_good(slot, place.ref):
            failure = None  # it was good enough to be confirmed; slow is better than dark
        moved = reply.evidence.conditions.get("moved") if failure is not None and failure.kind is Kind.SPEED else None
        if failure is None or moved:
            await asyncio.to_thread(self._engines.keep, place, device, engine, self._room())
        else:
            close_all(engine)
        if failure is not None and moved:
            raise TransferError(f"{place}: {failure.reason}; but {moved} changed meanwhile, so it is measured again")
        await asyncio.to_thread(self.record_trial, place, key, reply.evidence, failure)
        if failure is not None:
            raise BackendError(failure.reason, failure.kind)

    def _confirm(self, slot: str, place: Place) -> None:
        with self.moving:  # a deployment that comes between the reading and the writing would be lost
            record = self.ledger.get("slot", slot, SlotRecord) or SlotRecord(slot=slot)
            self.ledger.put_all([("slot", slot, confirm(record, place))], precious=True)

    # --- records -----------------------------------------------------------------------------------------------

    def record_trial(self, place: Place, key: str, evidence: Evidence | None, failure: Failure | None) -> None:
        """What is known of a place now."""
        trial = TrialRecord(place=place, key=key, evidence=evidence, failure=failure)
        self.ledger.put("trial", trial_key(place), trial)

    def record_rejection(self, ref: Ref, failure: Failure, device: Device) -> None:
        """A release that is not tried again while this holds. What was withdrawn meanwhile stays so."""
        known = self.ledger.get("rejection", ref.digest, Rejection)
        if known is not None and known.failure.kind is Kind.WITHDRAWN:
            return
        key = "" if failure.kind.is_final else device.state
        rejection = Rejection(ref=ref, failure=failure, key=key, at=datetime.now(UTC))
        self.ledger.put_all([("rejection", ref.digest, rejection)], precious=True)

    def _reject(self, ref: Ref, device: Device) -> None:
        """No candidate is left: the reasons are theirs; it is final only when all of them are."""
        trials = self.ledger.all("trial", TrialRecord).values()
        failures = [(one.place.candidate, one.failure) for one in trials if one.place.ref == ref and one.failure]
        kinds = [failure.kind for _, failure in failures]
        passing = next((kind for kind in kinds if not kind.is_final), None)
        kind = passing or (kinds[0] if kinds else Kind.BACKEND)
        reason = "; ".join(f"{candidate}: {failure.reason}" for candidate, failure in failures)
        self.record_rejection(ref, Failure(kind=kind, reason=reason or "no backend of this device can run it"), device)

    def _record(self, release: ReleaseRecord) -> None:
        self.ledger.put_all([("release", release.ref.digest, release)], precious=True)

    def _release(self, ref: Ref) -> ReleaseRecord:
        found = self.ledger.get("release", ref.digest, ReleaseRecord)
        if found is None:
            raise TransferError(f"{ref.name}: the ledger does not know it; it is fetched again")
        return found

    def _blaming(self, ref: Ref, read: Callable[[], T]) -> T:
        """What reading a release gives; one that cannot be believed is told from a file that went bad here.

        Raises:
            TrustError: theirs; it is not read again.
            TransferError: the file went bad; it is fetched again.
        """
        try:
            return read()
        except TrustError as error:
            with contextlib.suppress(OSError):  # not there, or unreadable: gone bad here
                if files.digest_of(self.sealed_path(ref)) == ref.digest:
                    raise
            self.ledger.remove("release", ref.digest)
            self._remove_files(ref)
            raise TransferError(f"{ref.name}: its file was damaged on this disk; it is fetched again") from error

    def _open(self, ref: Ref, record: ReleaseRecord) -> Opener:
        sealed = self.sealed_path(ref)
        if not sealed.is_file():
            self.ledger.remove("release", ref.digest)
            raise TransferError(f"{sealed}: the file is gone; it is fetched again")
        return self.keyring.open(ref.name, read_listing(dict(record.listing), ref.name), sealed)

    def _is_last_good(self, slot: str, ref: Ref) -> bool:
        record = self.ledger.get("slot", slot, SlotRecord)
        return record is not None and record.last_good is not None and record.last_good.ref == ref

    def free_of_strays(self) -> None:
        """Remove files that no release in the ledger owns."""
        known = {release.ref.name for release in self.ledger.all("release", ReleaseRecord).values()}
        records = self.ledger.all("slot", SlotRecord).values()
        wanted = {ref.name for record in records if (ref := record.desired)}
        wanted |= {place.ref.name for record in records if (place := record.last_good)}
        for path in self.folder.glob("*/*"):
            name = path.name.split(".sealed")[0].removesuffix("_metadata.json").removesuffix("_config.yaml")
            if name not in known | wanted and not name.startswith(files.TEMP):
                with contextlib.suppress(OSError):  # a disk that refuses is told elsewhere
                    path.unlink()


def check_metadata(metadata: Metadata, ref: Ref, slot: str) -> None:
    """The signed metadata is this release's and this slot's.

    Raises:
        InputError: it is another's.
    """
    _, version = check_form(ref.name)
    if metadata.name != ref.name or metadata.version != version:
        raise InputError(f"{ref.name}: its metadata is of {metadata.name} {metadata.version}; publish it anew")
    if metadata.task != slot:
        raise InputError(f"{ref.name}: its task is {metadata.task}, the slot is {slot}; deploy it to that slot")
