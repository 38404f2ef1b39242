"""The trial of one candidate: what a seat runs before a release may serve.

1. The order is: declared tensors, golden samples, warm-up, benchmark, memory. The first that fails ends it.
2. A candidate's failure is evidence, not an exception. What is measured is judged elsewhere (core/candidate.py).
3. Times are from one burst, with the conditions they were taken in; when power mode or throttling moved
   meanwhile, `conditions` says so under `moved`, and the speed means nothing.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from msgspec.structs import replace

from agent.backends.benchmark import measure
from agent.backends.golden import Sample, compare
from agent.backends.hardware import conditions, moved, peak_memory_mb
from agent.backends.session import Session
from agent.backends.signature import check_tensors
from agent.core.candidate import Candidate, Evidence, Failure
from agent.core.errors import BackendError, InputError
from agent.core.release import Config, Metadata


@dataclass(frozen=True)
class Loaded:
    """A release on a candidate, ready to run."""

    candidate: Candidate
    session: Session
    metadata: Metadata
    config: Config
    golden: tuple[Sample, ...]
    load_s: float


def run_trial(model: Loaded, key: str, runs: int) -> Evidence:
    """What was measured in so many runs, or why it could not be."""
    session, started = model.session, datetime.now(UTC).isoformat(timespec="seconds")
    evidence = Evidence(
        candidate=model.candidate, key=key, load_s=model.load_s, providers=tuple(session.get_providers()), taken=started
    )
    try:
        check_tensors(session, model.metadata)
        evidence = replace(evidence, deviations=compare(session, model.golden, model.config.gates))
        if all(one.within for one in evidence.deviations):
            evidence = _measured(evidence, session, model.config, model.golden[0], runs)
    except BackendError as error:
        return replace(evidence, failure=Failure.of(error), memory_mb=peak_memory_mb())
    except InputError as error:  # the golden feeds do not fit the model
        return replace(evidence, failure=Failure.of(error))
    return replace(evidence, memory_mb=peak_memory_mb())


def _measured(evidence: Evidence, session: Session, config: Config, sample: Sample, runs: int) -> Evidence:
    before = conditions()
    latency, rate = measure(session, sample.feeds, runs, config.warm_up)
    after = conditions()
    changed = moved(before, after)
    return replace(
        evidence,
        latency_ms=latency,
        fps=rate * config.batch_size,
        conditions=after | ({"moved": ", ".join(changed)} if changed else {}),
    )
