"""A seat: a child process with one loaded model. `python -m agent.runner.seat PARENT DESCRIPTOR VERSION` forks them.

1. It does one thing at a time. Orders are done as they were asked, and each but LaneOpen and SeatBell gets one answer.
   Between two orders one ring is answered (bells.py), the bells in turn: nobody waits for another's stream.
2. Inputs are read where the client's bytes were received: an array over shared memory, not a copy.
3. It dies with the runner, leaves no core dump, and answers whatever a library raises as a failure. What it
   cannot answer (a crash, a hang) the runner sees.
4. An engine that comes along is taken only if it computes the golden samples right; else the model is built anew. One
   that was built here is given away once, when it is proven.
5. It stands between walls (walls.py), and so does a probe: what works inside them is what counts.
6. A runner of another version, the last number aside, may mean something else: it is told so, and nothing is loaded.
7. Only this file may import the backends, and nobody imports this file: no other process loads their libraries.
"""

import ctypes
import logging
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from numpy.typing import NDArray

from agent import VERSION
from agent.adapters.arena import Arena
from agent.adapters.forks import forked
from agent.adapters.heap import keep_what_is_freed
from agent.adapters.memory_file import map_for_reading, read, reserve, write
from agent.adapters.packets import Packets, close_all
from agent.adapters.service import leave_no_dump
from agent.backends import check_model, open_session, probe
from agent.backends.golden import compare, is_finite, load_golden
from agent.backends.hardware import gpu_memory_mb, peak_memory_mb
from agent.backends.signature import check_tensors
from agent.backends.trial import Loaded, run_trial
from agent.core import messages
from agent.core.candidate import Backend, Failure
from agent.core.documents import from_json, from_yaml, to_json
from agent.core.errors import BackendError, InputError, Kind
from agent.core.messages import CONFIG, GOLDEN, METADATA, FromSeat, Slice, ToSeat, weights_in
from agent.core.release import Config, Metadata
from agent.runner import walls
from agent.runner.frame import frame_shape, normalise

REASON_CHARACTERS = 1000  # some libraries tell a model's whole graph; facts must fit into a packet
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15  # linux/prctl.h
RING_BYTES = 16  # more of a ring is not looked at, and less neither
LOOK_S = 0.0005 if len(os.sched_getaffinity(0)) > 1 else 0.0  # for the next ring; there it would keep its client away
PRESSED_S = 0.001  # from an answer to the next ring where one frame follows the other, with the time it takes to wake
RUNS = 2048  # rung for between two counts; four a millisecond
ENGINE_FACTOR = 2  # an engine is about as large as the weights; while it is exported it may be there twice

log = logging.getLogger("edge-runner")

Arrays = Mapping[str, NDArray[Any]]
Lane = tuple[Arena, Arena]  # of the request and of the answer


class Model(Loaded):
    """What the seat holds once it is loaded."""

    def run(self, lane: Lane, ask: messages.SeatRun) -> messages.SeatRan:
        """One request."""
        started, (request, answer) = time.monotonic(), lane
        inputs = {one.name: self._input(one, request.tensor(one)) for one in ask.inputs}
        names = ask.outputs or tuple(one.name for one in self.metadata.outputs)
        outputs = self._computed(names, inputs)
        busy_s = time.monotonic() - started
        finite = all_finite(outputs) or not all_finite(inputs)
        if not finite:  # a client may change its frame at any time: what counts against us is computed from a copy
            inputs = {name: one.copy() for name, one in inputs.items()}
            outputs = self._computed(names, inputs)
            finite = all_finite(outputs) or not all_finite(inputs)
        return messages.SeatRan(outputs=answer.put(outputs), busy_s=busy_s, finite=finite)

    def turn(self) -> messages.SeatRan:
        """How long one golden sample takes."""
        started = time.monotonic()
        self.session.run(None, self.golden[0].feeds)
        return messages.SeatRan(outputs=(), busy_s=time.monotonic() - started, finite=True)

    def _computed(self, names: Sequence[str], inputs: Arrays) -> Arrays:
        return dict(zip(names, self.session.run(names, inputs), strict=True))

    def _input(self, slice_: Slice, tensor: NDArray[Any]) -> NDArray[Any]:
        """The input where it lies; a copy only of frames, and where the client left it unaligned."""
        declared = next(one for one in self.metadata.inputs if one.name == slice_.name)
        if slice_.dtype == "uint8" and frame_shape(declared, self.config) is not None:
            return normalise(tensor, declared, self.config)
        return tensor if tensor.flags.aligned else tensor.copy()


def all_finite(arrays: Arrays) -> bool:
    """Whether there is no NaN and no Inf in any of them."""
    return all(map(is_finite, arrays.values()))


def load(ask: messages.SeatLoad, descriptors: Sequence[int], engine: bytes = b"") -> Model:
    """The model, loaded from memory files that need not stay open.

    Raises:
        EdgeError: the parts are not a release, or the backend refuses them.
    """
    started, gpu_before_mb = time.monotonic(), gpu_memory_mb()[1]
    parts = dict(zip((part.name for part in ask.parts), descriptors, strict=True))
    metadata = from_json(Metadata, read(parts[METADATA]), METADATA)
    config = ask.config or from_yaml(Config, read(parts[CONFIG]), CONFIG)
    weights = f"/proc/self/fd/{parts[weights_in(ask.place.candidate.precision, config)]}"
    check_model(weights, metadata.compatibility, ask.place.candidate.backend)
    session = open_session(weights, ask.place.candidate, config, engine)
    check_tensors(session, metadata)
    golden = load_golden(read(parts[GOLDEN]), metadata)
    return Model(ask.place.candidate, session, metadata, config, golden, time.monotonic() - started, gpu_before_mb)


def prove(model: Model) -> messages.Done:
    """Return when the loaded model computes what its golden samples say.

    Raises:
        BackendError: PARITY, when it does not; else it failed.
    """
    off = [one for one in compare(model.session, model.golden, model.config.gates) if not one.within]
    if off:
        raise BackendError(", ".join(map(str, off)), Kind.PARITY)
    return messages.Done()


class Seat:
    """The loop and what it keeps between messages."""

    def __init__(self, channel: Packets[ToSeat]) -> None:
        self._channel = channel
        self._lanes: dict[int, Lane] = {}
        self._bells: dict[int, tuple[socket.socket, messages.SeatRun]] = {}  # by lane; who was answered goes behind
        self._rung: deque[tuple[float, float]] = deque(maxlen=RUNS)
        self._answered, self._is_pressed = 0.0, False  # when the last ring was, and whether one follows the other
        self._awake = select.poll()
        self._awake.register(channel.sock, select.POLLIN)
        self._model: Model | None = None
        self._export_mb = 0.0  # room to export the engine in; 0 where there is none to give away

    def serve(self) -> None:
        """Answers until the runner closes the channel."""
        is_asked = True
        while is_asked:
            ready = self._ready() if self._bells else {self._channel.sock.fileno()}
            if self._channel.sock.fileno() in ready:
                is_asked = self._obey()
            lane = next((lane for lane, (bell, _) in self._bells.items() if bell.fileno() in ready), None)
            if lane is not None:
                self._answer_ring(lane)

    def _ready(self) -> set[int]:
        """Who has something for us. Where one frame follows the other, to look for the next costs less than to wake."""
        until = self._answered + (LOOK_S if self._is_pressed else 0.0)
        while not (ready := self._awake.poll(0)) and time.monotonic() < until:
            pass
        ready = ready or self._awake.poll()
        self._is_pressed = time.monotonic() - self._answered < PRESSED_S
        return {number for number, _ in ready}

    def _obey(self) -> bool:
        """One order; whether another may come."""
        received = self._channel.read()
        if received is None:
            return False
        message, descriptors = received
        match message:
            case messages.LaneOpen():
                self._open(message.lane, descriptors)
                return True
            case messages.SeatBell():
                self._hang(message.run, descriptors)
                return True
        answer = self._answer(message, descriptors)
        close_all(descriptors)
        engine = self._engine(answer)
        self._channel.send(answer, engine)
        close_all(engine)
        return True

    def _answer_ring(self, lane: int) -> None:
        """A ring's answer, where it is good; else the bell ends."""
        bell, run = self._bells[lane]
        try:
            if bell.recv(RING_BYTES, socket.MSG_DONTWAIT):
                assert self._model is not None
                began, ran = time.monotonic(), self._model.run(self._lanes[lane], run)
                if ran.finite:
                    bell.send(messages.encode(ran), socket.MSG_DONTWAIT)
                    self._rung.append((began, ran.busy_s))
                    self._bells[lane] = self._bells.pop(lane)
                    self._answered = time.monotonic()
                    return
        except Exception as error:  # noqa: BLE001 - a client that left, or the boundary to libraries
            log.debug("lane=%d step=ring outcome=ended reason=%s", lane, error)
        self._take_down(lane)

    def _hang(self, run: messages.SeatRun, descriptors: Sequence[int]) -> None:
        self._take_down(run.lane)
        for number in descriptors:
            self._bells[run.lane] = socket.socket(fileno=number), run
            self._awake.register(number, select.POLLIN)

    def _take_down(self, lane: int) -> None:
        if lane in self._bells:
            bell, _ = self._bells.pop(lane)
            self._awake.unregister(bell)
            with suppress(OSError):
                bell.shutdown(socket.SHUT_RDWR)  # the runner holds it, too
            bell.close()

    def _open(self, number: int, descriptors: Sequence[int]) -> None:
        self._take_down(number)
        for arena in self._lanes.pop(number, ()):
            arena.close()
        if descriptors:
            request, answer = descriptors
            self._lanes[number] = Arena(request, map_for_reading), Arena(answer)

    def _answer(self, message: ToSeat, descriptors: Sequence[int]) -> FromSeat:
        try:
            return self._act(message, descriptors)
        except (BackendError, InputError) as error:
            kind, reason = error.kind, str(error)
        except Exception as error:  # noqa: BLE001 - the boundary to libraries that raise anything
            kind, reason = Kind.BACKEND, f"{type(error).__name__}: {error}"
        return messages.Refused(failure=Failure(kind=kind, reason=reason[:REASON_CHARACTERS]))

    def _act(self, message: ToSeat, descriptors: Sequence[int]) -> FromSeat:
        if isinstance(message, messages.SeatLoad):
            self._model = self._load(message, descriptors)
            keep_what_is_freed()
            return messages.Loaded(pid=os.getpid(), load_s=self._model.load_s)
        if self._model is None:
            raise BackendError("this seat holds no model: load one first")
        if isinstance(message, messages.SeatRun):
            return self._model.run(self._lanes[message.lane], message)
        if isinstance(message, messages.SeatCount):
            rung = [self._rung.popleft() for _ in range(len(self._rung))]
            return messages.SeatCounted(runs=tuple(rung))
        if isinstance(message, messages.SeatTrial):
            return messages.Tried(evidence=run_trial(self._model, message.key, message.runs, message.rests))
        if isinstance(message, messages.SeatTurn):
            return self._model.turn()
        assert isinstance(message, messages.SeatProve)
        return prove(self._model)

    def _load(self, ask: messages.SeatLoad, descriptors: Sequence[int]) -> Model:
        parts, engines = descriptors[: len(ask.parts)], descriptors[len(ask.parts) :]
        try:
            for engine in engines:
                model = load(ask, parts, read(engine))
                prove(model)
                return model
        except Exception as error:  # noqa: BLE001 - the boundary to libraries that raise anything
            reason = str(error)[:REASON_CHARACTERS]
            log.warning("release=%s step=load outcome=built anew reason=its engine: %s", ask.place, reason)
        weights = max(part.size for part in ask.parts if part.name.endswith(".onnx"))
        self._export_mb = ENGINE_FACTOR * weights / 1e6
        return load(ask, parts)

    def _engine(self, answer: FromSeat) -> tuple[int, ...]:
        """A memory file with the engine that was built here, at its first proof; none where the gate leaves no room."""
        is_proof = answer.evidence.is_proof if isinstance(answer, messages.Tried) else isinstance(answer, messages.Done)
        if not (is_proof and self._model and self._export_mb):
            return ()
        room_mb = self._model.config.gates.max_memory_mb - peak_memory_mb()
        needed_mb, self._export_mb = self._export_mb, 0.0
        try:
            if needed_mb <= room_mb and (content := self._model.session.engine()) is not None:
                engine = reserve("engine", len(content))
                write(engine, content)
                return (engine,)
        except Exception as error:  # noqa: BLE001 - the boundary to libraries that raise anything
            log.warning("release=%s step=engine outcome=none reason=%s", self._model.metadata.name, error)
        return ()


def settle(parent: int, name: bytes) -> None:
    """Makes this process one that dies with its parent and leaves no dump."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_NAME, name)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the runner is gone")
    leave_no_dump()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the runner, which lets us finish


def refuse(channel: Packets[ToSeat], version: str) -> None:
    """Says no to a runner that was there before these files, whatever it asks: that is not even read."""
    if channel.sock.recv(1):
        reason = f"edge-runner is still {version}, and its files are {VERSION}: restart edge-runner"
        channel.send(messages.Refused(failure=Failure(kind=Kind.STALE, reason=reason)))


def main() -> None:
    """`seat PARENT DESCRIPTOR VERSION`; `--walls` and `--probe [NAME ...]` say as JSON what holds and what works."""
    if sys.argv[1] in {"--walls", "--probe"}:
        with os.fdopen(os.dup(1), "wb") as said:  # libraries print where they like, TensorRT warnings to stdout
            os.dup2(2, 1)
            told: Any = walls.draw()
            if sys.argv[1] == "--probe":
                told = probe([Backend(name) for name in sys.argv[2:]] or Backend)
            said.write(to_json(told))
        return
    parent, descriptor, version = sys.argv[1:]
    settle(int(parent), b"edge-seats")
    channel: Packets[ToSeat] = Packets(forked(socket.socket(fileno=int(descriptor))), ToSeat)
    settle(int(parent), b"edge-seat")
    walls.draw()
    if version.rpartition(".")[0] == VERSION.rpartition(".")[0]:
        Seat(channel).serve()
    else:
        refuse(channel, version)


if __name__ == "__main__":
    main()
