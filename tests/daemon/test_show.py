"""What the agent's commands print can be read in a narrow terminal, and comes without delay."""

import subprocess
import sys
from datetime import UTC, datetime

import pytest
from rich.console import Console

from agent.core.candidate import Backend, Candidate, Deviation, Evidence, Failure, Latency
from agent.core.errors import Kind
from agent.core.messages import Place
from agent.core.records import TrialRecord
from agent.core.release import Ref
from agent.core.slot import SlotRecord
from agent.daemon import show
from agent.daemon.state import Measured, SlotState

SLOT = "face_detection"
REF = Ref(name=f"{SLOT}_retinaface_widerface_20250628", digest="a" * 64)
REASON = "CUDAExecutionProvider is absent here: install NVIDIA's driver and the gpu extra, which brings CUDA"
PASSED, OUT = Candidate(backend=Backend.OPENVINO, threads=2), Candidate(backend=Backend.CUDA, precision="fp16")
FIGURES = Evidence(
    candidate=PASSED, key="", latency_ms=Latency(mean=1, std=0, p50=1000.1, p95=2, p99=1000.2), fps=1000.3,
    memory_mb=1000.4, deviations=(Deviation(output="boxes", max_abs=3.1e-5, within=True),),
)  # fmt: skip
FAILURE = Failure(kind=Kind.BACKEND, reason=REASON)


def evidence():
    trials = (
        TrialRecord(place=Place(ref=REF, candidate=PASSED), key="", evidence=FIGURES),
        TrialRecord(place=Place(ref=REF, candidate=OUT), key="", failure=FAILURE),
    )
    record = SlotRecord(slot=SLOT)
    return show.evidence_tables(SlotState(slot=SLOT, step="", since=datetime.now(UTC), record=record, trials=trials))


def bench():
    measured = [Measured(release=REF.name, candidate=PASSED, evidence=FIGURES)]
    return show.bench("cam-7, x86_64", [*measured, Measured(release=REF.name, candidate=OUT, failure=FAILURE)])


def printed(what):
    console = Console(width=80, color_system=None)
    with console.capture() as said:
        console.print(what)
    return [line.rstrip() for line in said.get().splitlines()]


@pytest.mark.parametrize("table", [evidence, bench])
def test_rows_of_figures_are_whole(table):
    """Release, candidate and figures are never broken; only the reason why one is out goes on below."""
    release, head, passed, *out = printed(table())
    assert release.split()[0] == REF.name
    assert head.split() == ["candidate", "FPS", "p50", "p99", "ms", "MB", "verdict"]
    assert passed.split()[:5] == ["openvino/fp32/2t", "1000.3", "1000.1", "1000.2", "1000.4"]
    assert passed.endswith("passed, 3.1e-05 off golden")
    assert " ".join(" ".join(out).split()) == f"cuda/fp16 backend: {REASON}"


def test_a_long_finding_goes_on_below_its_beginning():
    """Whoever looks down the marks sees one for each finding, and nothing between them."""
    first, *rest = printed(show.finding("-", "backend cuda", REASON))
    assert first.startswith("- backend cuda       CUDAExecutionProvider")
    assert rest
    assert all(line.startswith(" " * 21) for line in rest)


def test_a_command_that_only_asks_waits_for_no_library_of_the_daemon():
    """`edge-agent status` is asked by people, and by programs each minute: half of its time went into imports."""
    program = "import sys, agent.daemon.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert "agent.daemon.show" in loaded
    assert not {"tuf", "boto3", "securesystemslib", "onnxruntime", "agent.daemon.agent"} & set(loaded)
