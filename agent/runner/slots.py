"""A slot: its seats, what the agent orders about them, and what to do without being told.

1. When the serving seat crashes or hangs, the fall-back serves. Without one it is started again from the sealed
   files, proven and promoted: RESTARTS times a minute at most, then the slot gives up and says so. From then on it
   is the agent's turn: requests wait for it for `hold_s` in all, not each for so long.
2. Only the agent ends seats that live.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from statistics import median

from msgspec.structs import replace

from agent.adapters.fork_server import ForkServer
from agent.core import messages
from agent.core.candidate import Failure, rest_s
from agent.core.errors import BackendError
from agent.core.messages import Place, Promote, SeatRan, SlotFacts
from agent.core.release import Ref
from agent.runner.holdings import Holdings
from agent.runner.lanes import Pair
from agent.runner.seats import RESTS, Seat
from agent.runner.serving import Serving, run_deadline_s
from agent.runner.tally import Tally

RESTARTS = 3
RESTARTS_WITHIN_S = 60.0
TURNS, TURNS_S = 20, 5.0  # of a candidate and of what serves; after so many seconds two have to do


class Slot(Serving):
    """One slot of the runner, with its seats."""

    def __init__(
        self,
        name: str,
        holdings: Holdings,
        server: ForkServer,
        peers: Mapping[str, "Slot"],
        tasks: asyncio.TaskGroup,
        changed: Callable[[], None],
        count: Iterator[int],
    ) -> None:
        super().__init__(name, tasks, changed, count)
        self._seats: dict[Place, Seat] = {}
        self._holdings, self._server, self._peers = holdings, server, peers
        self._restarts: deque[float] = deque(maxlen=RESTARTS)
        self._restarting: Place | None = None

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

    async def trial(self, order: messages.Trial) -> messages.Tried:
        """What the trial of a loaded seat measured; with rests, where clients ask meanwhile.

        Raises:
            BackendError: it is not loaded, or did not survive its trial.
        """
        seat, rests = self._loaded(order.place), RESTS if self._is_asked() else 0.0
        trial = messages.SeatTrial(key=order.key, runs=order.runs, rests=rests)
        tried = await seat.ask(trial, messages.Tried, order.deadline_s)
        if tried.evidence.is_proof:
            seat.state = "proven"
            with suppress(BackendError):  # whoever ended is told of elsewhere
                tried = replace(tried, beside=await self._beside(seat, rests, order.deadline_s))
        self._changed()
        return tried

    async def _beside(self, seat: Seat, rests: float, deadline_s: float) -> messages.Beside | None:
        """How fast a seat is against the serving one: by the medians of turns; beside clients by the quickest ones."""
        if (serving := self.serving) is None or serving is seat:
            return None
        taken: dict[Seat, list[float]] = {seat: [], serving: []}
        until = time.monotonic() + TURNS_S
        for turn in range(TURNS):
            for one, limit_s in ((seat, deadline_s), (serving, run_deadline_s(serving.held.config))):
                ran = await one.ask(messages.SeatTurn(), SeatRan, limit_s)
                await asyncio.sleep(rest_s(rests, ran.busy_s))
                taken[one].append(ran.busy_s / one.held.config.batch_size)
            if turn and time.monotonic() > until:
                break
        usual = min if rests else median  # a candidate gives way to clients: what was disturbed tells of them
        ratio = usual(taken[serving]) / usual(taken[seat])
        return messages.Beside(place=serving.place, ratio=ratio) if self.serving is serving else None

    async def prove(self, place: Place, deadline_s: float) -> None:
        """Return when a loaded seat computes its golden samples right.

        Raises:
            BackendError: it is not loaded, or does not.
        """
        seat = self._loaded(place)
        try:
            await seat.ask(messages.SeatProve(), messages.Done, deadline_s)
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
            self._drop_engine(seat)

    @property
    def is_unused(self) -> bool:
        """Whether nothing is here and nothing was ever to serve: a trial or bench is over."""
        return self.order is None and not self._seats

    async def close(self) -> None:
        """Ends every seat; nothing is asked any more."""
        self._restarting = None
        await asyncio.gather(*(seat.end() for seat in self._seats.values()))
        self.lanes.close()

    def forget(self, lane: Pair) -> None:
        """Lets every seat give back a lane that ends."""
        for seat in self._seats.values():
            seat.forget(lane)

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

    async def _restart(self, place: Place, deadline_s: float) -> None:
        """Brings the serving seat back, unless the agent decides otherwise meanwhile."""
        while self._restarting == place:
            self._restarts.append(time.monotonic())
            try:
                seat = await self.load(place, deadline_s)
                await seat.ask(messages.SeatProve(), messages.Done, deadline_s)
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
        is_awaited = self.order is not None and self.serving is None
        seat = Seat(place, held, self._lost, gently=self._is_asked() and not is_awaited)
        self._seats[place] = seat
        self._changed()
        try:
            await seat.start(self._server)
            self._tasks.create_task(seat.listen(), name=f"seat {place}")
            self._tasks.create_task(seat.guard(), name=f"guard {place}")
            await seat.load(deadline_s)
        except Exception:  # whatever it is, no seat stays that is loading for ever
            await seat.end()
            self._remove(seat)
            self._drop_engine(seat)
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

    def _drop_engine(self, seat: Seat) -> None:
        """Forgets a seat's engine, unless another slot restarts from it: a bench is one of what serves."""
        if not any(peer.holds(seat.place) for peer in self._peers.values() if peer is not self):
            seat.held.drop_engine(seat.place.candidate)

    def holds(self, place: Place) -> bool:
        """Whether a seat at `place` is here, or is being brought back."""
        return place in self._seats or place == self._restarting

    def _is_asked(self) -> bool:
        now = time.monotonic()
        return any(slot.tally.is_asked(now) for slot in self._peers.values())

    def _loaded(self, place: Place) -> Seat:
        seat = self._seats.get(place)
        if seat is None or seat.ready is None or seat.state == "draining":
            raise BackendError(f"{place} is not loaded in slot {self.name}: load it first")
        return seat

    def _serve(self, seat: Seat) -> None:
        self._restarting = None
        super()._serve(seat)
        self._holdings.served(seat.place.ref)

    # --- facts -----------------------------------------------------------------------------------------------------

    def needed(self) -> set[Ref]:
        """The releases that seats or the standing order need."""
        ordered = (self.order.place, self.order.fallback) if self.order is not None else ()
        return {place.ref for place in (*self._seats, *ordered) if place is not None}

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
