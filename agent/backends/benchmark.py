"""Time one inference after another in short bursts, on the monotonic clock.

Warm-up runs are not counted. Beside seats that answer clients each run is followed by a rest, not counted either: a
burst on one of two cores nearly doubles what others wait. A model that takes a second for an inference needs no fifty
of them to be called slow: warm-up ends after WARM_UP_S and measuring after BUDGET_S, but not before FEWEST_RUNS.

Memory is not measured here: a process that has run a model once keeps what it needs.
"""

from time import perf_counter, sleep

import numpy as np

from agent.backends.session import Feeds, Session
from agent.core.candidate import Latency, rest_s

WARM_UP_S, BUDGET_S = 1.0, 5.0
FEWEST_RUNS = 5  # a median of fewer says little


def measure(session: Session, feeds: Feeds, runs: int, warm_up: int, rests: float = 0.0) -> tuple[Latency, float]:
    """The latency in milliseconds, and the inferences per second of at most `runs` runs one after another."""
    _timed(session, feeds, warm_up, rests, WARM_UP_S, fewest=1)
    times = np.array(_timed(session, feeds, runs, rests, BUDGET_S, fewest=FEWEST_RUNS))
    return Latency.of(1000 * times), len(times) / float(times.sum())


def _timed(session: Session, feeds: Feeds, runs: int, rests: float, budget_s: float, fewest: int) -> list[float]:
    """Seconds of each run, until there are enough or the budget is spent."""
    times: list[float] = []
    while len(times) < runs and (len(times) < fewest or sum(times) < budget_s):
        start = perf_counter()
        session.run(None, feeds)
        times.append(perf_counter() - start)
        if rests:
            sleep(rest_s(rests, times[-1]))
    return times
