"""Detectors and embedders as people export them, where there are some: EDGE_ACCEPTANCE_MODELS names their folder."""

from pathlib import Path

import pytest

from agent.backends import open_session
from agent.backends.trial import Loaded, run_trial
from agent.core.candidate import Backend, Candidate, judge
from agent.core.errors import Kind


@pytest.mark.parametrize("backend", [Backend.CPU, Backend.OPENVINO])
def test_a_real_model_passes_its_trial(real_release, backend):
    """Each backend in fp32 is in parity on a real model, and leaves evidence."""
    if backend is Backend.OPENVINO:
        pytest.importorskip("openvino", reason="the openvino extra is not installed")
    path, metadata, config, golden = real_release
    candidate = Candidate(backend=backend, threads=1)
    loaded = Loaded(candidate, open_session(path, candidate, config), metadata, config, golden, 0.0)
    evidence = run_trial(loaded, "key", 3)
    assert judge(evidence, config.gates) is None
    assert evidence.fps > 0


def test_a_lower_precision_is_noticed(real_release):
    """What OpenVINO would choose by itself on recent CPUs, bf16, is out of parity on a real model."""
    pytest.importorskip("openvino", reason="the openvino extra is not installed")
    if "avx512_bf16" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("this CPU does not compute in bf16")
    path, metadata, config, golden = real_release
    if "random_weights" in path:
        pytest.skip("random weights answer nearly the same to anything")
    candidate = Candidate(backend=Backend.OPENVINO, precision="bf16")
    loaded = Loaded(candidate, open_session(path, candidate, config), metadata, config, golden, 0.0)
    evidence = run_trial(loaded, "key", 3)
    failure = judge(evidence, config.gates)
    assert failure is not None
    assert failure.kind is Kind.PARITY
