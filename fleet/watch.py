"""What devices say of themselves, as a table. For people's eyes: what is shown was said by a device, not proven."""

from typing import Any

import msgspec
from rich.table import Table
from rich.text import Text

COLUMNS = ("device", "state", "slot", "serving", "on", "step", "reason")


class Fleet:
    """The newest words of every device."""

    def __init__(self) -> None:
        self.states: dict[str, dict[str, Any]] = {}
        self.reported: dict[str, dict[str, Any]] = {}

    def hear(self, topic: str, payload: bytes) -> None:
        """Takes one message from `.../{device}/state` or `.../{device}/reported`; an empty one forgets the device."""
        device, kind = topic.split("/")[2:4]
        kept = self.states if kind == "state" else self.reported
        if not payload:
            kept.pop(device, None)
            return
        try:
            said = msgspec.json.decode(payload)
        except (msgspec.DecodeError, RecursionError):
            said = {"reason": "sent something that is not JSON"}
        kept[device] = said if isinstance(said, dict) else {"reason": str(said)}

    def table(self) -> Table:
        """A row per device and slot."""
        table = Table(*COLUMNS)
        for device in sorted(self.states.keys() | self.reported.keys()):
            state = word(self.states.get(device, {}).get("state"))
            slots = self.reported.get(device, {}).get("slots")
            rows = sorted(slots.items()) if isinstance(slots, dict) and slots else [("", {})]
            for slot, said in rows:
                table.add_row(Text(device), Text(state), Text(slot), *cells(said))
        return table


def cells(said: Any) -> list[Text]:
    """The columns of one slot."""
    if not isinstance(said, dict):
        return [Text("")] * 4
    return [Text(word(said.get(key))) for key in ("active", "backend", "step", "reason")]


def word(value: Any) -> str:
    """A value as a short text; a release by its name."""
    if isinstance(value, dict):
        value = value.get("name", value.get("state", ""))
    return "" if value is None else str(value)[:80]
