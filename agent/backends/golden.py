"""Golden samples: inputs, and what the model answered to them in float32 when it was published.

1. An `.npz` file with `in.<name>` and `out.<name>`; the first axis counts samples. Where the tensor's own first axis
   is a batch, the samples stand on it: sample i is `[i:i+1]`, or the i-th batch of a fixed size.
2. The outputs of a detector also pass as detections, where the release's gates say which they are (agreement.py).
3. An output passes when every |difference| <= atol + rtol * |reference|. NaN or Inf is never close to anything.
4. A device never makes its own reference.
"""

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from agent.backends.agreement import alone
from agent.backends.session import Array, Session
from agent.core.candidate import MATCHED, Deviation
from agent.core.errors import BackendError, Kind
from agent.core.release import Gates, Metadata, Tensor


@dataclass(frozen=True, slots=True)
class Sample:
    """One call of the model, and its answer."""

    feeds: Mapping[str, Array]
    outputs: Mapping[str, Array]


def load_golden(source: bytes | str | Path, metadata: Metadata) -> tuple[Sample, ...]:
    """The golden samples of a release.

    Raises:
        BackendError: STRUCTURE; the file is not one of golden samples for these tensors.
    """
    arrays = _arrays(source)
    feeds = _split(arrays, "in.", metadata.inputs)
    outputs = _split(arrays, "out.", metadata.outputs, len(feeds))
    return tuple(Sample(feed, output) for feed, output in zip(feeds, outputs, strict=True))


def load_feeds(source: bytes | str | Path, inputs: Sequence[Tensor]) -> tuple[Mapping[str, Array], ...]:
    """The inputs alone, where there are no references yet: when publishing."""
    return _split(_arrays(source), "in.", inputs)


def compare(session: Session, golden: Sequence[Sample], gates: Gates) -> tuple[Deviation, ...]:
    """How far each output is from its reference over all samples.

    Raises:
        BackendError: PARITY, for NaN, Inf or another shape.
    """
    worst: dict[str, Deviation] = {}
    for sample in golden:
        names = list(sample.outputs)
        given = dict(zip(names, session.run(names, sample.feeds), strict=True))
        for found in deviations(sample.outputs, given, gates):
            before = worst.get(found.output, found)
            within = before.within and found.within
            worst[found.output] = replace(found, max_abs=max(before.max_abs, found.max_abs), within=within)
    return tuple(worst.values())


def deviations(reference: Mapping[str, Array], given: Mapping[str, Array], gates: Gates) -> Iterator[Deviation]:
    """How far each output of one answer is from its reference, and a detector's detections; raises as `compare`."""
    for name, output in given.items():
        yield deviation(name, output, reference[name], gates)
    if (rule := gates.detections) is not None:
        golden, found = ((answer[rule.boxes], answer[rule.scores]) for answer in (reference, given))
        share = alone(golden, found, rule)
        yield Deviation(output=MATCHED, max_abs=share, within=share <= rule.max_alone)


def deviation(name: str, given: Array, reference: Array, gates: Gates) -> Deviation:
    """How far one answer is from its reference; raises as `compare`."""
    if not is_finite(given):
        raise BackendError(f"output {name}: holds NaN or Inf", Kind.PARITY)
    if given.shape != reference.shape:
        raise BackendError(
            f"output {name}: shape {list(given.shape)}; its reference has {list(reference.shape)}", Kind.PARITY
        )
    tolerance = gates.tolerance(name)
    expected = reference.astype(np.float64)
    difference = np.abs(given.astype(np.float64) - expected)
    within = bool(np.all(difference <= tolerance.atol + tolerance.rtol * np.abs(expected)))
    return Deviation(output=name, max_abs=float(difference.max(initial=0.0)), within=within)


def is_finite(array: Array) -> bool:
    """Whether no element is NaN or Inf."""
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())


def _arrays(source: bytes | str | Path) -> dict[str, Array]:
    try:
        with np.load(io.BytesIO(source) if isinstance(source, bytes) else source, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise BackendError(f"golden samples: this is not an npz file of numbers: {error}", Kind.STRUCTURE) from error


def _split(
    arrays: Mapping[str, Array], prefix: str, declared: Sequence[Tensor], count: int | None = None
) -> tuple[Mapping[str, Array], ...]:
    """One mapping for each sample; `count` where it is known already."""
    wanted = {prefix + tensor.name for tensor in declared}
    found = {name for name in arrays if name.startswith(prefix)}
    if wanted != found:
        raise BackendError(f"golden samples: wanted {sorted(wanted)}, found {sorted(found)}", Kind.STRUCTURE)
    columns = {tensor.name: _samples(arrays[prefix + tensor.name], tensor, count) for tensor in declared}
    sizes = {len(column) for column in columns.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise BackendError(f"golden samples: {prefix}* have {sorted(sizes)} samples; one number, not 0", Kind.STRUCTURE)
    return tuple({name: column[place] for name, column in columns.items()} for place in range(sizes.pop()))


def _samples(array: Array, tensor: Tensor, count: int | None) -> list[Array]:
    rank = len(tensor.shape)
    if array.dtype.name != tensor.dtype or array.ndim not in {rank, rank + 1} or array.ndim == 0:
        raise BackendError(
            f"golden samples: {tensor.name}: {array.dtype} {list(array.shape)} are no samples of "
            f"{tensor.dtype} {list(tensor.shape)}",
            Kind.STRUCTURE,
        )
    if array.ndim == rank + 1:
        return [np.ascontiguousarray(one) for one in array]
    rows = len(array) // count if count else max(1, tensor.shape[0])
    if rows == 0 or len(array) % rows:
        raise BackendError(f"golden samples: {tensor.name}: {len(array)} rows do not divide", Kind.STRUCTURE)
    return [array[start : start + rows] for start in range(0, len(array), rows)]
