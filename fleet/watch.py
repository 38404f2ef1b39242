"""What devices say of themselves, as a table. For people's eyes: what is shown was said by a device, not proven."""

from typing import Any

import msgspec
from rich.table import Table
from rich.text import Text

COLUMNS = ("device", "state", "slot", "serving", "on", "confirmed", "wants", "step", "reason")
STATE_BYTES = 64 * 1024  # a device's words are about 2 KB
CELL = 80  # characters


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
        """A row per device and slot."""
        table = Table(*COLUMNS)
        for device in sorted(self.states.keys() | self.reported.keys()):
            state = self.states.get(device, {}).get("state")
            said = self.reported.get(device, {})
            slots = said.get("slots")
            for slot in slots if isinstance(slots, list) and slots else [said]:
                table.add_row(cell(device), cell(state), *cells(slot))
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


def cells(slot: Any) -> list[Text]:
    """The columns of one slot."""
    said = slot if isinstance(slot, dict) else {"reason": "sent a slot that is none"}
    progress = said.get("progress")
    step = (
        f"{said.get('step', '')} {progress:.0%}"
        if isinstance(progress, float) and 0 < progress < 1
        else said.get("step")
    )
    confirmed = "yes" if said.get("confirmed") is True else ""
    return [
        *(cell(said.get(key)) for key in ("slot", "release", "candidate")),
        cell(confirmed),
        cell(said.get("desired")),
        cell(step),
        cell(said.get("reason")),
    ]


def cell(value: Any) -> Text:
    """A value as a short text that cannot steer the terminal."""
    text = "" if value is None else str(value)
    return Text("".join(letter if letter.isprintable() else "?" for letter in text[:CELL]))
