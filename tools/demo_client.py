"""How a camera application asks the door: the Open Inference Protocol with binary tensors, by the standard library.

1. A frame is sent as it was taken, uint8 and height x width x RGB: the signed config says how to normalise it.
2. A camera asks at its own pace and asks once: whatever the door does not answer is counted as failed.
"""

import http.client
import json
import math
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.core.errors import TransferError

INPUT = "input"
ANSWER_S = 30.0
JSON_LENGTH = "Inference-Header-Content-Length"


class Door(http.client.HTTPConnection):
    """One connection to the door's unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("door", timeout=ANSWER_S)
        self.path = path

    def connect(self) -> None:
        """As HTTPConnection."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(ANSWER_S)
        self.sock.connect(str(self.path))


@dataclass(frozen=True, slots=True)
class Answer:
    """Outputs by name, and the version of the release that made them."""

    version: str
    outputs: Mapping[str, NDArray[np.float32]]


def infer(door: Door, slot: str, frame: NDArray[np.uint8]) -> Answer:
    """What the slot's model says about one frame [height, width, 3].

    Raises:
        TransferError: the door refused; says why.
        OSError, HTTPException: the connection broke.
    """
    tensor = {
        "name": INPUT,
        "datatype": "UINT8",
        "shape": [1, *frame.shape],
        "parameters": {"binary_data_size": frame.nbytes},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    door.request("POST", f"/v2/models/{slot}/infer", head + frame.tobytes(), {JSON_LENGTH: str(len(head))})
    response = door.getresponse()
    body = response.read()
    if response.status != HTTPStatus.OK:
        raise TransferError(f"{response.status}: {body.decode(errors='replace')}")
    return read_answer(body, int(response.headers[JSON_LENGTH]))


def read_answer(body: bytes, at: int) -> Answer:
    """The answer whose binary tensors begin at `at`."""
    document = json.loads(body[:at])
    outputs = {}
    for tensor in document["outputs"]:
        count = math.prod(tensor["shape"])
        outputs[tensor["name"]] = np.frombuffer(body, np.float32, count, at).reshape(tensor["shape"])
        at += tensor["parameters"]["binary_data_size"]
    return Answer(document["model_version"], outputs)


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
        with closing(Door(self._path)) as door:
            while not self._ending.wait(max(0.0, due - time.monotonic())):
                due = max(due, time.monotonic() - 1) + self._interval  # a pause is caught up with for a second at most
                self._ask(door)

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

    def _ask(self, door: Door) -> None:
        begin = time.monotonic()
        try:
            answer = infer(door, self._slot, self._frame)
        except (OSError, http.client.HTTPException, TransferError) as error:
            self._failures.append(f"{type(error).__name__}: {error}")
            door.close()
        else:
            self._answers.append((begin, time.monotonic(), answer.version))
