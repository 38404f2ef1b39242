"""Seats that fail when they are told to: what a release's sessions do is said in the file $SEAT_FAULTS/RELEASE.

Python imports this at the start of each process that has this folder on its PYTHONPATH. The product knows nothing of it:
the fault is where a driver's would be, inside the library's `run`.
"""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path


def segfault(_):
    ctypes.string_at(0)


def abort(_):
    os.abort()


def out_of_memory(_):
    os.kill(os.getpid(), signal.SIGKILL)  # what the kernel does to whom it chooses; nothing in the process sees it


def hang(_):
    time.sleep(1e6)


def slow(_):
    time.sleep(SLOW_S)


def grow(_):
    GROWN.append(b"leak" * (GROWTH_BYTES // 4))


def nan(outputs):
    for one in outputs:
        one[...] = float("nan")


BEFORE = {
    "segfault": segfault,
    "abort": abort,
    "out of memory": out_of_memory,
    "hang": hang,
    "slow": slow,
    "grow": grow,
}
AFTER = {"nan": nan}
SLOW_S = 0.15
GROWN, GROWTH_BYTES = [], 64_000_000
ONCE = "once "


def faults_of(path):
    """Asks what the release of a session's memory file is told to do: once, or until it is told otherwise."""
    file = Path(os.environ["SEAT_FAULTS"]) / str(Path(path).readlink()).removeprefix("/memfd:").split("/")[0]

    def told():
        kind = file.read_text() if file.exists() else ""
        if kind.startswith(ONCE):
            file.unlink()
        return kind.removeprefix(ONCE)

    return told


def fail_as_told(session):
    """A session that does what its file says, at each run."""

    class Failing(session):
        def __init__(self, path, *rest, **named):
            super().__init__(path, *rest, **named)
            self._fault = faults_of(path)

        def run(self, *rest, **named):
            fault = self._fault()
            BEFORE.get(fault, lambda _: None)(None)
            outputs = super().run(*rest, **named)
            AFTER.get(fault, lambda _: None)(outputs)
            return outputs

    return Failing


if "agent.runner.seat" in sys.orig_argv and "--probe" not in sys.orig_argv and "SEAT_FAULTS" in os.environ:
    from agent.backends import onnx_runtime

    onnx_runtime.OnnxRuntimeSession = fail_as_told(onnx_runtime.OnnxRuntimeSession)
