"""A seat as the runner sees it: a child process, the orders it has not answered yet, and its end.

1. A seat answers in the order it was asked. The first unanswered order has a deadline; a seat that misses it is
   killed, since a model that hangs never comes back.
2. A dead seat is known by the end of its channel. First its keeper hears of it (and finds another seat), then
   every order that it had not answered fails, so that whoever asks again meets the new seat.
3. Seats are forked from a process without a model (fork_server.py). Where it can be undone, a candidate begins in the
   time that nobody else wants; after IDLE_S of its load, or once it is loaded, it has a small share of any machine; and
   its full one when it serves.
4. Idle time is not all: who wakes may find both cores taken, one of them by a candidate. A gentle one is stopped while
   it loads, for RESTS times as long as it runs, until AWAY_S have passed: clients are served meanwhile.
"""

import asyncio
import os
import re
import resource
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from agent.adapters.channel import Channel
from agent.adapters.fork_server import Adopted, ForkServer
from agent.adapters.seat_process import LAST_WORDS_S, how_it_ended
from agent.core import messages
from agent.core.candidate import Failure
from agent.core.errors import BackendError, InputError, Kind, TransferError
from agent.core.messages import FromSeat, Loaded, Place, Refused, SeatFacts, SeatLoad, SeatRan, SeatRun, ToSeat
from agent.runner.bells import Bells
from agent.runner.holdings import Held
from agent.runner.lanes import Pair

FAREWELL_S = 2.0  # between the end of the channel and a kill: an idle seat leaves in milliseconds
GUARD_S, SERVING_GUARD_S = 0.25, 2.0  # between two looks at the memory of a candidate, and of a seat that served
SERVING_ROOM = 2  # times the gate: clients may send larger batches than the golden samples are
IDLE_S = 0.5  # a machine without idle time delays a load by so much; the library and small models are there sooner
AWAY_S = 5.0  # and a gentle one by so much
RESTS, WORK_S = 3, 0.002  # a quarter of one core leaves eight cameras their p99 (0107)
PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20
NICE_LIMIT = 20  # an RLIMIT_NICE of 20 allows nice 0 (getrlimit(2))
SYS_NICE = 1 << 23  # linux/capability.h: a container's root may lack it

A = TypeVar("A", bound=FromSeat)


class Priority(Enum):
    """Scheduling policy and nice value of a seat's threads, and its oom_score_adj: a candidate is the first to go."""

    IDLE = (os.SCHED_IDLE, 0, 500)  # while it loads: whoever serves takes the core from it at once
    LOW = (os.SCHED_OTHER, 10, 500)  # while it is measured, which says nothing of a process that may not run
    NORMAL = (os.SCHED_OTHER, 0, 0)


class SeatEndedError(BackendError):
    """The seat ended before it answered."""

    def __init__(self, failure: Failure, *, was_inside: bool) -> None:
        super().__init__(failure.reason, failure.kind)
        self.was_inside = was_inside  # the seat was at this very order, not at one before it


@dataclass(slots=True)
class Waiting:
    """An order without an answer yet."""

    kind: type[Any]  # of its answer, where that is no refusal
    answer: "asyncio.Future[Any]"
    deadline_s: float


class Seat:
    """One child process. `lost` is called once, when it ends without being told to."""

    def __init__(self, place: Place, held: Held, lost: Callable[["Seat", Failure], None], *, gently: bool) -> None:
        self.place = place
        self.held = held
        self.state = "loading"
        self.has_built = False  # an engine, which `held` holds now and nobody was told of
        self.has_served = False  # clients' requests may be inside
        self.inside = 0  # of them, as the slot counts
        self.load_deadline_s = 0.0
        self._lost, self._gently = lost, gently
        self._process: Adopted | None = None
        self._channel: Channel[FromSeat]  # from when there is a process
        self._waiting: deque[Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._lanes: dict[int, Pair] = {}
        self.bells = Bells()
        self._verdict: Failure | None = None
        self._told_to_end = False
        self.ended = asyncio.Event()
        self.ready: Loaded | None = None
        self.settled = asyncio.Event()  # loading is over, well or not

    @property
    def pid(self) -> int:
        """The child's; 0 before there is one."""
        return self._process.pid if self._process is not None else 0

    async def start(self, server: ForkServer) -> None:
        """Takes a child, which gives way to all others; `listen` must run from then on.

        Raises:
            BackendError: the system has no room for another process.
        """
        try:
            set_priority(server.pid, Priority.IDLE if self._gently else Priority.NORMAL)  # the fork inherits it
            process, sock = await server.fork()
            self._channel, self._process = Channel(sock, FromSeat), process
            set_priority(self.pid, Priority.IDLE)
        except OSError as error:
            self._told_to_end = True
            failure = Failure(kind=Kind.MEMORY, reason=f"{self.place}: no process for it ({error.strerror})")
            self._end(failure)
            raise SeatEndedError(failure, was_inside=False) from error

    async def load(self, deadline_s: float) -> Loaded:
        """What the seat says of its model.

        Raises:
            BackendError: it refuses the model, ends, or misses the deadline.
        """
        self.load_deadline_s = deadline_s
        giving_way = asyncio.create_task(self._give_way())
        try:
            ready = await self._ask_to_load(deadline_s)
            set_priority(self.pid, Priority.LOW)
            self.ready, self.state = ready, "loaded"
        finally:
            giving_way.cancel()
            self.settled.set()
        return ready

    async def _give_way(self) -> None:
        until = time.monotonic() + (AWAY_S if self._gently else IDLE_S)
        try:
            while self._gently and time.monotonic() < until:
                await asyncio.sleep(WORK_S)
                self._signal(signal.SIGSTOP)
                await asyncio.sleep(RESTS * WORK_S)
                self._signal(signal.SIGCONT)
            await asyncio.sleep(until - time.monotonic())
            set_priority(self.pid, Priority.LOW)
        finally:
            self._signal(signal.SIGCONT)

    async def _ask_to_load(self, deadline_s: float) -> Loaded:
        descriptors = (*self.held.descriptors, *self.held.engine(self.place.candidate))
        try:
            order = SeatLoad(place=self.place, parts=self.held.parts, config=self.held.config)
            return await self.ask(order, Loaded, deadline_s, descriptors)
        finally:  # before anything that the seat says of weights that are not what was announced
            if self.held.doubt is not None and (doubt := await self.held.doubt):
                raise BackendError(doubt)

    async def ask(self, message: ToSeat, kind: type[A], deadline_s: float, descriptors: tuple[int, ...] = ()) -> A:
        """The seat's answer.

        Raises:
            BackendError: it answers that it failed, ends, or misses the deadline.
        """
        answer = await self._send(message, kind, deadline_s, descriptors)
        if isinstance(answer, Refused):
            raise BackendError(answer.failure.reason, answer.failure.kind)
        return answer

    async def run(self, lane: Pair, run: SeatRun, deadline_s: float) -> SeatRan | Refused:
        """The answer to the request in a lane.

        Raises:
            SeatEndedError: the seat ended before it answered.
        """
        if self._lanes.get(lane.number) is not lane:
            self._tell(messages.LaneOpen(lane=lane.number), lane.descriptors)
            self._lanes[lane.number] = lane
        return await self._send(run, SeatRan, deadline_s)

    def bell(self, lane: Pair, run: SeatRun) -> socket.socket | None:
        """The client's end of a bell for a request in a lane that this seat has answered; None where there is none."""
        if self._lanes.get(lane.number) is not lane or (ends := self.bells.hang(lane.number)) is None:
            return None
        self._tell(messages.SeatBell(run=run), (ends[0].fileno(),))
        return ends[1]

    def forget(self, lane: Pair) -> None:
        """Lets the child give back a lane that ends, behind what it was asked in it."""
        self.bells.drop(lane.number)
        if self._lanes.pop(lane.number, None) is not None and not self.ended.is_set():
            self._tell(messages.LaneOpen(lane=lane.number), ())

    async def listen(self) -> None:
        """Takes answers until the seat ends."""
        try:
            await self._channel.each(self._take)
        except (InputError, IndexError) as error:  # a corrupt process may say anything
            self._verdict = Failure(kind=Kind.BACKEND, reason=f"{self.place}: the seat talks nonsense: {error}")
        finally:
            self._kill()
            self._channel.close()
            status = await self._last_words()
            self._end(self._verdict or Failure(kind=Kind.BACKEND, reason=f"{self.place}: the seat {status}"))

    async def leave(self) -> None:
        """Lets the seat finish what it has, and ends it."""
        self._told_to_end = True
        while self._waiting:
            await asyncio.wait([waiting.answer for waiting in self._waiting])
        await self.end()

    async def end(self) -> None:
        """Ends the seat now; what it has not answered fails."""
        self._told_to_end = True
        if self._process is None:
            return
        if self._waiting:
            self._kill()
        self._channel.hang_up()
        try:
            async with asyncio.timeout(FAREWELL_S):
                await self.ended.wait()
        except TimeoutError:
            self._kill()
            await self.ended.wait()

    async def guard(self) -> None:
        """Ends a seat that outgrows its gate before the device has no memory left."""
        gate_mb = self.held.config.gates.max_memory_mb
        while not self.ended.is_set():
            (taken_mb, own_mb), limit_mb, pause_s = self._memory_mb(), gate_mb, GUARD_S
            if self.has_served:
                taken_mb, limit_mb, pause_s = own_mb, SERVING_ROOM * gate_mb, SERVING_GUARD_S
            if taken_mb > limit_mb:
                reason = f"{self.place}: took {taken_mb:.0f} of {limit_mb:.0f} MB; its gate is {gate_mb:.0f} MB: killed"
                self._verdict = Failure(kind=Kind.MEMORY, reason=reason)
                self._kill()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self.ended.wait()

    def facts(self, state: str) -> SeatFacts:
        """What the agent is told of it."""
        return SeatFacts(place=self.place, state=state, pid=self.pid, rss_mb=self._memory_mb()[0])

    def _memory_mb(self) -> tuple[float, float]:
        """The child's resident memory, and what of it is in no file, as clients' lanes are; 0 without a child."""
        with suppress(ValueError, OSError):  # it has ended, or no descriptor is left to look with
            if self.pid:
                _, pages, shared, *_ = map(int, Path(f"/proc/{self.pid}/statm").read_bytes().split())
                return pages * PAGE_MB, (pages - shared) * PAGE_MB
        return 0.0, 0.0

    async def _send(
        self, message: ToSeat, kind: type[A], deadline_s: float, descriptors: tuple[int, ...] = ()
    ) -> A | Refused:
        if self.ended.is_set():
            reason = f"{self.place}: the seat has ended"
            raise SeatEndedError(Failure(kind=Kind.BACKEND, reason=reason), was_inside=False)
        self._tell(message, descriptors)
        waiting = Waiting(kind, asyncio.get_running_loop().create_future(), deadline_s)
        self._waiting.append(waiting)
        if len(self._waiting) == 1:
            self._watch()
        try:
            answer: A | Refused = await waiting.answer
        except asyncio.CancelledError:  # whoever asked has left, and the seat computes on: it is not free before
            if waiting in self._waiting:
                waiting.answer = asyncio.get_running_loop().create_future()
                with suppress(SeatEndedError):
                    await waiting.answer
            raise
        return answer

    def _tell(self, message: ToSeat, descriptors: tuple[int, ...]) -> None:
        try:
            self._channel.send(message, descriptors)
        except TransferError:
            self._kill()  # gone, or as good as: one order less than we count would shift all answers behind it

    def _take(self, message: FromSeat, given: list[int]) -> None:
        if given:
            self.held.keep_engine(self.place.candidate, given)
            self.has_built = True
        if not isinstance(message, self._waiting[0].kind | Refused):
            raise InputError(f"{type(message).__name__} where {self._waiting[0].kind.__name__} was to come")
        waiting = self._waiting.popleft()
        if not waiting.answer.done():
            waiting.answer.set_result(message)
        self._watch()

    def _watch(self) -> None:
        """The deadline is that of the first order; the others wait behind it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            deadline_s = self._waiting[0].deadline_s
            self._timer = asyncio.get_running_loop().call_later(deadline_s, self._hang, deadline_s)

    def _hang(self, deadline_s: float) -> None:
        self._verdict = Failure(kind=Kind.BACKEND, reason=f"{self.place}: no answer within {deadline_s:g} s: killed")
        self._kill()

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)
        if self._process is not None:  # it may hang in a driver, and not even die
            self._channel.hang_up()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    async def _last_words(self) -> str:
        assert self._process is not None
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                return how_it_ended(await self._process.wait())
        except TimeoutError:
            return "ended"

    def _end(self, failure: Failure) -> None:
        self.ended.set()
        self.settled.set()
        if not self._told_to_end:
            self._lost(self, failure)
        self.bells.drop_all()
        for place, waiting in enumerate(self._waiting):
            if not waiting.answer.done():
                waiting.answer.set_exception(SeatEndedError(failure, was_inside=place == 0))
        self._waiting.clear()
        self._watch()


def set_priority(pid: int, priority: Priority) -> None:
    """Sets the priority of each thread, since Linux has none for a process, where all of it can be undone."""
    (policy, nice, oom_score), process = priority.value, Path(f"/proc/{pid}")
    with suppress(OSError):  # it has ended
        for thread in (process / "task").iterdir() if may_undo() else ():
            with suppress(ProcessLookupError):
                os.sched_setscheduler(int(thread.name), policy, os.sched_param(0))
                os.setpriority(os.PRIO_PROCESS, int(thread.name), nice)
        (process / "oom_score_adj").write_text(str(oom_score))


def may_undo() -> bool:
    """Whether this process may give a thread back the priority that it took."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NICE)
    held = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    may_always = held is not None and bool(int(held[1], 16) & SYS_NICE)
    return may_always or soft == resource.RLIM_INFINITY or soft >= NICE_LIMIT
