"""What is counted of a serving seat since it was promoted.

1. Probes of our own are counted apart: clients' figures are of clients.
2. A fault is the seat's even when the fall-back answered in its place: the client was spared, the soak is not.
3. Capacity is requests / busy_s. The offered rate is beside it, for people.
"""

from collections import deque

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
        self.seconds = 0.0  # clients' waiting, all together
        self.last = 0.0
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
        self.last = now
        self._arrivals.append(arrived)
        if ran is None:
            self.errors += 1
            return
        self.busy_s += ran.busy_s
        self.not_finite += not ran.finite
        self.seconds += now - arrived
        self._latencies.append((now - arrived) * 1000)
        self._runs.append(ran.busy_s * 1000)

    def newest_runs(self, count: int) -> list[float]:
        """Milliseconds inside the seat, of so many requests at most."""
        return list(self._runs)[-count:]

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
