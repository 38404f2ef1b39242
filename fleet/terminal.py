"""What the command lines share: answers to errors, tables, progress bars, the clock.

A user's mistake is one message and exit 2; what cannot be had or believed now is one message and exit 1; what waits
for signatures of others is one message and exit 3. Anything else is our bug and shows its trace.
"""

from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table

from agent.core.errors import EdgeError, InputError
from fleet.pending import Unfinished
from fleet.publish import Tell

out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)


def run(parser: ArgumentParser, argv: list[str] | None) -> int:
    """Parses, acts, and returns the exit code."""
    options = parser.parse_args(argv)
    try:
        options.act(options)
    except Unfinished as answer:
        err.print(str(answer), markup=False, soft_wrap=True)
        return 3
    except InputError as error:
        err.print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    except EdgeError as error:
        err.print(f"error: {error}", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def say(text: str) -> None:
    """One line for the user."""
    out.print(text, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """One line for the user that is no result."""
    err.print(f"! {text}", markup=False, soft_wrap=True)


def now() -> datetime:
    """The time of the desk."""
    return datetime.now(UTC)


def table(*columns: Column | str) -> Table:
    """A table without lines, whose cells are never cut: a terminal of 80 characters is enough."""
    shown = (one if isinstance(one, Column) else Column(one, overflow="fold") for one in columns)
    return Table(*shown, box=None, pad_edge=False, header_style="dim")


@contextmanager
def bars() -> Iterator[Tell]:
    """A progress bar per step, on standard error where that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def tell(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(step, total=total)
            progress.update(tasks[step], completed=done, total=total)

        yield tell


@contextmanager
def count(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of things that are counted, on standard error where that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=err, disable=not err.is_terminal)
    task = progress.add_task(what, total=None)

    def tell(done: int, total: int) -> None:
        progress.start()  # with the first word: what is refused before that draws nothing
        progress.update(task, completed=done, total=total)

    try:
        yield tell
    finally:
        progress.stop()
