"""`edge-agent`: run the daemon, and ask it or the machine how things are.

A user's mistake is one clear message and exit 2; nothing there, or not working, is exit 1; a broken config at `run`
is exit 78 (EX_CONFIG), which systemd does not cure by restarting.
"""

import argparse
import asyncio
import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID

from agent import VERSION
from agent.adapters import files, host
from agent.adapters.heap import share_one_arena
from agent.adapters.service import leave_no_dump
from agent.core.documents import from_json, from_tree
from agent.core.errors import EdgeError, InputError, TransferError, first
from agent.core.intent import Verb
from agent.core.slot import slots_of
from agent.daemon import plot, show
from agent.daemon.control import Question, ask
from agent.daemon.settings import Settings, read_settings
from agent.daemon.state import Measured, State

CONFIG = Path("/etc/edge-agent/agent.yaml")
EX_CONFIG = 78
ASK_S = 60.0
BENCH_S = 1800.0
WATCH_S = 1.0
FOLLOW_S = 0.25
IMPORT_S = 3600.0  # 30 GB from a slow stick


def main() -> None:
    """The command."""
    arguments = parser().parse_args()
    try:
        sys.exit(arguments.call(read_settings(arguments.config), arguments))
    except (EdgeError, BaseExceptionGroup) as error:
        cause = first(error) if isinstance(error, BaseExceptionGroup) else error
        if not isinstance(cause, EdgeError):
            raise
        print(f"edge-agent: {cause}", file=sys.stderr)
        mistake = EX_CONFIG if arguments.call is run else 2
        sys.exit(mistake if isinstance(error, InputError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


def parser() -> argparse.ArgumentParser:
    """Every command and its options."""
    top = argparse.ArgumentParser(prog="edge-agent", description="Keeps this device's models fresh, safe and serving.")
    top.add_argument("--version", action="version", version=VERSION)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    add(commands, "run", run, "run the daemon (systemd does)")
    one = add(commands, "status", status, "what serves, and what is being done")
    one.add_argument("--watch", action="store_true", help="keep showing, until Ctrl-C")
    one.add_argument("--json", action="store_true", help="print the state as JSON")
    one = add(commands, "why", why, "why it serves what it serves: evidence, rejections, events")
    one.add_argument("slot", nargs="?", help="one slot (default: all)")
    one = add(commands, "bench", bench, "measure every candidate of a slot now, beside what serves")
    one.add_argument("slot", nargs="?", help="one slot (default: all)")
    one.add_argument("--json", action="store_true", help="print the figures as JSON")
    one.add_argument(
        "--write", type=Path, metavar="FOLDER", help="keep SLOT.json there, and SLOT.png with the latencies"
    )
    add(commands, "sync", sync, "ask the store now, without waiting for the next poll")
    add(commands, "pull", pull, "ask the store now, and show how what is wanted comes, until it serves")
    one = add(commands, "import", bring, "take releases and deployments from a file of `edge-fleet export`")
    one.add_argument("file", type=Path, help="the file, where the agent's user can read it")
    one = add(commands, "retry", retry, "try again what failed for reasons that may have passed")
    one.add_argument("slot", nargs="?", help="one slot (default: all)")
    add(commands, "doctor", examine, "what this device has, lacks, and what to do about it")
    return top


def add(commands, name, call, text) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]  # noqa: ANN001  argparse names no type for it
    """One command; all of them take a config."""
    one: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    one.add_argument("--config", type=Path, default=CONFIG, help=f"agent.yaml (default: {CONFIG})")
    one.set_defaults(call=call)
    return one


def run(settings: Settings, _: argparse.Namespace) -> int:
    """The daemon, until SIGTERM or SIGINT."""
    level = os.environ.get("EDGE_LOG", "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        raise InputError(f"EDGE_LOG={level}: not a log level; write DEBUG, INFO, WARNING or ERROR")
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    for library in ("botocore", "boto3", "urllib3", "s3transfer", "tuf"):
        logging.getLogger(library).setLevel(logging.WARNING)
    leave_no_dump()  # keys are in this memory
    share_one_arena()
    asyncio.run(serve(settings))
    return 0


async def serve(settings: Settings) -> None:
    """One life of the agent."""
    from agent.daemon.agent import Agent  # noqa: PLC0415 - 0.6 s of imports that commands which only ask do without

    lock(settings.state)
    agent = Agent(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stopping.set)
    await agent.run()


def lock(folder: Path) -> None:
    """Let one agent alone use a state folder until this process ends; raises InputError for the second.

    The folder itself is locked: that works on a disk that can only be read, too.
    """
    import fcntl  # noqa: PLC0415

    with files.saying_why(folder):
        folder.mkdir(parents=True, exist_ok=True)
        number = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(f"{folder}: another agent runs with this state folder; stop it first") from error


def status(settings: Settings, arguments: argparse.Namespace) -> int:
    """The table, once or until Ctrl-C."""
    if arguments.json:
        print(json.dumps(json.loads(raw_state(settings)), indent=2))
        return 0
    if not arguments.watch:
        Console().print(status_now(settings))
        return 0
    with Live(status_now(settings), refresh_per_second=4, screen=False) as live:
        while True:
            time.sleep(WATCH_S)
            live.update(status_now(settings))


def status_now(settings: Settings) -> RenderableType:
    """The table of this moment."""
    return show.status(read_state(settings), datetime.now(UTC))


def why(settings: Settings, arguments: argparse.Namespace) -> int:
    """The reasons."""
    state = read_state(settings)
    Console().print(show.why(state, slots_of(arguments.slot, state.slots)))
    return 0


def bench(settings: Settings, arguments: argparse.Namespace) -> int:
    """Fresh figures."""
    if arguments.write is not None:
        with files.saying_why(arguments.write):
            arguments.write.mkdir(parents=True, exist_ok=True)
    found = asked(settings, Verb.BENCH, arguments.slot, BENCH_S)["measured"]
    where = {"device": settings.device, "hardware": host.hardware(), "agent": VERSION}
    if arguments.json:
        print(json.dumps({**where, "measured": found}, indent=2))
    for slot, tree in found.items():
        measured = from_tree(tuple[Measured, ...], tree, "bench")
        if not arguments.json:
            Console().print(show.bench(f"{settings.device}, {where['hardware']}", measured))
        if arguments.write is not None:
            content = json.dumps({**where, "measured": {slot: tree}}, indent=2)
            files.write_durably(arguments.write / f"{slot}.json", content.encode())
            plot.draw(f"{slot} on {settings.device}", measured, arguments.write / f"{slot}.png")
    return 0


def sync(settings: Settings, _: argparse.Namespace) -> int:
    """One poll."""
    asked(settings, Verb.SYNC, None, ASK_S)
    print("synced")
    return 0


def pull(settings: Settings, _: argparse.Namespace) -> int:
    """One poll, and all that follows from it; Ctrl-C ends the watching, not the work."""
    asked(settings, Verb.SYNC, None, ASK_S)
    began = datetime.now(UTC)
    state = follow(settings, lambda state: state.at > began and all(map(show.has_ended, state.slots.values())))
    if not state.slots:
        print("synced: no slot is deployed yet")
    for slot in state.slots.values():
        print(f"{slot.slot}: {f'{slot.serving} serves' if show.is_wanted(slot) else slot.reason}")
    return 0 if all(map(show.is_wanted, state.slots.values())) else 1


def bring(settings: Settings, arguments: argparse.Namespace) -> int:
    """A file in the store's place."""
    file = arguments.file.resolve()
    question = Question(verb=Verb.SYNC, file=str(file))
    ask(
        settings.run / "control.sock", question, IMPORT_S,
        lambda sock: follow(settings, lambda _: bool(select.select([sock], [], [], 0)[0])),
    )  # fmt: skip
    print(f"imported {file}: `edge-agent status` shows what comes of it")
    return 0


def follow(settings: Settings, has_ended: Callable[[State], bool]) -> State:
    """Progress of every slot, until it has ended.

    Raises:
        TransferError: no agent is at work.
    """
    console, columns = Console(stderr=True), (BarColumn(), DownloadColumn())
    with Progress("{task.description}", *columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}
        while True:
            state = read_state(settings)
            if (datetime.now(UTC) - state.at).total_seconds() > show.STALE_S:
                raise TransferError(f"{settings.run}: the agent does not run any more; look at its log")
            for slot in state.slots.values():
                if slot.slot not in tasks:
                    tasks[slot.slot] = bars.add_task("", total=None)
                text, total = f"{slot.slot}: {show.doing(slot)}", slot.fetch_size or None
                bars.update(tasks[slot.slot], description=text, completed=slot.fetched, total=total)
            if has_ended(state):
                return state
            time.sleep(FOLLOW_S)


def retry(settings: Settings, arguments: argparse.Namespace) -> int:
    """Chances again."""
    result = asked(settings, Verb.RETRY, arguments.slot, ASK_S)
    print("tried again: " + (", ".join(result["reopened"]) or "nothing was rejected for a reason that may pass"))
    return 0


def examine(settings: Settings, _: argparse.Namespace) -> int:
    """The findings; exit 1 when something needed is not so."""
    from agent.daemon import doctor  # noqa: PLC0415 - as above

    console, needed = Console(), True
    for finding in doctor.examine(settings):
        optional = finding.what.startswith("backend")
        mark = "[green]✓[/]" if finding.fine else "[dim]-[/]" if optional else "[red]✗[/]"
        console.print(show.finding(mark, finding.what, finding.says))
        needed = needed and (finding.fine or optional)
    return 0 if needed else 1


def asked(settings: Settings, verb: Verb, slot: str | None, timeout_s: float):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """The daemon's answer."""
    return ask(settings.run / "control.sock", Question(verb=verb, slot=slot), timeout_s)


def read_state(settings: Settings) -> State:
    """The state the daemon wrote last."""
    return from_json(State, raw_state(settings), str(settings.run / "state.json"))


def raw_state(settings: Settings) -> bytes:
    """As it was written."""
    path = settings.run / "state.json"
    content = files.read_or_none(path)
    if content is None:
        raise TransferError(f"{path}: nothing there; start the agent: `edge-agent run --config ...`")
    return content


if __name__ == "__main__":
    main()
