"""A trial proves a candidate, and its failure is evidence."""

import time

import numpy as np
import psutil
import pytest
from msgspec.structs import replace

from agent.backends import benchmark, hardware, open_session
from agent.backends.benchmark import measure
from agent.backends.signature import check_tensors
from agent.backends.trial import Loaded, run_trial
from agent.core.candidate import Latency, judge
from agent.core.errors import BackendError, Kind
from agent.core.release import Gates, Tensor
from tests.backends import graphs


class Counting:
    """A session that answers nothing, and counts."""

    calls, busy_s = 0, 0.0

    def run(self, output_names, input_feed, run_options=None):
        self.calls += 1
        time.sleep(self.busy_s)
        return []


def trial(path, candidate, config, metadata, golden):
    session = open_session(str(path), candidate, config)
    return run_trial(Loaded(candidate, session, metadata, config, golden, 0.25), "key", 5)


def test_a_good_candidate_leaves_complete_evidence(model, candidate, config, metadata, golden):
    """Parity, latency, speed, memory and conditions are all there, and the gates let it pass."""
    evidence = trial(model, candidate, config, metadata, golden)
    assert judge(evidence, config.gates) is None
    assert (evidence.candidate, evidence.key, evidence.load_s) == (candidate, "key", 0.25)
    assert evidence.latency_ms.p50 <= evidence.latency_ms.p95 <= evidence.latency_ms.p99
    assert evidence.fps == pytest.approx(1000 / evidence.latency_ms.mean, rel=0.01)
    assert evidence.memory_mb > 10
    assert "load" in evidence.conditions
    assert evidence.taken.endswith("+00:00")


def test_a_candidate_out_of_parity_is_not_even_timed(tmp_path, candidate, config, metadata, golden):
    """However fast: other weights, no benchmark."""
    evidence = trial(graphs.network(tmp_path / "other.onnx", seed=1), candidate, config, metadata, golden)
    assert judge(evidence, config.gates).kind is Kind.PARITY
    assert evidence.latency_ms is None


def test_a_model_of_other_tensors_fails_by_structure(tmp_path, candidate, config, metadata, golden):
    """A model whose tensors are not the declared ones is not run at all."""
    evidence = trial(graphs.network(tmp_path / "m.onnx", name="image"), candidate, config, metadata, golden)
    assert evidence.failure.kind is Kind.STRUCTURE
    assert "image" in evidence.failure.reason


def test_other_sizes_than_declared_fail_before_any_run(model, candidate, config, metadata, golden):
    """Declared tensors come first, even where the golden samples would run."""
    declared = replace(metadata, outputs=(metadata.outputs[0], replace(metadata.outputs[1], shape=(1, 5))))
    evidence = trial(model, candidate, config, declared, golden)
    assert evidence.failure.kind is Kind.STRUCTURE
    assert evidence.deviations == ()


def test_a_slow_candidate_misses_its_gate(model, candidate, config, metadata, golden):
    """The gate of the release judges what was measured."""
    gates = Gates(min_fps=1e9)
    evidence = trial(model, candidate, replace(config, gates=gates), metadata, golden)
    assert judge(evidence, gates).kind is Kind.SPEED


def test_a_batch_counts_as_its_frames(model, candidate, config, metadata, golden):
    """A model that takes four frames at a time does four frames with each inference."""
    evidence = trial(model, candidate, replace(config, batch_size=4), metadata, golden)
    assert evidence.fps == pytest.approx(4000 / evidence.latency_ms.mean, rel=0.01)


@pytest.mark.parametrize("counts", [(1, 4, 4, 9), (1, 4, 4, 4), (1, 1)])
def test_a_burst_while_the_device_throttles_is_void(model, candidate, config, metadata, golden, monkeypatch, counts):
    """It is repeated once; where the counters moved again, the evidence says so."""
    readings = [{"throttled": float(count)} for count in reversed(counts)]
    monkeypatch.setattr("agent.backends.trial.conditions", readings.pop)
    told = trial(model, candidate, config, metadata, golden).conditions.get("moved")
    assert told == ("throttled" if counts[-1] == 9 else None)
    assert readings == []


def test_warm_up_runs_are_not_timed():
    """Warm-up comes before, and is not counted."""
    session = Counting()
    _, rate = measure(session, {}, runs=7, warm_up=3)
    assert session.calls == 10
    assert rate > 0


def test_a_slow_model_is_warm_after_a_few_runs(monkeypatch):
    """Its warm-up ends by the clock, however many runs the config asks for."""
    monkeypatch.setattr(benchmark, "WARM_UP_S", 0.05)
    session = Counting()
    session.busy_s = 0.02
    measure(session, {}, runs=5, warm_up=10)
    assert 5 + 1 <= session.calls <= 5 + 3


def test_rests_are_taken_and_not_counted():
    """Ten milliseconds and three times that of rest are a speed of a hundred a second, not of twenty-five."""
    session, began = Counting(), time.perf_counter()
    session.busy_s = 0.01
    _, rate = measure(session, {}, runs=5, warm_up=2, rests=3.0)
    assert time.perf_counter() - began > 7 * 4 * session.busy_s
    assert rate > 25


def test_latency_is_in_milliseconds():
    """Percentiles are taken over all runs."""
    found = Latency.of(np.arange(1, 101))
    assert (found.mean, found.p50, found.p95) == pytest.approx((50.5, 50.5, 95.05))
    assert found.std == pytest.approx(28.866, rel=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 20, 1024])
def test_percentiles_are_those_of_numpy(count):
    """Between two runs they are interpolated, and times in any order are taken."""
    times = np.random.default_rng(count).random(count)
    found = Latency.of(times)
    assert (found.p50, found.p95, found.p99) == pytest.approx(np.percentile(times, (50, 95, 99)), rel=1e-12)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"shape": (1, 3, 8, 9)}, r"declared float32 \[1, 3, 8, 9\], the model has float32 \[1, 3, 8, 8\]"),
        ({"dtype": "uint8"}, "declared uint8"),
        ({"name": "image"}, "declared are"),
        ({"shape": (3, 8, 8)}, "declared float32"),
    ],
)
def test_a_tensor_that_differs_is_named(model, candidate, config, metadata, changed, told):
    """The error says which tensor differs, and how."""
    declared = replace(metadata, inputs=(replace(metadata.inputs[0], **changed),))
    with pytest.raises(BackendError, match=told) as caught:
        check_tensors(open_session(str(model), candidate, config), declared)
    assert caught.value.kind is Kind.STRUCTURE


def test_open_sizes_fit_any(tmp_path, candidate, config, metadata):
    """-1 in the metadata and a symbolic size in the file are any size."""
    open_size = Tensor(name="input", shape=(-1, 3, -1, 8), dtype="float32")
    declared = replace(metadata, inputs=(open_size,))
    check_tensors(open_session(str(graphs.network(tmp_path / "m.onnx")), candidate, config), declared)
    symbolic = graphs.network(tmp_path / "s.onnx", shape=("batch", 3, 8, 8))
    check_tensors(open_session(str(symbolic), candidate, config), metadata)


def test_sensors_that_are_absent_are_left_out(monkeypatch):
    """A machine without sensors gives fewer conditions, not wrong ones."""
    monkeypatch.setattr(psutil, "sensors_temperatures", dict)
    monkeypatch.setattr(psutil, "cpu_freq", lambda: None)
    assert not {"celsius", "mhz"} & hardware.conditions().keys()
