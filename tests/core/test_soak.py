"""What a soak and a pace are judged by."""

import pytest

from agent.core.candidate import Backend, Candidate, Evidence, Latency
from agent.core.errors import Kind
from agent.core.messages import Counters
from agent.core.release import Config, Gates
from agent.core.soak import judge_pace, judge_soak, slowed

GATES = Gates(min_fps=10.0, max_latency_p95_ms=50.0)


def config(batch=1, gates=GATES):
    return Config(input_size=(8, 8), confidence_threshold=0.5, batch_size=batch, gates=gates)


def counted(requests=1000, p95=10.0, **more):
    latency = Latency(mean=5, std=1, p50=5, p95=p95, p99=p95)
    return Counters(
        **{"requests": requests, "busy_s": 0.01 * requests, "run_ms": latency, "latency_ms": latency} | more
    )


@pytest.mark.parametrize(
    ("counters", "kind"),
    [
        (counted(), None),
        (counted(p95=51.0), Kind.SPEED),
        (counted(requests=99, p95=51.0), None),
        (counted(run_ms=None), None),
        (counted(busy_s=101.0), Kind.SPEED),
        (counted(errors=11), Kind.BACKEND),
        (counted(requests=3, not_finite=1), Kind.PARITY),
        (counted(requests=3, probe_failures=1), Kind.PARITY),
    ],
    ids=["sound", "late", "late on few", "an older runner", "no capacity", "errors", "NaN", "probes"],
)
def test_a_soak_is_judged_by_the_seat_alone(counters, kind):
    """The gates on answers, errors, capacity and the time inside the seat each end a soak; too few requests do not."""
    failure = judge_soak(counters, config())
    assert (failure and failure.kind) == kind


def test_waiting_at_the_door_is_no_fault_of_the_model():
    """Eight cameras that wait for each other see eight times the latency; the release keeps its soak."""
    slow_at_the_door = Latency(mean=400, std=1, p50=400, p95=400, p99=400)
    assert judge_soak(counted(latency_ms=slow_at_the_door), config()) is None


@pytest.mark.parametrize(
    ("run_ms", "batch", "is_slow"),
    [
        ([60.0] * 16 + [10.0] * 14, 1, True),
        ([60.0] * 14 + [10.0] * 16, 1, False),
        ([60.0] * 30, 4, True),
        ([45.0] * 30, 1, False),
    ],
)
def test_half_of_the_requests_beyond_the_gate_are_a_slow_down(run_ms, batch, is_slow):
    """A hiccup is none, however long; what half of the newest requests suffer is one."""
    assert (judge_pace(run_ms, config(batch)) is not None) == is_slow


@pytest.mark.parametrize(("batch", "is_slow"), [(1, True), (4, False)])
def test_a_pace_below_the_frame_rate_is_a_slow_down(batch, is_slow):
    """A run of a batch brings as many frames as it holds."""
    frames = config(batch, Gates(min_fps=30.0))
    assert (judge_pace([60.0] * 30, frames) is not None) == is_slow
    assert (judge_soak(counted(requests=100, busy_s=6.0), frames) is not None) == is_slow


@pytest.mark.parametrize(
    ("p50", "requests", "told"), [(7.4, 1000, False), (7.6, 1000, True), (7.6, 99, False), (None, 1000, False)]
)
def test_a_third_of_the_speed_is_told(p50, requests, told):
    """A model that takes half as long again as in its trial has slowed; a few requests say nothing of that."""
    trial = Evidence(candidate=Candidate(backend=Backend.CPU), key="k", latency_ms=counted().run_ms)
    newest = Latency(mean=p50, std=1, p50=p50, p95=p50, p99=p50) if p50 else None
    assert bool(slowed(counted(requests=requests, run_ms=newest), trial)) == told
