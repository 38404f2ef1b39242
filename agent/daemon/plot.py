"""Draw what a bench measured as a PNG: the latency of each candidate on one logarithmic axis, fastest first.

A device need not be able to draw: Pillow is asked for when a picture is (extra `plot`). The figures are written anyway.
"""

import math
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from agent.core.candidate import Latency
from agent.core.errors import InputError
from agent.daemon.state import Measured

WIDTH, LEFT, RIGHT = 960, 230, 200  # pixels; names stand to the left of the axis, verdicts to the right
TOP, ROW, BOTTOM = 64, 44, 56
INK, DIM, GRID, PASSED, FAILED = "#202020", "#707070", "#e0e0e0", "#3f77aa", "#b4453a"
TICKS = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 2, 5)]  # ms


def draw(title: str, measured: Sequence[Measured], path: Path) -> None:
    """Write the picture.

    Raises:
        InputError: Pillow is not installed, or the file cannot be written.
    """
    try:
        image, canvas, fonts = (import_module(f"PIL.{name}") for name in ("Image", "ImageDraw", "ImageFont"))
    except ImportError as error:
        raise InputError(
            f"{path}: drawing needs Pillow: `pip install pillow`, or draw from the JSON beside it"
        ) from error
    rows = sorted(measured, key=lambda one: one.latency.p50 if one.latency is not None else math.inf)
    known = [one.latency for one in rows if one.latency is not None]
    picture = image.new("RGB", (WIDTH, TOP + ROW * len(rows) + BOTTOM), "white")
    pen = canvas.Draw(picture)
    pen.font = fonts.load_default(14)
    pen.text((20, 16), title, INK, font=fonts.load_default(18))
    axis = Axis(min((one.p50 for one in known), default=1.0), max((one.p99 for one in known), default=1.0))
    axis.draw(pen, picture.height - BOTTOM)
    for place, one in enumerate(rows):
        draw_row(pen, axis, one, TOP + ROW * place + ROW // 2)
    try:
        picture.save(path, "PNG")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name a folder that can be written") from error


class Axis:
    """Milliseconds on a logarithmic axis."""

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = 0.8 * low, 1.25 * high

    def at(self, ms: float) -> float:
        """The place of a latency, in pixels from the left."""
        share = math.log(ms / self._low) / math.log(self._high / self._low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def draw(self, pen: Any, bottom: int) -> None:
        """Lines and numbers."""
        for tick in (tick for tick in TICKS if self._low <= tick <= self._high):
            pen.line([(self.at(tick), TOP), (self.at(tick), bottom)], GRID)
            pen.text((self.at(tick), bottom + 6), f"{tick:g}", DIM, anchor="ma")
        pen.text(
            ((LEFT + WIDTH - RIGHT) / 2, bottom + 28), "latency, ms: p50, box to p95, line to p99", DIM, anchor="ma"
        )


def draw_row(pen: Any, axis: Axis, one: Measured, middle: int) -> None:
    """One candidate: its name, its latency, and its speed or why it is out."""
    colour = PASSED if one.failure is None else FAILED
    pen.text((LEFT - 14, middle), str(one.candidate), INK, anchor="rm")
    verdict = f"out: {one.failure.kind}" if one.failure is not None else ""
    if one.evidence is not None and one.latency is not None:
        draw_latency(pen, axis, one.latency, middle, colour)
        verdict = f"{one.evidence.fps:.0f} FPS {verdict}"
    pen.text((WIDTH - RIGHT + 14, middle), verdict, colour, anchor="lm")


def draw_latency(pen: Any, axis: Axis, latency: Latency, middle: int, colour: str) -> None:
    """A box from p50 to p95, and a line on to p99."""
    p50, p95, p99 = (axis.at(ms) for ms in (latency.p50, latency.p95, latency.p99))
    pen.line([(p50, middle), (p99, middle)], colour, 2)
    pen.line([(p99, middle - 6), (p99, middle + 6)], colour, 2)
    pen.rectangle([(p50, middle - 11), (max(p95, p50 + 1), middle + 11)], colour)
    pen.line([(p50, middle - 15), (p50, middle + 15)], INK, 3)
