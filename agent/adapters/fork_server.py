"""Where seats come from: a process that has imported what every seat needs, and forks one for each that is asked for.

1. It never loads an inference library, a model or a thread: what a seat begins with is the interpreter, and no more.
2. The runner adopts each seat (prctl(2), PR_SET_CHILD_SUBREAPER): a seat outlives the server, and its end is told here.
3. One that is gone, or does not answer, is replaced; a seat is asked for twice at most.

A packet with a descriptor asks for a seat that has it. The answer is its process id; below 0, what fork(2) failed with.
"""

import asyncio
import ctypes
import errno
import os
import socket
from contextlib import suppress

from agent import VERSION
from agent.adapters.forks import NUMBER_BYTES
from agent.adapters.seat_process import spawn_seat

PATIENCE_S = 60.0  # a first start from a slow flash disk
SUBREAPER = 36  # linux/prctl.h


class Adopted:
    """A child that another process has forked; what is used of asyncio's `Process`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._over = asyncio.Event()
        self._end = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._end, self._reap)

    async def wait(self) -> int:
        """Its exit status, once it has one; below 0 the signal that killed it."""
        await self._over.wait()
        assert self.returncode is not None
        return self.returncode

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._end)
        os.close(self._end)
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._over.set()


class ForkServer:
    """The server as the runner sees it; what `start` has not started starts with the first fork."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._orders: socket.socket | None = None
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int:
        """The server's; 0 where there is none."""
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Has it ready soon. Where the system has no room for it, whoever forks hears of that."""
        with suppress(OSError):
            async with self._turn:
                await self._started()

    async def fork(self) -> tuple[Adopted, socket.socket]:
        """A new seat, and the socket to it.

        Raises:
            OSError: the system has no room for another process.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                async with self._turn:
                    pid = await self._asked(theirs) or await self._asked(theirs)
                if not pid:
                    raise OSError(errno.EAGAIN, "what forks seats ends at once: look at edge-runner's log")  # noqa: TRY301
                return Adopted(pid), ours
            except BaseException:
                ours.close()
                raise

    def close(self) -> None:
        """Ends it, also one that hangs. Seats stay."""
        if self._orders is not None and self._process is not None:
            self._orders.close()
            self._orders = None
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _asked(self, seats_end: socket.socket) -> int:
        """The new seat's process id; 0 where the server is gone."""
        orders = await self._started()
        try:
            socket.send_fds(orders, [b"seat"], [seats_end.fileno()])
            async with asyncio.timeout(PATIENCE_S):
                said = await asyncio.get_running_loop().sock_recv(orders, NUMBER_BYTES)
            pid = int(said)
        except (OSError, ValueError):  # it has ended, or hangs
            self.close()
            return 0
        except BaseException:  # nobody takes the answer: it would be the next one's
            self.close()
            raise
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid

    async def _started(self) -> socket.socket:
        if self._orders is None:
            ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
            orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                number = theirs.fileno()
                try:
                    self._process = await spawn_seat(str(os.getpid()), str(number), VERSION, pass_fds=(number,))
                except BaseException:
                    orders.close()
                    raise
            orders.setblocking(False)  # noqa: FBT003  its only parameter
            self._orders = orders
        return self._orders
