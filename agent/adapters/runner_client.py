"""The agent's end of `models.sock`: orders with numbers, answers under the same number, facts unasked.

1. A runner that dies fails every order that waits, at once, with TransferError; nothing is retried here.
2. Answers may come in any order: a trial takes minutes, a look at the facts a millisecond.
3. The last facts are kept; whoever wants every change gives a callback.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from agent.adapters.channel import Channel, connect
from agent.adapters.packets import close_all
from agent.core.errors import InputError, TransferError
from agent.core.messages import Answer, Ask, Facts, Hello, Order, Refused, Reply, Welcome

GONE = "edge-runner is gone; it is asked again when it is back"


class RunnerClient:
    """A connection to the runner. Good for one life of it: make a new one when `lost` is set."""

    def __init__(self, path: Path, told: Callable[[Facts], None] | None = None) -> None:
        self._path = path
        self._told = told
        self._pending: dict[int, asyncio.Future[tuple[Reply, list[int]]]] = {}
        self._last = 0
        self._channel: Channel[Answer] | None = None
        self._listening: asyncio.Task[None] | None = None
        self.welcome: Welcome
        self.facts = Facts()
        self.lost = asyncio.Event()

    async def connect(self) -> None:
        """Greets the runner, which says in `welcome` what it is.

        Raises:
            TransferError: it is not there, or does not speak our protocol.
        """
        self._channel = connect(self._path, Answer)
        self._listening = asyncio.create_task(self._listen(self._channel), name="runner client")
        reply, _ = await self.ask(Hello())
        if isinstance(reply, Welcome):
            self.welcome = reply
            return
        await self.close()
        reason = reply.failure.reason if isinstance(reply, Refused) else f"it answered {type(reply).__name__}"
        raise TransferError(f"edge-runner does not take us: {reason}")

    async def ask(self, order: Order, descriptors: Sequence[int] = ()) -> tuple[Reply, list[int]]:
        """The answer to an order and its descriptors, which are the caller's to close.

        Raises:
            TransferError: the runner is gone or goes before it answers.
        """
        if self._channel is None or self.lost.is_set():
            raise TransferError(GONE)
        self._last += 1
        number, answer = self._last, asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            self._channel.send(Ask(id=number, order=order), descriptors)
            reply: tuple[Reply, list[int]] = await answer
        finally:
            del self._pending[number]
        return reply

    async def close(self) -> None:
        """Ends the connection; the runner goes on without us."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])

    async def _listen(self, channel: Channel[Answer]) -> None:
        why = GONE
        try:
            await channel.each(self._take)
        except InputError as error:
            why = f"edge-runner said what we do not understand: {error}"
        finally:
            self.lost.set()
            channel.close()
            for answer in self._pending.values():
                if not answer.done():
                    answer.set_exception(TransferError(why))

    def _take(self, answer: Answer, descriptors: list[int]) -> None:
        if isinstance(answer.reply, Facts):
            self.facts = answer.reply
            if answer.id == 0 and self._told is not None:
                self._told(answer.reply)
        waiting = self._pending.get(answer.id)
        if waiting is None or waiting.done():
            close_all(descriptors)
        else:
            waiting.set_result((answer.reply, descriptors))
