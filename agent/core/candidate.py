"""A candidate is a backend with a precision and a thread setting; it earns its place by evidence.

Rules:
1. A candidate that is not in parity with the golden samples is out, however fast.
2. Of those that pass every gate, the one with the highest measured speed wins; ties go to the earlier one (plan.py).
3. Evidence counts while its key holds: same runtime, driver, precision and power mode.
4. A release's config names the backends it may run on, in order, and may name several precisions, thread counts and
   OpenVINO devices: each combination that this device has is a candidate.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Self

import numpy as np
from msgspec import field
from numpy.typing import ArrayLike

from agent.core.documents import Document
from agent.core.errors import BackendError, InputError, Kind, TrustError
from agent.core.release import Config, Gates, NonNegative, as_list

REST_S = 1.0  # at most: a trial has a deadline
BUSY_SHARE = 0.5  # of its speed; a device that is busier than this during a trial has other troubles


class Backend(StrEnum):
    """The ways to run a model, in the order in which they are preferred when nothing was measured yet."""

    TENSORRT = "tensorrt"
    CUDA = "cuda"
    OPENVINO = "openvino"
    CPU = "cpu"


class Candidate(Document, order=True, omit_defaults=True):  # omitted: a runner before this one knows no device
    """One way to run a model on this device."""

    backend: Backend
    precision: str = "fp32"  # fp32, fp16, bf16, int8: what the backend is told to compute in
    threads: int = 0  # 0: as many as the backend takes
    device: str = ""  # OpenVINO's name of it: GPU, GPU.1, NPU; empty is the CPU, and the only one of other backends

    def __str__(self) -> str:
        device = f":{self.device}" if self.device else ""
        threads = f"/{self.threads}t" if self.threads else ""
        return f"{self.backend}{device}/{self.precision}{threads}"

    @property
    def builds(self) -> bool:
        """True where loading means building an engine for minutes: tried only after something serves."""
        return self.backend is Backend.TENSORRT


class Found(Document):
    """What a probe found out about one backend on this device."""

    backend: Backend
    present: bool
    version: str = ""  # runtime, driver and device: evidence is void when it changes
    reason: str = ""  # why it is absent, and what to do; or why one of its devices is
    devices: tuple[str, ...] = ()  # OpenVINO's that work, beside the CPU


MATCHED = "matched detections"  # in place of an output's name: the share that has no partner


class Deviation(Document):
    """How far one output is from its golden reference, over all samples; or the detections of all outputs."""

    output: str
    max_abs: NonNegative
    within: bool  # every element inside atol + rtol * |reference|

    def __str__(self) -> str:
        if self.output == MATCHED:
            return f"{self.max_abs:.1%} of the detections have no partner in the golden reference, or are one too many"
        return f"output {self.output} is {self.max_abs:.3g} away from its golden reference"


class Latency(Document):
    """Time of one inference in milliseconds over all measured runs."""

    mean: NonNegative
    std: NonNegative
    p50: NonNegative
    p95: NonNegative
    p99: NonNegative

    @classmethod
    def of(cls, ms: ArrayLike) -> Self:
        """Mean, standard deviation and percentiles of times in milliseconds.

        As `numpy.percentile`, which takes three times as long and imports for 50 ms when it is first asked.
        """
        times = np.sort(np.asarray(ms, np.float64))
        places = np.arange(len(times)) / max(1, len(times) - 1)
        p50, p95, p99 = (float(value) for value in np.interp((0.50, 0.95, 0.99), places, times))
        return cls(mean=float(times.mean()), std=float(times.std()), p50=p50, p95=p95, p99=p99)


class Failure(Document):
    """Why a candidate or a release cannot be used."""

    kind: Kind
    reason: str

    @classmethod
    def of(cls, error: TrustError | BackendError | InputError) -> Self:
        """What an error says."""
        return cls(kind=error.kind, reason=str(error))


class Evidence(Document):
    """What the trial of one candidate measured, or why it could not."""

    candidate: Candidate
    key: str  # runtime, driver, precision and power mode, as one digest
    failure: Failure | None = None
    deviations: tuple[Deviation, ...] = ()
    latency_ms: Latency | None = None
    fps: NonNegative = 0.0
    memory_mb: NonNegative = 0.0
    load_s: NonNegative = 0.0
    providers: tuple[str, ...] = ()
    conditions: Mapping[str, str | float] = field(default_factory=dict)  # temperature, clocks, load, power mode
    taken: str = ""  # ISO 8601, UTC

    @property
    def is_proof(self) -> bool:
        """Whether the candidate computed its golden samples right, and lived."""
        return self.failure is None and all(one.within for one in self.deviations)


def judge(evidence: Evidence, gates: Gates) -> Failure | None:
    """The first gate that the evidence misses, or None when the candidate may serve."""
    if evidence.failure is not None:
        return evidence.failure
    for deviation in evidence.deviations:
        if not deviation.within:
            return Failure(kind=Kind.PARITY, reason=str(deviation))
    if evidence.memory_mb > gates.max_memory_mb:
        reason = f"needs {evidence.memory_mb:.0f} MB; its gate allows {gates.max_memory_mb:.0f} MB"
        return Failure(kind=Kind.MEMORY, reason=reason)
    if evidence.fps < gates.min_fps:
        return Failure(kind=Kind.SPEED, reason=f"{evidence.fps:.1f} FPS; its gate asks for {gates.min_fps:g} FPS")
    if evidence.latency_ms is not None and evidence.latency_ms.p95 > gates.max_latency_p95_ms:
        reason = f"p95 latency {evidence.latency_ms.p95:.1f} ms; its gate allows {gates.max_latency_p95_ms:g} ms"
        return Failure(kind=Kind.SPEED, reason=reason)
    return None


def may_be_busy(evidence: Evidence, gates: Gates) -> bool:
    """Whether a missed speed gate was missed so closely that a busy device explains it."""
    return evidence.fps >= gates.min_fps * BUSY_SHARE


def rest_s(rests: float, run_s: float) -> float:
    """How long others have the cores after a run in a trial: `rests` times its length, within reason."""
    return min(REST_S, rests * run_s)


def candidates_for(config: Config, found: Iterable[Found], cores: int) -> tuple[Candidate, ...]:
    """The candidates to try for a release on this device, in order of preference.

    Empty when no backend that the config names is present.
    """
    present = {one.backend: one for one in found if one.present}
    counts = [one for one in as_list(config.optimization.get("threads")) if isinstance(one, int)] or [max(1, cores)]
    return tuple(
        Candidate(backend=backend, precision=precision, threads=threads, device=device)
        for backend in (Backend(name) for name in config.backends)
        if backend in present
        for device in devices_for(config, present[backend])
        for precision in config.precisions_on(backend)
        for threads in (counts if backend not in GPU and not device else (0,))
    )


def devices_for(config: Config, found: Found) -> tuple[str, ...]:
    """The devices of a backend that the release may run on and that were found; all where it names none."""
    if found.backend is not Backend.OPENVINO:
        return ("",)
    here = ("CPU", *(one for one in found.devices if one.startswith(ACCELERATORS)))
    wanted = as_list(config.options(found.backend).get("device", here))
    return tuple("" if one == "CPU" else one for one in here if one in wanted or one.split(".")[0] in wanted)


GPU = frozenset({Backend.TENSORRT, Backend.CUDA})
ACCELERATORS = ("GPU", "NPU")  # as OpenVINO names its devices; of several, GPU.0 and GPU.1
