"""How a benchmark tells its figures: one JSON object on its last line, and a section of RESULTS.md."""

import json
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = (
    "# Results\n\nWritten by the programs in this folder, `make bench`, and by `make powercut`. "
    "A ratio's peer ran in the same minute.\n"
)
CPUINFO = Path("/proc/cpuinfo")
TREE_MODEL = Path("/sys/firmware/devicetree/base/model")

Figures = Mapping[str, float | int | str | None]


def machine() -> str:
    """Processor and cores that this process may use."""
    return f"{processor()}, {len(os.sched_getaffinity(0))} cores"


def processor() -> str:
    """The processor's name, or the board's where processors have none."""
    names = re.findall(r"^model name\s*:\s*(.+)$", CPUINFO.read_text(encoding="utf-8"), re.MULTILINE)
    if names:
        return str(names[0])
    return TREE_MODEL.read_text(encoding="utf-8").strip("\0") if TREE_MODEL.exists() else platform.machine()


def tell(figures: Figures) -> None:
    """Print the figures as one line of JSON."""
    print(json.dumps(dict(figures)))


def write(program: str, claims: Mapping[str, str], figures: Figures, note: str = "") -> None:
    """Replace the program's section of RESULTS.md.

    Args:
        program: its name.
        claims: what each figure means, in the order of the table.
        figures: the values.
        note: what else was there, for example a GPU.
    """
    write_table(program, ("what", "measured"), [(claims[key], figures[key]) for key in claims], note)


def write_table(program: str, columns: Sequence[str], rows: Iterable[Sequence[object]], note: str = "") -> None:
    """Replace the program's section of RESULTS.md by a table of so many columns; `note` says what else was there."""
    table = [f"| {' | '.join(str(cell) for cell in row)} |" for row in (columns, ["---"] * len(columns), *rows)]
    place = f"{machine()}{note and f', {note}'}, {datetime.now(UTC):%Y-%m-%d}"
    section = "\n".join([f"## {program}", "", place, "", *table]) + "\n"
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else HEAD
    before, *others = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    sections = {one.split("\n", 1)[0]: one.strip() + "\n" for one in others} | {f"## {program}": section}
    RESULTS.write_text("\n".join([before.strip() + "\n", *sections.values()]), encoding="utf-8")
