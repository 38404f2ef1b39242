"""What devices say of themselves, as a table. For people's eyes: what is shown was said by a device, not proven."""

from typing import Any

import msgspec
from rich.table import Table
from rich.text import Text

STATE_BYTES = 64 * 1024  # a device's words are about 2 KB
CELL = 120  # characters


class Fleet:
    """The newest words of every device."""

    def __init__(self) -> None:
        self.states: dict[str, dict[str, Any]] = {}
        self.reported: dict[str, dict[str, Any]] = {}

    def hear(self, topic: str, payload: bytes) -> None:
        """Takes one message from `.../{device}/state` or `.../{device}/reported`; an empty one forgets the device."""
        device, kind = topic.split("/")[2:4]
        kept = self.states if kind == "state" else self.reported
        if payload:
            kept[device] = words(payload)
        else:
            kept.pop(device, None)

    def table(self) -> Table:
        """A row per device and slot, readable in 80 columns: what serves, and below it what is being done."""
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("device", "slot, on", "serves", "state"):
            table.add_column(name, overflow="fold", ratio=2 if name == "serves" else None)
        for device in sorted(self.states.keys() | self.reported.keys()):
            state = self.states.get(device, {}).get("state")
            said = self.reported.get(device, {})
            slots = said.get("slots")
            for slot in slots if isinstance(slots, list) and slots else [said]:
                table.add_row(cell(device), *cells(slot, state))
        return table


def words(payload: bytes) -> dict[str, Any]:
    """What a device said, or that it cannot be read."""
    if len(payload) > STATE_BYTES:
        return {"reason": f"sent {len(payload)} bytes"}
    try:
        said = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = None
    return said if isinstance(said, dict) else {"reason": "sent something that is not a JSON object"}


def cells(slot: Any, state: Any) -> tuple[Text, ...]:
    """The columns of one slot, of a device in a state."""
    said = slot if isinstance(slot, dict) else {"reason": "sent a slot that is none"}
    task, serves, wanted = (cell(said.get(key)) for key in ("slot", "release", "desired"))
    doing = cell(said.get("step"))
    progress = said.get("progress")
    if isinstance(progress, float) and 0 < progress < 1:
        doing.append(f" {progress:.0%}")
    if wanted != serves:
        doing.append(" for ").append_text(short(wanted, task))
    if said.get("reason"):
        doing.append(": ").append_text(cell(said["reason"]))
    doing.stylize("dim")
    held = "confirmed" if said.get("confirmed") is True else "not confirmed" if serves else "serves nothing"
    return (
        lines(task, cell(said.get("candidate"))),
        lines(short(serves, task), doing),
        lines(Text(held), cell(state)),
    )


def short(release: Text, task: Text) -> Text:
    """A release's name without its task, which is the slot."""
    return Text(release.plain.removeprefix(f"{task}_"))


def lines(above: Text, below: Text) -> Text:
    """Two texts, one below the other."""
    return Text("\n").join((above, below))


def cell(value: Any) -> Text:
    """A value as a short text that cannot steer the terminal."""
    text = "" if value is None else str(value)
    return Text("".join(letter if letter.isprintable() else "?" for letter in text[:CELL]))
