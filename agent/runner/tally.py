"""What is counted: of a serving seat since it was promoted, and of a release since the runner started.

1. Probes of our own are counted apart: clients' figures are of clients.
2. A tally judges a seat. A fault is the seat's even when the fall-back answered in its place: the client was spared,
   the soak is not. Capacity is requests / busy_s. The offered rate is beside it, for people.
3. Statistics tell of a release what its clients got, whichever of its seats they got it from. They only grow.
"""

import time
from collections import deque
from dataclasses import dataclass

from agent.core.candidate import Latency
from agent.core.messages import Counters, SeatRan

NEWEST = 1024  # latencies kept: percentiles up to p99 of them rest on ten
OFFERED_S = 5.0  # the rate is over so many seconds
ARRIVALS = 16_384  # and is right up to 3,000 requests per second


class Tally:
    """Counts; `counters` is what they come to."""

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.not_finite = 0
        self.busy_s = 0.0
        self.probes = 0
        self.probe_failures = 0
        self.blamed: set[str] = set()  # kinds of failure that the runner has told
        self._latencies: deque[float] = deque(maxlen=NEWEST)
        self._runs: deque[float] = deque(maxlen=NEWEST)
        self._arrivals: deque[float] = deque(maxlen=ARRIVALS)

    def probe(self, *, failed: bool) -> None:
        """One golden sample or request of our own."""
        self.probes += 1
        self.probe_failures += failed

    def request(self, arrived: float, now: float, ran: SeatRan | None) -> None:
        """One request of a client; None when the seat could not answer it."""
        self.requests += 1
        self._arrivals.append(arrived)
        if ran is None:
            self.errors += 1
            return
        self.busy_s += ran.busy_s
        self.not_finite += not ran.finite
        self._latencies.append((now - arrived) * 1000)
        self._runs.append(ran.busy_s * 1000)

    def newest_runs(self, count: int) -> list[float]:
        """Milliseconds inside the seat, of so many requests at most."""
        return list(self._runs)[-count:]

    def is_asked(self, now: float) -> bool:
        """Whether a client has asked lately."""
        return bool(self._arrivals) and self._arrivals[-1] > now - OFFERED_S

    def counters(self, now: float) -> Counters:
        """As the agent is told."""
        return Counters(
            requests=self.requests,
            errors=self.errors,
            not_finite=self.not_finite,
            busy_s=self.busy_s,
            probes=self.probes,
            probe_failures=self.probe_failures,
            offered_fps=sum(1 for arrived in self._arrivals if arrived > now - OFFERED_S) / OFFERED_S,
            latency_ms=Latency.of(self._latencies) if self._latencies else None,
            run_ms=Latency.of(self._runs) if self._runs else None,
        )


@dataclass(slots=True)
class Statistics:
    """Of one release. Seconds are sums over the requests that were answered."""

    answered: int = 0
    failed: int = 0  # by the model
    late: int = 0  # their timeout passed in the queue
    input_s: float = 0.0  # until the request was in its lane
    queue_s: float = 0.0  # until the seat took it
    infer_s: float = 0.0
    failed_s: float = 0.0
    last: float = 0.0  # Unix time

    @property
    def answered_s(self) -> float:
        """All of the time that clients waited for answers."""
        return self.input_s + self.queue_s + self.infer_s

    def request(self, arrived: float, received: float, now: float, ran: SeatRan | None) -> None:
        """One request of a client; None when the model failed on it."""
        self.last = time.time()
        if ran is None:
            self.failed += 1
            self.failed_s += now - arrived
            return
        self.answered += 1
        self.input_s += received - arrived
        self.queue_s += max(0.0, now - received - ran.busy_s)
        self.infer_s += ran.busy_s
