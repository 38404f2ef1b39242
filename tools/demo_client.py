"""A camera at the door, and what it sees: it asks at its own pace, through the package's own client.

1. A frame is sent as it was taken, uint8 and height x width x RGB: the signed config says how to normalise it.
2. A camera asks once: whatever the door does not answer is counted as failed.
"""

import statistics
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client import Client, ClientError

ANSWER_S = 30.0


@dataclass(frozen=True, slots=True)
class Tally:
    """What a camera saw over some time."""

    failures: tuple[str, ...]
    by_version: Mapping[str, int] = field(default_factory=dict)
    longest_gap_s: float = 0.0
    median_s: float = 0.0

    @property
    def requests(self) -> int:
        """Answered and failed."""
        return sum(self.by_version.values()) + len(self.failures)


class Camera(threading.Thread):
    """A client that asks `per_second` times a second until it is ended."""

    def __init__(self, path: Path, slot: str, frame: NDArray[np.uint8], per_second: float) -> None:
        super().__init__(name="camera", daemon=True)
        self._path, self._slot, self._frame = path, slot, frame
        self._interval = 1 / per_second
        self._ending = threading.Event()
        self._answers: list[tuple[float, float, str]] = []  # when it was asked, when it was answered, by which version
        self._failures: list[str] = []

    def run(self) -> None:
        """Ask."""
        due = time.monotonic()
        with Client(f"unix:{self._path}", timeout_s=ANSWER_S) as client:
            while not self._ending.wait(max(0.0, due - time.monotonic())):
                due = max(due, time.monotonic() - 1) + self._interval  # a pause is caught up with for a second at most
                self._ask(client)

    def end(self) -> None:
        """Return when the last answer has come."""
        self._ending.set()
        if self.is_alive():
            self.join(ANSWER_S)

    def mark(self) -> tuple[int, int]:
        """Here and now, for `tally`."""
        return len(self._answers), len(self._failures)

    def tally(self, since: tuple[int, int] = (0, 0)) -> Tally:
        """What came of everything that was asked after a mark."""
        answers, failures = self._answers[since[0] :], self._failures[since[1] :]
        ends = [end for _, end, _ in answers]
        return Tally(
            failures=tuple(failures),
            by_version=Counter(version for _, _, version in answers),
            longest_gap_s=max((after - before for before, after in pairwise(ends)), default=0.0),
            median_s=statistics.median(end - begin for begin, end, _ in answers) if answers else 0.0,
        )

    def _ask(self, client: Client) -> None:
        begin = time.monotonic()
        try:
            answer = client.infer(self._slot, self._frame)
        except ClientError as error:
            self._failures.append(f"{type(error).__name__}: {error}")
        else:
            self._answers.append((begin, time.monotonic(), answer.version))
