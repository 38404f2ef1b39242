"""A slot: which seat serves, what to fall back to, and what to do without being told.

1. A swap is one assignment. A request inside the old seat finishes there; the next one meets the new seat.
2. When the serving seat crashes or hangs, the fall-back serves. Without one it is started again from the sealed
   files, proven and promoted: RESTARTS times a minute at most, then the slot gives up and says so. From then on it
   is the agent's turn: requests wait for it for `hold_s` in all, not each for so long.
3. A request that was under way in a seat that died is asked again, once. One that kills two seats is at fault
   itself. Requests that only waited behind it are asked again until `hold_s` is over.
4. A failed answer, or one with NaN or Inf, is asked of the fall-back too. When that answers well, the seat is
   to blame: FAULTS in a row, and the fall-back serves. When it does not, the request is.
5. A seat that has become slow (half of the newest requests beyond its gates) gives way to the fall-back too. Without
   one a seat that is slow or at fault serves on, and that is told.
6. Whatever is done without being told is an incident. Only the agent ends seats that live.
"""

import asyncio
import logging
import math
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress

from msgspec.structs import replace

from agent.core import messages
from agent.core.candidate import Failure
from agent.core.errors import BackendError, InputError, Kind, TransferError
from agent.core.messages import Incident, Place, Promote, SeatRan, SlotFacts
from agent.core.release import Ref
from agent.core.soak import judge_pace
from agent.runner.answers import Answered, Asked, answer_anyway, fault_of, run_deadline_s
from agent.runner.bells import COUNT_S
from agent.runner.holdings import Held, Holdings
from agent.runner.lanes import Lanes, Pair
from agent.runner.queue import DEPTH, WHENEVER, LateError, Queue, Terms
from agent.runner.seats import Priority, Seat, SeatEndedError, Spare
from agent.runner.tally import Statistics, Tally

RESTARTS = 3
RESTARTS_WITHIN_S = 60.0
FAULTS = 3  # in a row: a single one may be chance, more cost clients the time of two seats
PACE = 30  # requests between two looks at how long they took: a second of one camera
SERVES_ON = "serves on, for want of a fall-back"
TURNS, TURNS_S = 20, 5.0  # of a candidate and of what serves; after so many seconds two have to do
INCIDENTS = 8  # kept; the agent sees each as it comes

Times = tuple[float, float, float]  # when a request arrived, was received, and was answered

log = logging.getLogger("edge-runner")


class Slot:
    """One slot of the runner, with its seats and its queue."""

    def __init__(
        self,
        name: str,
        holdings: Holdings,
        spare: Spare,
        tasks: asyncio.TaskGroup,
        changed: Callable[[], None],
        count: Iterator[int],
    ) -> None:
        self.name = name
        self.lanes = Lanes()
        self.serving: Seat | None = None
        self.fallback: Seat | None = None
        self.order: Promote | None = None
        self.tally = Tally()
        self.rung = 0  # requests that no door has seen: at the seats' bells
        self.statistics: dict[str, Statistics] = {}  # by the names of releases that are loaded and have served
        self._seats: dict[Place, Seat] = {}
        self._holdings, self._spare, self._tasks, self._changed, self._count = holdings, spare, tasks, changed, count
        self._since = 0.0
        self._dark_since = 0.0
        self._queue = Queue()
        self._faults = 0
        self._restarts: deque[float] = deque(maxlen=RESTARTS)
        self._restarting: Place | None = None
        self._hopeless_at = math.inf  # monotonic; from then on, until the agent loads something, no request waits
        self._incidents: deque[Incident] = deque(maxlen=INCIDENTS)

    # --- orders of the agent ---------------------------------------------------------------------------------------

    async def load(self, place: Place, deadline_s: float) -> Seat:
        """A loaded seat; the one that is there, where there is one.

        Raises:
            BackendError: the release is not held, or the seat cannot load it.
        """
        self._hopeless_at = math.inf
        seat = self._seats.get(place)
        if seat is not None and seat.state == "draining":
            await seat.ended.wait()
            seat = None
        if seat is None:
            return await self._start(place, deadline_s)
        await seat.settled.wait()
        if seat.ready is None:
            raise BackendError(f"{place}: the seat ended while it was loading")
        return seat

    async def trial(self, place: Place, ask: messages.SeatTrial, deadline_s: float) -> messages.Tried:
        """What the trial of a loaded seat measured.

        Raises:
            BackendError: it is not loaded, or did not survive its trial.
        """
        seat = self._loaded(place)
        tried = await seat.ask(ask, deadline_s)
        assert isinstance(tried, messages.Tried)
        if tried.evidence.is_proof:
            seat.state = "proven"
            with suppress(BackendError):  # whoever ended is told of elsewhere
                tried = replace(tried, beside=await self._beside(seat, deadline_s))
        self._changed()
        return tried

    async def _beside(self, seat: Seat, deadline_s: float) -> messages.Beside | None:
        """How fast a seat is against the serving one; of each the quickest turn counts, which was disturbed least."""
        if (serving := self.serving) is None or serving is seat:
            return None
        quickest, until = {seat: math.inf, serving: math.inf}, time.monotonic() + TURNS_S
        for turn in range(TURNS):
            for one, limit_s in ((seat, deadline_s), (serving, run_deadline_s(serving.held.config))):
                ran = await one.ask(messages.SeatTurn(), limit_s)
                assert isinstance(ran, SeatRan)
                quickest[one] = min(quickest[one], ran.busy_s / one.held.config.batch_size)
            if turn and time.monotonic() > until:
                break
        ratio = quickest[serving] / quickest[seat]
        return messages.Beside(place=serving.place, ratio=ratio) if self.serving is serving else None

    async def prove(self, place: Place, deadline_s: float) -> None:
        """Return when a loaded seat computes its golden samples right.

        Raises:
            BackendError: it is not loaded, or does not.
        """
        seat = self._loaded(place)
        try:
            await seat.ask(messages.SeatProve(), deadline_s)
        except BackendError:
            if seat is self.serving:
                self.tally.probe(failed=True)
            raise
        if seat is self.serving:
            self.tally.probe(failed=False)
        seat.state = "proven"
        self._changed()

    def new_engine(self, place: Place) -> tuple[int, ...]:
        """The engine that a seat has built and proven, once."""
        seat = self._seats.get(place)
        if seat is None or not seat.has_built:
            return ()
        seat.has_built = False
        return seat.held.engine(place.candidate)

    def promote(self, order: Promote) -> None:
        """The swap.

        Raises:
            BackendError: the seat is not loaded.
        """
        seat = self._loaded(order.place)
        fallback = self._seats.get(order.fallback) if order.fallback is not None else None
        self.order = order
        loaded = {place.ref.name for place in self._seats}
        self.statistics = {name: one for name, one in self.statistics.items() if name in loaded}
        if seat is not self.serving:
            self.tally = Tally()
            self._serve(seat)
        self.fallback = fallback if fallback is not seat and fallback is not None and fallback.ready else None
        self._changed()

    async def unload(self, place: Place) -> None:
        """Return when no seat holds `place` any more; its requests were answered first."""
        if self._restarting == place:
            self._restarting = None
        if self.order is not None and self.order.fallback == place:
            self.order = replace(self.order, fallback=None)
        seat = self._seats.get(place)
        if seat is not None and seat.has_served:
            self._step_down(seat)
            self._changed()
            seat.state = "draining"
            if seat.bells.are_counted:
                await self._count_rings(seat)
            await seat.leave()
        if self._seats.get(place) is seat:  # nobody has loaded it anew meanwhile
            await self._end(place)
        if seat is not None:
            seat.held.drop_engine(place.candidate)

    @property
    def is_unused(self) -> bool:
        """Whether nothing is here and nothing was ever to serve: a trial or bench is over."""
        return self.order is None and not self._seats

    async def close(self) -> None:
        """Ends every seat; nothing is asked any more."""
        self._restarting = None
        await asyncio.gather(*(seat.end() for seat in self._seats.values()))
        self.lanes.close()

    # --- requests of clients ---------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many requests no seat has yet."""
        return len(self._queue)

    @property
    def hold_s(self) -> float:
        """How long a request may wait for a seat where none serves."""
        return self.order.hold_s if self.order is not None else 0.0

    async def infer(
        self, lane: Pair, asked: Callable[[Held], Asked], arrived: float, *, is_probe: bool, terms: Terms = WHENEVER
    ) -> Answered:
        """The answer to the request in `lane`; `asked` reads it against the release that serves.

        Raises:
            InputError: the request does not fit the model.
            BackendError: the model fails on it.
            TransferError: no seat was there within `hold_s`.
            LateError: its own deadline passed while it waited.
        """
        received, deaths = time.monotonic(), 0
        while True:
            seat, tally = await self._lease(terms, arrived), self.tally
            seat.inside += 1
            try:
                answered = await self._ask(seat, lane, asked)
            except SeatEndedError as error:
                deaths += error.was_inside
                if deaths > 1:
                    self._count_one(tally, seat, (arrived, received, time.monotonic()), None, is_probe=is_probe)
                    raise BackendError(f"two seats ended on this request; it is not tried again: {error}") from error
            except BackendError:
                self._count_one(tally, seat, (arrived, received, time.monotonic()), None, is_probe=is_probe)
                raise
            else:
                times = arrived, received, time.monotonic()
                self._count_one(tally, answered.seat, times, answered.ran, is_probe=is_probe)
                return answered
            finally:
                seat.inside -= 1
                self._queue.call()

    def bell(self, seat: Seat, lane: Pair, asked: Asked) -> socket.socket | None:
        """The client's end of a bell for a request that `seat` has just answered; None where it may have none."""
        if seat is not self.serving:
            return None
        if not seat.bells.are_counted:
            seat.bells.are_counted = True
            self._tasks.create_task(self._count_at_times(seat), name=f"count {seat.place}")
        return seat.bell(lane, *asked)

    async def _count_at_times(self, seat: Seat) -> None:
        while seat.bells:
            await asyncio.sleep(COUNT_S)
            await self._count_rings(seat)
        seat.bells.are_counted = False

    async def _count_rings(self, seat: Seat) -> None:
        """Counts what a seat's bells were rung for."""
        with suppress(BackendError):  # it has ended, and its keeper knows
            counted = await seat.ask(messages.SeatCount(), run_deadline_s(seat.held.config))
            assert isinstance(counted, messages.SeatCounted)
            tally = self.tally if seat is self.serving else Tally()
            self.rung += len(counted.runs)
            self._faults = 0 if counted.runs else self._faults
            for began, busy_s in counted.runs:
                ran = SeatRan(outputs=(), busy_s=busy_s, finite=True)
                self._count_one(tally, seat, (began, began, began + busy_s), ran)

    def forget(self, lane: Pair) -> None:
        """Lets every seat give back a lane that ends."""
        for seat in self._seats.values():
            seat.forget(lane)

    async def _lease(self, terms: Terms, arrived: float) -> Seat:
        with self._queue.turn(terms.priority) as turn:
            while True:
                now, until = time.monotonic(), terms.deadline
                if now >= until:
                    if self.serving is not None:
                        self.statistics[self.serving.place.ref.name].late += 1
                    raise LateError(f"{self.name}: the request's timeout passed while it waited with others")
                if self.serving is None:
                    until = min(until, self._patience(now, arrived))
                elif self.serving.inside < DEPTH and self._queue.is_next(turn):
                    return self.serving
                turn.called.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(until if until < math.inf else None):
                        await turn.called.wait()

    def _patience(self, now: float, arrived: float) -> float:
        """Until when a request waits for a seat to serve at all."""
        if self.order is None or now >= self._hopeless_at:
            raise TransferError(f"{self.name}: no model serves, and none is on its way")
        until = max(arrived, self._dark_since) + self.hold_s
        if now >= until:
            raise TransferError(f"{self.name}: no model serves at the moment; try again")
        return min(until, self._hopeless_at)

    async def _ask(self, seat: Seat, lane: Pair, asked: Callable[[Held], Asked]) -> Answered:
        """The seat's answer; or, where that is bad, the fall-back's."""
        answer = await seat.run(lane, *asked(seat.held), run_deadline_s(seat.held.config))
        failure = fault_of(seat, answer)
        if failure is None:
            self._faults = 0 if seat is self.serving else self._faults
            return answer_anyway(seat, answer)
        spare = self.fallback if seat is self.serving else None
        if failure.kind is Kind.STRUCTURE:
            return answer_anyway(seat, answer)
        if spare is None:
            self._fault(seat, failure)
            return answer_anyway(seat, answer)
        try:
            orders = asked(spare.held)
        except InputError:  # it takes other requests than its successor
            return answer_anyway(seat, answer)
        other = await spare.run(lane, *orders, run_deadline_s(spare.held.config))
        if fault_of(spare, other) is None and seat is self.serving:
            self.tally.errors += failure.kind is Kind.BACKEND
            self.tally.not_finite += failure.kind is Kind.PARITY
            self._fault(seat, failure)
        return answer_anyway(spare, other)

    def _fault(self, seat: Seat, failure: Failure) -> None:
        if seat is self.serving:
            self._faults += 1
            if self._faults >= FAULTS:
                self._blame(failure)

    def _blame(self, failure: Failure) -> None:
        """Falls back; or tells, once, that there is nothing to fall back to."""
        assert self.serving is not None
        place, blamed = self.serving.place, self.tally.blamed
        if self.fallback is not None:
            self._note(place, failure, self._fall_back(self.fallback))
        elif failure.kind not in blamed:
            blamed.add(failure.kind)
            self._note(place, failure, SERVES_ON)

    def _count_one(
        self, tally: Tally, seat: Seat, times: Times, ran: SeatRan | None, *, is_probe: bool = False
    ) -> None:
        if is_probe:
            tally.probe(failed=ran is None or not ran.finite)
            return
        tally.request(times[0], times[2], ran)
        self.statistics.setdefault(seat.place.ref.name, Statistics()).request(*times, ran)
        if tally is self.tally and self.serving is not None and tally.requests % PACE == 0:
            failure = judge_pace(tally.newest_runs(PACE), self.serving.held.config)
            if failure is not None:
                self._blame(failure)

    # --- the standing order ----------------------------------------------------------------------------------------

    def _lost(self, seat: Seat, failure: Failure) -> None:
        """A seat ended by itself."""
        self._remove(seat)
        if seat is self.serving:
            self._note(seat.place, failure, self._go_on_without(seat))
        elif seat is self.fallback:
            self.fallback = None
            self._note(seat.place, failure, "no fall-back left")

    def _go_on_without(self, dead: Seat) -> str:
        if self.fallback is not None:
            return self._fall_back(self.fallback)
        self._step_down(dead)
        self._restarting = dead.place
        if not self._may_restart():
            return self._give_up()
        self._tasks.create_task(self._restart(dead.place, dead.load_deadline_s), name=f"restart {dead.place}")
        return "restarting"

    def _fall_back(self, fallback: Seat) -> str:
        self.fallback = None
        self.tally = Tally()
        self._serve(fallback)
        return f"fell back to {fallback.place}"

    async def _restart(self, place: Place, deadline_s: float) -> None:
        """Brings the serving seat back, unless the agent decides otherwise meanwhile."""
        while self._restarting == place:
            self._restarts.append(time.monotonic())
            try:
                seat = await self.load(place, deadline_s)
                await seat.ask(messages.SeatProve(), deadline_s)
            except BackendError as error:
                await self._end(place)
                if self._restarting == place:
                    action = "restarting" if self._may_restart() else self._give_up()
                    self._note(place, Failure.of(error), action)
                continue
            if self._restarting == place and self._seats.get(place) is seat:
                self._serve(seat)
                self._changed()

    def _may_restart(self) -> bool:
        full = len(self._restarts) == RESTARTS
        return not full or time.monotonic() - self._restarts[0] > RESTARTS_WITHIN_S

    def _give_up(self) -> str:
        self._restarting, self._hopeless_at = None, time.monotonic() + self.hold_s
        return f"gave up after {RESTARTS} restarts within {RESTARTS_WITHIN_S:g} s"

    # --- what all of it rests on -----------------------------------------------------------------------------------

    async def _start(self, place: Place, deadline_s: float) -> Seat:
        held = self._holdings.held.get(place.ref)
        if held is None:
            raise BackendError(f"{place.ref} is not held here: offer and seal it first")
        seat = Seat(place, held, self._lost)
        self._seats[place] = seat
        self._changed()
        try:
            await seat.start(self._spare)
            self._tasks.create_task(seat.listen(), name=f"seat {place}")
            self._tasks.create_task(seat.guard(), name=f"guard {place}")
            await seat.load(deadline_s)
        except Exception:  # whatever it is, no seat stays that is loading for ever
            held.drop_engine(place.candidate)
            await seat.end()
            self._remove(seat)
            raise
        if self._seats.get(place) is not seat:
            await seat.end()
            raise BackendError(f"{place}: unloaded while it was loading")
        self._changed()
        return seat

    async def _end(self, place: Place) -> None:
        seat = self._seats.get(place)
        if seat is not None:
            self._step_down(seat)
            await seat.end()
            self._remove(seat)

    def _remove(self, seat: Seat) -> None:
        if self._seats.get(seat.place) is seat:
            del self._seats[seat.place]
        self._changed()

    def _loaded(self, place: Place) -> Seat:
        seat = self._seats.get(place)
        if seat is None or seat.ready is None or seat.state == "draining":
            raise BackendError(f"{place} is not loaded in slot {self.name}: load it first")
        return seat

    def _serve(self, seat: Seat) -> None:
        self._restarting = None
        self._faults = 0
        self._since = time.monotonic()
        if self.serving is not None and self.serving is not seat:
            self.serving.bells.drop_all()
        self.serving = seat
        self.statistics.setdefault(seat.place.ref.name, Statistics())
        seat.has_served = True
        self._queue.call_all()
        seat.rank(Priority.NORMAL)
        self._holdings.served(seat.place.ref)

    def _step_down(self, seat: Seat) -> None:
        if self.fallback is seat:
            self.fallback = None
        if self.serving is seat:
            self.serving, self._dark_since = None, time.monotonic()
            seat.bells.drop_all()
            self._queue.call_all()

    def _note(self, place: Place, failure: Failure, action: str) -> None:
        incident = Incident(number=next(self._count), at=time.monotonic(), place=place, failure=failure, action=action)
        self._incidents.append(incident)
        log.warning("slot=%s release=%s step=serve outcome=%s reason=%s", self.name, place, action, failure.reason)
        self._changed()

    # --- facts -----------------------------------------------------------------------------------------------------

    def needed(self) -> set[Ref]:
        """The releases that seats or the standing order need."""
        places = [*self._seats]
        if self.order is not None:
            places += [one for one in (self.order.place, self.order.fallback) if one is not None]
        return {place.ref for place in places}

    def facts(self) -> SlotFacts:
        """What the agent is told."""
        return SlotFacts(
            serving=self.serving.place if self.serving is not None else None,
            serving_since=self._since if self.serving is not None else 0.0,
            fallback=self.fallback.place if self.fallback is not None else None,
            seats=tuple(seat.facts(self._state(seat)) for seat in self._seats.values()),
            counters=self.tally.counters(time.monotonic()),
            incidents=tuple(self._incidents),
        )

    def _state(self, seat: Seat) -> str:
        if seat is self.serving:
            return "serving"
        return "warm" if seat is self.fallback else seat.state
