"""`edge-runner`: the service that holds models and serves local clients.

1. It imports no inference library: seats do. It has no keys, no ledger and no network of its own.
2. Sockets come from systemd (`models`, and any other name for a door), or are made here. A door of packets
   (SOCK_SEQPACKET) is for our own client, one of streams for everybody's.
3. On SIGTERM it takes nothing more, answers what is inside, ends its seats and leaves.
"""

import argparse
import asyncio
import gc
import logging
import os
import pwd
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from agent.adapters.channel import frames_beside, grpc_address, listen, loopback
from agent.adapters.heap import keep_what_is_freed
from agent.adapters.service import leave_no_dump, listen_sockets, notify, watchdog_interval
from agent.core.errors import InputError
from agent.runner.orders import Runner

FINISH_S = 20.0  # what is inside is answered within the time that a hung seat is killed in, or not at all
BACKLOG = 64
ACCEPT_AGAIN_S = 0.1  # what is short now is given back in moments, or not at all

log = logging.getLogger("edge-runner")


def main() -> None:
    """The command."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    leave_no_dump()  # requests hold what cameras see
    keep_what_is_freed()
    try:
        asyncio.run(serve(arguments()))
    except InputError as error:
        sys.exit(f"edge-runner: {error}")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="edge-runner", description="Holds models and serves local clients.")
    parser.add_argument("--models", type=Path, metavar="SOCKET", help="where the agent hands models over")
    parser.add_argument("--door", type=Path, metavar="SOCKET", help="where clients ask")
    parser.add_argument("--tcp", metavar="HOST:PORT", help="a further door; loopback only")
    parser.add_argument(
        "--grpc",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="where clients ask by gRPC: HOST:PORT, loopback only, or unix:PATH; may be given twice",
    )
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--agent-uid", type=int, default=os.getuid(), metavar="UID", help="the agent's user")
    who.add_argument("--agent-user", type=user_id, dest="agent_uid", metavar="NAME", help="the same by name")
    return parser.parse_args(words)


def user_id(name: str) -> int:
    """The number of a user: a unit can name another user than its own, but not know its number."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"no user {name!r} on this machine; systemd-sysusers makes it") from error


async def serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or the agent's Stop."""
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    models, doors = sockets(options)
    async with asyncio.TaskGroup() as tasks:
        runner = Runner(tasks, stop.set)
        grpc = await grpc_door(runner, options.grpc)
        servers = [await open_door(runner, door) for door in doors if door.type == socket.SOCK_STREAM]
        for door in doors:
            if door.type == socket.SOCK_SEQPACKET:
                tasks.create_task(accept(door, runner.frames.attend, tasks), name="frames")
        tasks.create_task(accept(models, partial(runner.attend, uid=options.agent_uid), tasks), name="models")
        tasks.create_task(beat(), name="watchdog")
        gc.freeze()  # what was imported stays, and to look through it takes 20 ms of every client's time
        notify("READY=1")
        await stop.wait()
        notify("STOPPING=1")
        for server in servers:
            server.close()
        await asyncio.gather(
            runner.door.close(FINISH_S), runner.frames.close(FINISH_S), *(one.stop(FINISH_S) for one in grpc)
        )
        await runner.close()
        cancel_the_rest()
    clean_up(options)


def cancel_the_rest() -> None:
    """Ends what would wait for ever: those that listen to agents, and the watchdog's beat."""
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


def sockets(options: argparse.Namespace) -> tuple[socket.socket, list[socket.socket]]:
    """Where the agent is heard, and where clients are."""
    passed = listen_sockets()
    models = passed.pop("models", None)
    if models is None:
        if options.models is None:
            sys.exit("edge-runner: give --models, or a systemd socket of the name models")
        models = listen(options.models)
    doors = list(passed.values())
    if options.door is not None:
        doors.append(listen(options.door, socket.SOCK_STREAM, 0o660))  # for this user and group
        doors.append(listen(frames_beside(options.door), mode=0o660))
    if options.tcp is not None:
        doors.append(listen_tcp(options.tcp))
    return models, doors


async def grpc_door(runner: Runner, addresses: Sequence[str]) -> list[Any]:
    """The server for gRPC, where one is asked for."""
    if not addresses:
        return []
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # seats are forked elsewhere: its hooks only wait for its threads
    try:
        addresses = [grpc_address("--grpc", one) for one in addresses]
        for path in (one.removeprefix("unix:") for one in addresses if one.startswith("unix:")):
            listen(Path(path), socket.SOCK_STREAM).close()  # gRPC itself takes the place of whoever listens there
        from agent.runner.grpc_door import open_grpc  # noqa: PLC0415 - an extra, 20 MB that others need not load

        return [await open_grpc(runner.door, addresses)]
    except ImportError as error:
        sys.exit(f"--grpc: {error.name} is not installed; pip install 'edge-model-agent[grpc]'")
    except InputError as error:
        sys.exit(str(error))


def listen_tcp(address: str) -> socket.socket:
    """A listening socket on a loopback address: the door knows no users."""
    host, port = loopback("--tcp", address)
    family = socket.AF_INET6 if host == "[::1]" else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=BACKLOG)
    except OSError as error:
        sys.exit(
            f"--tcp {address}: {os.strerror(error.errno or 0)}; free the port, or set another runner.tcp in agent.yaml"
        )


async def open_door(runner: Runner, sock: socket.socket) -> asyncio.Server:
    """A server for clients on a listening socket, of any family.

    Python's `create_unix_server` would from 3.13 on remove the path of a socket that belongs to systemd.
    """
    return await asyncio.get_running_loop().create_server(runner.door.wire, sock=sock, backlog=BACKLOG)


async def accept(
    listening: socket.socket, attend: Callable[[socket.socket], Coroutine[Any, Any, None]], tasks: asyncio.TaskGroup
) -> None:
    """Attends to agents or to clients, each in a task of its own."""
    is_refused = False
    listening.settimeout(0)
    with listening:
        while True:
            try:
                sock, _ = await asyncio.get_running_loop().sock_accept(listening)
            except OSError as error:  # no descriptor is left, say: those that serve go on, and the agent waits
                if not is_refused:
                    log.warning("step=accept outcome=waiting reason=%s", error)
                is_refused = True
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            is_refused = False
            tasks.create_task(attend(sock), name="peer")


async def beat() -> None:
    """Tells systemd that the loop turns."""
    interval = watchdog_interval()
    while interval is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval)


def clean_up(options: argparse.Namespace) -> None:
    """Removes the sockets that were made here."""
    for path in (options.models, options.door, options.door and frames_beside(options.door)):
        if path is not None:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
