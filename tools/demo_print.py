"""How the demo speaks: numbered steps with their time, commands, what they say, and what the device says meanwhile.

On a terminal with colours; plain text anywhere else.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.text import Text

INDENT = "   "
NARROW, WIDE = 100, 150  # columns that the tables of our commands are asked to fit into


class Printer:
    """One story on one console."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.began = time.monotonic()
        self.number = 0
        self.doing = ""
        width = self.console.width - 2 * len(INDENT) if self.console.is_terminal else WIDE
        self.environment = {"COLUMNS": str(min(WIDE, max(NARROW, width)))}
        if self.console.is_terminal:
            self.environment["FORCE_COLOR"] = "1"

    def title(self, words: str, names: Mapping[str, str]) -> None:
        """What this is, and the names that commands are shortened by."""
        self.console.print(Text(words, "bold"))
        for value, name in names.items():
            if value:
                self.console.print(Text(f"{INDENT}{name.removeprefix('$')}={value}", "dim"))

    @contextmanager
    def step(self, name: str, why: str) -> Iterator[None]:
        """One step: its number, what it is about, and how long it took."""
        self.number += 1
        self.doing = f"step {self.number}, {name}"
        begin = time.monotonic()
        self.console.print(Text.assemble("\n", (f"{self.number}  {name}", "bold cyan"), (f"  {why}", "dim")))
        yield
        took, so_far = time.monotonic() - begin, time.monotonic() - self.began
        self.console.print(Text(f"{INDENT}{took:.1f} s, {so_far:.0f} s since the start", "dim"))
        self.doing = ""

    def command(self, words: str) -> None:
        """A command that is run now."""
        self.console.print(Text(f"{INDENT}$ {words}", "bold"))

    def output(self, said: str) -> None:
        """What a command said."""
        for line in said.rstrip().splitlines():
            self.console.print(Text.assemble(INDENT, "  ", Text.from_ansi(line.rstrip())))

    def event(self, device: str, kind: str, words: str) -> None:
        """What a device told."""
        style = "red" if kind in {"rejected", "incident", "refused"} else "green" if kind == "confirmed" else ""
        self.console.print(Text.assemble(INDENT, "  ", (f"{device} │ ", "dim"), (f"{kind:<10} ", style), words))

    def say(self, words: str) -> None:
        """An outcome."""
        self.console.print(Text(f"{INDENT}{words}", "green"))

    def waiting(self, what: str) -> AbstractContextManager[object]:
        """What is waited for, for as long as it is, on a terminal."""
        return self.console.status(Text(f"until {what}", "dim"))

    def trouble(self, words: str) -> None:
        """Where the story broke off."""
        where = f"{self.doing}: " if self.doing else ""
        self.console.print(Text(f"\n{where}{words}", "bold red"))
