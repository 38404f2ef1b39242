"""The runner's end of `models.sock`: carries out the agent's orders and tells it the facts.

1. Only the agent's user is heard (SO_PEERCRED), and only after a Hello of a protocol that we speak.
2. Orders run side by side: a look at the facts never waits for a trial. Each gets one answer.
3. What goes wrong in one order is the answer to that order, and ends nothing else.
4. An agent that goes takes nothing along but what it has not written: its orders are finished, what serves goes on
   serving.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from itertools import count

from agent.adapters.channel import Channel, peer_uid
from agent.adapters.fork_server import ForkServer
from agent.adapters.packets import close_all
from agent.adapters.pulse import Pulse
from agent.adapters.seat_process import find_backends
from agent.core import messages
from agent.core.candidate import Failure, Found
from agent.core.errors import BackendError, InputError, Kind, TransferError
from agent.core.messages import PROTOCOL, Answer, Ask, Done, Facts, Order, Refused, Reply, SlotOrder, Welcome
from agent.runner.door import Door
from agent.runner.frames import Frames
from agent.runner.holdings import Holdings
from agent.runner.slots import Slot

SPOKEN = frozenset({PROTOCOL, max(1, PROTOCOL - 1)})

log = logging.getLogger("edge-runner")

Descriptors = tuple[int, ...]


class Runner:
    """The slots, what they are made of, and the agents that listen."""

    def __init__(self, tasks: asyncio.TaskGroup, stop: Callable[[], None]) -> None:
        self.slots: dict[str, Slot] = {}
        self.door = Door(self.slots, tasks)
        self.frames = Frames(self.door, tasks)
        self._tasks, self._stop = tasks, stop
        self._holdings, self._server = Holdings(), ForkServer()
        self._incidents = count(1)
        self._agents: set[Channel[Ask]] = set()
        self._found = tasks.create_task(self._look_around(), name="probe")
        self._is_telling = False
        self._pulse = Pulse()
        tasks.create_task(self._pulse.run(), name="pulse")

    async def _look_around(self) -> tuple[Found, ...]:
        found = await find_backends()
        await self._server.start()
        return found

    async def attend(self, sock: socket.socket, uid: int) -> None:
        """Serves one agent until it leaves."""
        channel: Channel[Ask] = Channel(sock, Ask)
        try:
            if peer_uid(channel.sock) != uid:
                log.warning("step=attend outcome=refused reason=a process of another user than %d", uid)
                return
            if await self._greet(channel):
                self._agents.add(channel)
                await self._obey(channel)
        except TransferError:
            pass  # it left while it was told something
        except InputError as error:
            log.warning("step=attend outcome=closed reason=%s", error)
        finally:
            self._agents.discard(channel)
            self.changed()
            channel.close()

    async def close(self) -> None:
        """Ends every seat."""
        self._server.close()
        await asyncio.gather(*(slot.close() for slot in self.slots.values()))

    def facts(self) -> Facts:
        """Everything the runner holds."""
        return Facts(
            slots={name: slot.facts() for name, slot in self.slots.items()},
            held=tuple(self._holdings.held),
            requests=self.door.requests,
            refused=self.door.refused,
            loop_lag_ms=self._pulse.lag_ms,
        )

    async def _greet(self, channel: Channel[Ask]) -> bool:
        received = await channel.receive()
        if received is None:
            return False
        ask, descriptors = received
        close_all(descriptors)
        if isinstance(ask.order, messages.Hello) and ask.order.protocol in SPOKEN:
            reply: Reply = Welcome(protocol=ask.order.protocol, pid=os.getpid(), found=await self._found)
        else:
            spoken = " or ".join(map(str, sorted(SPOKEN)))
            reply = refused(f"say Hello first, with protocol {spoken}: update the agent or the runner", Kind.STRUCTURE)
        channel.send(Answer(id=ask.id, reply=reply))
        if isinstance(reply, Welcome):
            channel.send(Answer(id=0, reply=self.facts()))
        return isinstance(reply, Welcome)

    async def _obey(self, channel: Channel[Ask]) -> None:
        while (received := await channel.receive()) is not None:
            ask, descriptors = received
            close_all(descriptors)
            name = f"{type(ask.order).__name__} {ask.id}"
            self._tasks.create_task(self._carry_out(channel, ask), name=name)

    async def _carry_out(self, channel: Channel[Ask], ask: Ask) -> None:
        descriptors: Descriptors = ()
        try:
            reply, descriptors = await self._act(ask.order)
        except BackendError as error:
            reply = refused(str(error), error.kind)
        except Exception as error:  # one order's trouble is its own: what serves goes on serving
            step = type(ask.order).__name__.lower()
            log.exception("step=%s outcome=refused", step)
            reason = f"the runner failed at this {step} ({type(error).__name__}: {error}): look at its log"
            reply = refused(reason, Kind.BACKEND)
        if channel in self._agents:
            try:
                channel.send(Answer(id=ask.id, reply=reply), descriptors)
            except (TransferError, InputError) as error:
                log.warning("step=answer outcome=lost reason=%s", error)
        if not isinstance(ask.order, messages.Look):  # a look changes nothing; told of, it would wake whoever looks
            self.changed()

    async def _act(self, order: Order) -> tuple[Reply, Descriptors]:
        match order:
            case messages.Offer():
                return Done(), await self._holdings.offer(order.ref, order.parts)
            case messages.Seal():
                await self._holdings.seal(order.ref)
                return Done(), ()
            case messages.Look():
                return self.facts(), ()
            case messages.Stop():
                self._stop()
                return Done(), ()
            case messages.Hello():
                return refused("Hello comes first, and once", Kind.STRUCTURE), ()
        return await self._act_on_slot(order)

    async def _act_on_slot(self, order: SlotOrder) -> tuple[Reply, Descriptors]:
        slot = self._slot(order.slot)
        match order:
            case messages.Load():
                seat = await slot.load(order.place, order.deadline_s)
                assert seat.ready is not None
                return seat.ready, ()
            case messages.Trial():
                return await slot.trial(order), slot.new_engine(order.place)
            case messages.Prove():
                await slot.prove(order.place, order.deadline_s)
                return Done(), slot.new_engine(order.place)
            case messages.Promote():
                slot.promote(order)
            case messages.Unload():
                await slot.unload(order.place)
                if slot.is_unused and self.slots.pop(order.slot, None) is not None:
                    await slot.close()
        return Done(), ()

    def _slot(self, name: str) -> Slot:
        if name not in self.slots:
            seats = self._holdings, self._server, self.slots
            self.slots[name] = Slot(name, *seats, self._tasks, self.changed, self._incidents)
        return self.slots[name]

    def changed(self) -> None:
        """Tells the facts, once for all changes of this moment."""
        if not self._is_telling:
            self._is_telling = True
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._is_telling = False
        freed = self._holdings.forget({ref for slot in self.slots.values() for ref in slot.needed()})
        if not self._agents:  # nobody will write what is offered, nor load it
            freed += self._holdings.withdraw()
        if freed:  # a gigabyte of pages takes the kernel a tenth of a second
            asyncio.get_running_loop().run_in_executor(None, close_all, freed)
        answer = Answer(id=0, reply=self.facts())
        for channel in tuple(self._agents):
            try:
                channel.send(answer)
            except TransferError:  # it left, or will learn all when it is back
                self._agents.discard(channel)
                channel.hang_up()


def refused(reason: str, kind: Kind) -> Refused:
    """The reply that says no."""
    return Refused(failure=Failure(kind=kind, reason=reason))
