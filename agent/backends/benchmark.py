"""Time one inference after another in short bursts, on the monotonic clock.

Warm-up runs are not counted. Memory is not measured here: a process that has run a model once keeps what it needs.
"""

from collections.abc import Mapping
from time import perf_counter

import numpy as np

from agent.backends.session import Array, Session
from agent.core.candidate import Latency


def measure(session: Session, feeds: Mapping[str, Array], runs: int, warm_up: int) -> tuple[Latency, float]:
    """The latency in milliseconds, and the inferences per second of `runs` runs one after another."""
    times = time_runs(session, feeds, runs, warm_up)
    return latency(times), runs / float(times.sum())


def time_runs(session: Session, feeds: Mapping[str, Array], runs: int, warm_up: int) -> Array:
    """Seconds of each run, float64 [runs]."""
    for _ in range(warm_up):
        session.run(None, feeds)
    times = np.empty(runs)
    for place in range(runs):
        start = perf_counter()
        session.run(None, feeds)
        times[place] = perf_counter() - start
    return times


def latency(seconds: Array) -> Latency:
    """Mean, standard deviation and percentiles in milliseconds of times in seconds."""
    ms = np.asarray(seconds, np.float64) * 1000
    p50, p95, p99 = (float(value) for value in np.percentile(ms, (50, 95, 99)))
    return Latency(mean=float(ms.mean()), std=float(ms.std()), p50=p50, p95=p95, p99=p99)
