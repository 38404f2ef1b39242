"""The trial of one candidate: what a seat runs before a release may serve.

1. The order is: declared tensors, golden samples, warm-up, benchmark, memory. The first that fails ends it.
2. A candidate's failure is evidence, not an exception. What is measured is judged elsewhere (core/candidate.py).
3. Times are from one burst, with the conditions they were taken in; when power mode or throttling moved meanwhile,
   there is a second one. When they did again `conditions` says so under `moved`, and a missed speed gate means nothing.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from msgspec.structs import replace

from agent.backends.benchmark import measure
from agent.backends.golden import Sample, compare
from agent.backends.hardware import Conditions, conditions, gpu_memory_mb, moved, peak_memory_mb
from agent.backends.session import Session
from agent.backends.signature import check_tensors
from agent.core.candidate import GPU, Candidate, Evidence, Failure
from agent.core.errors import BackendError, InputError
from agent.core.release import Config, Metadata

CHANCES = 2  # of bursts: a device that throttles in both throttles under this model


@dataclass(frozen=True)
class Loaded:
    """A release on a candidate, ready to run."""

    candidate: Candidate
    session: Session
    metadata: Metadata
    config: Config
    golden: tuple[Sample, ...]
    load_s: float
    gpu_before_mb: float = 0.0  # in use on the GPU before this was loaded


def run_trial(model: Loaded, key: str, runs: int, rests: float = 0.0) -> Evidence:
    """What was measured in so many runs, each with so many times its length of rest, or why it could not be."""
    session, started = model.session, datetime.now(UTC).isoformat(timespec="seconds")
    evidence = Evidence(
        candidate=model.candidate, key=key, load_s=model.load_s, providers=tuple(session.get_providers()), taken=started
    )
    try:
        check_tensors(session, model.metadata)
        evidence = replace(evidence, deviations=compare(session, model.golden, model.config.gates))
        if all(one.within for one in evidence.deviations):
            evidence = _measured(evidence, model, runs, rests)
    except BackendError as error:
        return replace(evidence, failure=Failure.of(error), memory_mb=peak_memory_mb())
    except InputError as error:  # the golden feeds do not fit the model
        return replace(evidence, failure=Failure.of(error))
    return replace(evidence, memory_mb=peak_memory_mb())


def _measured(evidence: Evidence, model: Loaded, runs: int, rests: float) -> Evidence:
    session, config, sample = model.session, model.config, model.golden[0]
    for _ in range(CHANCES):
        before = conditions()
        latency, rate = measure(session, sample.feeds, runs, config.warm_up, rests)
        after = conditions()
        if not (changed := moved(before, after)):
            break
    return replace(
        evidence,
        latency_ms=latency,
        fps=rate * config.batch_size,
        conditions=after | _gpu(model) | ({"moved": ", ".join(changed)} if changed else {}),
    )


def _gpu(model: Loaded) -> Conditions:
    """What the model takes of the GPU's memory, where it runs there and its driver tells."""
    used_mb = gpu_memory_mb()[1] if model.candidate.backend in GPU else 0.0
    return {"gpu_mb": max(0.0, used_mb - model.gpu_before_mb)} if used_mb else {}
