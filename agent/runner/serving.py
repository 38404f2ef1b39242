"""Whoever serves a slot: the requests of its clients, and what becomes of a seat that answers badly or slowly.

1. A swap is one assignment. A request inside the old seat finishes there; the next one meets the new seat.
2. A request that was under way in a seat that died is asked again, once. One that kills two seats is at fault
   itself. Requests that only waited behind it are asked again until `hold_s` is over.
3. A failed answer, or one with NaN or Inf, is asked of the fall-back too. When that answers well, the seat is
   to blame: FAULTS in a row, and the fall-back serves. When it does not, the request is.
4. A seat that has become slow (half of the newest requests beyond its gates) gives way to the fall-back too. Without
   one a seat that is slow or at fault serves on, and that is told.
5. Whatever is done without being told is an incident.
6. A run has a deadline, which the release's own gate for latency gives; past it the seat counts as hung. A client gets
   whatever there is: an answer with NaN as such, a refusal as an error that says who must act.
"""

import asyncio
import logging
import math
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from agent.core import messages
from agent.core.candidate import Failure
from agent.core.errors import BackendError, InputError, Kind, TransferError
from agent.core.messages import Incident, Place, Promote, Refused, SeatRan, SeatRun
from agent.core.release import Config
from agent.core.soak import judge_pace
from agent.runner.bells import COUNT_S
from agent.runner.holdings import Held
from agent.runner.lanes import Lanes, Pair
from agent.runner.queue import DEPTH, WHENEVER, LateError, Queue, Terms
from agent.runner.seats import Priority, Seat, SeatEndedError, set_priority
from agent.runner.tally import Statistics, Tally

FAULTS = 3  # in a row: a single one may be chance, more cost clients the time of two seats
PACE = 30  # requests between two looks at how long they took: a second of one camera
SERVES_ON = "serves on, for want of a fall-back"
RUN_S = (3.0, 30.0)  # bounds of a run's deadline: a busy device's hiccup, and what a camera may be kept waiting
RUN_FACTOR = 5  # a run is hung when it takes so many times the latency that its gate allows
INCIDENTS = 8  # kept; the agent sees each as it comes

Times = tuple[float, float, float]  # when a request arrived, was received, and was answered

log = logging.getLogger("edge-runner")


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer and the seat that gave it."""

    seat: Seat
    ran: SeatRan


class Serving:
    """The seat that serves, the one to fall back to, and the requests that they answer."""

    def __init__(self, name: str, tasks: asyncio.TaskGroup, changed: Callable[[], None], count: Iterator[int]) -> None:
        self.name = name
        self.lanes = Lanes()
        self.serving: Seat | None = None
        self.fallback: Seat | None = None
        self.order: Promote | None = None
        self.tally = Tally()
        self.rung = 0  # requests that no door has seen: at the seats' bells
        self.statistics: dict[str, Statistics] = {}  # by the names of releases that are loaded and have served
        self._tasks, self._changed, self._count = tasks, changed, count
        self._since = 0.0
        self._dark_since = 0.0
        self.queue = Queue()  # of the requests that no seat has yet
        self._faults = 0
        self._hopeless_at = math.inf  # monotonic; from then on, until the agent loads something, no request waits
        self._incidents: deque[Incident] = deque(maxlen=INCIDENTS)

    @property
    def hold_s(self) -> float:
        """How long a request may wait for a seat where none serves."""
        return self.order.hold_s if self.order is not None else 0.0

    async def infer(
        self, lane: Pair, asked: Callable[[Held], SeatRun], arrived: float, terms: Terms = WHENEVER
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
                answering, answer, tally = await self._ask(seat, lane, asked, tally)
                answered = answer_anyway(answering, answer)
            except SeatEndedError as error:
                deaths += error.was_inside
                if deaths > 1:
                    self._count_one(tally, seat, (arrived, received, time.monotonic()), None)
                    raise BackendError(f"two seats ended on this request; it is not tried again: {error}") from error
            except BackendError:
                self._count_one(tally, seat, (arrived, received, time.monotonic()), None)
                raise
            else:
                times = arrived, received, time.monotonic()
                self._count_one(tally, answered.seat, times, answered.ran)
                return answered
            finally:
                seat.inside -= 1
                self.queue.call()

    def bell(self, seat: Seat, lane: Pair, run: SeatRun) -> socket.socket | None:
        """The client's end of a bell for a request that `seat` has just answered; None where it may have none."""
        if seat is not self.serving:
            return None
        if not seat.bells.are_counted:
            seat.bells.are_counted = True
            self._tasks.create_task(self._count_at_times(seat), name=f"count {seat.place}")
        return seat.bell(lane, run)

    async def _count_at_times(self, seat: Seat) -> None:
        while seat.bells:
            await asyncio.sleep(COUNT_S)
            await self._count_rings(seat)
        seat.bells.are_counted = False

    async def _count_rings(self, seat: Seat) -> None:
        """Counts what a seat's bells were rung for."""
        with suppress(BackendError):  # it has ended, and its keeper knows
            counted = await seat.ask(messages.SeatCount(), messages.SeatCounted, run_deadline_s(seat.held.config))
            tally = self.tally if seat is self.serving else Tally()
            self.rung += len(counted.runs)
            self._faults = 0 if counted.runs else self._faults
            for began, busy_s in counted.runs:
                ran = SeatRan(outputs=(), busy_s=busy_s, finite=True)
                self._count_one(tally, seat, (began, began, began + busy_s), ran)

    async def _lease(self, terms: Terms, arrived: float) -> Seat:
        with self.queue.turn(terms.priority) as turn:
            while True:
                now, until = time.monotonic(), terms.deadline
                if now >= until:
                    if self.serving is not None:
                        self.statistics[self.serving.place.ref.name].late += 1
                    raise LateError(f"{self.name}: the request's timeout passed while it waited with others")
                if self.serving is None:
                    until = min(until, self._patience(now, arrived))
                elif self.serving.inside < DEPTH and self.queue.is_next(turn):
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

    async def _ask(
        self, seat: Seat, lane: Pair, asked: Callable[[Held], SeatRun], tally: Tally
    ) -> tuple[Seat, SeatRan | Refused, Tally]:
        """The seat's answer; or, where that is bad, the fall-back's. And where it is to be counted."""
        answer = await seat.run(lane, asked(seat.held), run_deadline_s(seat.held.config))
        failure = fault_of(seat, answer)
        if failure is None and seat is self.serving:
            self._faults = 0
        if failure is None or failure.kind is Kind.STRUCTURE:
            return seat, answer, tally
        spare = self.fallback if seat is self.serving else None
        if spare is None:
            self._fault(seat, failure)
            return seat, answer, tally
        try:
            run = asked(spare.held)
        except InputError:  # it takes other requests than its successor
            return seat, answer, tally
        other = await spare.run(lane, run, run_deadline_s(spare.held.config))
        if fault_of(spare, other) is not None:
            return spare, other, Tally()  # nobody's: it is the request
        if seat is self.serving:
            tally.errors += failure.kind is Kind.BACKEND
            tally.not_finite += failure.kind is Kind.PARITY
            self._fault(seat, failure)
        return spare, other, tally

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

    def _count_one(self, tally: Tally, seat: Seat, times: Times, ran: SeatRan | None) -> None:
        tally.request(times[0], times[2], ran)
        self.statistics.setdefault(seat.place.ref.name, Statistics()).request(*times, ran)
        if tally is self.tally and self.serving is not None and tally.requests % PACE == 0:
            failure = judge_pace(tally.newest_runs(PACE), self.serving.held.config)
            if failure is not None:
                self._blame(failure)

    def _fall_back(self, fallback: Seat) -> str:
        self.fallback = None
        self.tally = Tally()
        self._serve(fallback)
        return f"fell back to {fallback.place}"

    def _serve(self, seat: Seat) -> None:
        self._faults = 0
        self._since = time.monotonic()
        if self.serving is not None and self.serving is not seat:
            self.serving.bells.drop_all()
        self.serving = seat
        self.statistics.setdefault(seat.place.ref.name, Statistics())
        seat.has_served = True
        self.queue.call_all()
        set_priority(seat.pid, Priority.NORMAL)

    def _step_down(self, seat: Seat) -> None:
        if self.fallback is seat:
            self.fallback = None
        if self.serving is seat:
            self.serving, self._dark_since = None, time.monotonic()
            seat.bells.drop_all()
            self.queue.call_all()

    def _note(self, place: Place, failure: Failure, action: str) -> None:
        incident = Incident(number=next(self._count), at=time.monotonic(), place=place, failure=failure, action=action)
        self._incidents.append(incident)
        log.warning("slot=%s release=%s step=serve outcome=%s reason=%s", self.name, place, action, failure.reason)
        self._changed()


def run_deadline_s(config: Config) -> float:
    """How long one run may take before the seat counts as hung."""
    shortest, longest = RUN_S
    return min(max(RUN_FACTOR * config.gates.max_latency_p95_ms / 1000, shortest), longest)


def fault_of(seat: Seat, answer: SeatRan | Refused) -> Failure | None:
    """What is wrong with an answer, if anything."""
    if isinstance(answer, Refused):
        return answer.failure
    if answer.finite:
        return None
    return Failure(kind=Kind.PARITY, reason=f"{seat.place}: an answer held NaN or Inf for an input that held none")


def answer_anyway(seat: Seat, answer: SeatRan | Refused) -> Answered:
    """The answer, also one with NaN or Inf: the client is told so.

    Raises:
        InputError: the request does not fit the model after all.
        BackendError: there is none.
    """
    if isinstance(answer, SeatRan):
        return Answered(seat, answer)
    if answer.failure.kind is Kind.STRUCTURE:
        raise InputError(answer.failure.reason)
    raise BackendError(answer.failure.reason, answer.failure.kind)
