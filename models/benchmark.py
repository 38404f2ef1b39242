"""Time a loaded model and say what it holds in memory.

1. Ten runs warm up and are not counted; the clock is monotonic.
2. `avg_memory_usage_mb` is what the whole process holds resident, averaged over the runs, looked at outside the
   timed stretch. The difference around one run, which is nearly always 0, says nothing; growth from the first run to
   the last one is given apart.
3. Figures that are kept say on what they were taken.
"""

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import psutil
from numpy.typing import ArrayLike, NDArray

from agent.backends.hardware import board, gpu
from agent.backends.session import DTYPES, Port, Session, fits
from agent.core.candidate import Latency
from agent.core.documents import Document, from_json, to_json
from agent.core.errors import InputError
from agent.core.names import check_form
from models.folder import Folder, open_folder

WARM_UP = 10  # runs
Feeds = Mapping[str, NDArray[Any]]
Images = ArrayLike | Sequence[ArrayLike] | Mapping[str, ArrayLike]


class Benchmark(Document):
    """Kept figures: what was measured, and on what."""

    figures: Mapping[str, float]
    providers: tuple[str, ...]
    machine: str
    taken: str  # ISO 8601, UTC


def benchmark_model(session: Session, images: Images, num_runs: int = 100) -> dict[str, float]:
    """Times in milliseconds, memory in MB (2**20 bytes) and inferences per second.

    Args:
        session: what `load_model` gives, or any session of ONNX Runtime.
        images: one array, a list or batch of them, or a mapping of input names to arrays for models of several
            inputs; runs take them in turn. Arrays are cast to the input's dtype, and get a batch axis where it has one.
        num_runs: timed runs.

    Raises:
        InputError: the images do not fit the model's inputs, or num_runs is below 1.
    """
    if num_runs < 1:
        raise InputError(f"num_runs is {num_runs}; at least 1 is needed")
    feeds = feeds_for(session.get_inputs(), images)
    process = psutil.Process()
    for place in range(WARM_UP):
        session.run(None, dict(feeds[place % len(feeds)]))
    seconds, resident = np.empty(num_runs), np.empty(num_runs)
    for place in range(num_runs):
        feed = dict(feeds[place % len(feeds)])
        start = perf_counter()
        session.run(None, feed)
        seconds[place] = perf_counter() - start
        resident[place] = process.memory_info().rss / 2**20
    return _figures(seconds, resident)


def feeds_for(inputs: Sequence[Port], images: Images) -> tuple[Feeds, ...]:
    """The feeds of each image.

    Raises:
        InputError: an array does not fit; says what the input wants.
    """
    if isinstance(images, Mapping):
        unknown = images.keys() ^ {port.name for port in inputs}
        if unknown:
            raise InputError(f"images: the inputs are {[port.name for port in inputs]}; given are {list(images)}")
        return ({port.name: _one(port, images[port.name]) for port in inputs},)
    if len(inputs) != 1:
        names = [port.name for port in inputs]
        raise InputError(f"images: the model has the inputs {names}: give a mapping of these names to arrays")
    found = tuple({inputs[0].name: _one(inputs[0], image)} for image in _images(inputs[0], images))
    if not found:
        raise InputError("images: there is none")
    return found


def save_benchmark(name: str, figures: Mapping[str, float], session: Session, folder: str | Path | None = None) -> Path:
    """Keeps figures as `benchmarks/{name}.json`, where `compare_model_versions` finds them.

    Raises:
        InputError: `name` cannot be the name of a release.
    """
    check_form(name)
    path = _path(open_folder(folder), name)
    path.parent.mkdir(exist_ok=True)
    kept = Benchmark(
        figures={key: round(float(value), 4) for key, value in figures.items()},
        providers=tuple(session.get_providers()),
        machine="; ".join(filter(None, (board(), gpu()))),
        taken=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(to_json(kept) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return path


def find_benchmark(name: str, folder: Folder) -> Benchmark | None:
    """Kept figures, or None where there are none.

    Raises:
        InputError: the file is bad.
    """
    path = _path(folder, name)
    return from_json(Benchmark, path.read_bytes(), str(path)) if path.is_file() else None


def _figures(seconds: NDArray[np.float64], resident: NDArray[np.float64]) -> dict[str, float]:
    times = Latency.of(1000 * seconds)
    return {
        "avg_inference_time_ms": times.mean,
        "std_inference_time_ms": times.std,
        "p50_inference_time_ms": times.p50,
        "p95_inference_time_ms": times.p95,
        "p99_inference_time_ms": times.p99,
        "avg_memory_usage_mb": float(resident.mean()),
        "peak_memory_usage_mb": float(resident.max()),
        "memory_growth_mb": float(resident[-1] - resident[0]),
        "fps": 1000 / times.mean,
    }


def _images(port: Port, images: Any) -> Sequence[Any]:
    """The images one by one: an array with an axis more than an image, or with an open first one, is several."""
    if isinstance(images, list | tuple):
        return images
    array = np.asarray(images)
    rank = len(port.shape)
    is_whole = array.ndim == rank and fits(port.shape, array.shape) and isinstance(port.shape[0], int)
    is_one = not rank or array.ndim == rank - 1 or is_whole
    return [array] if is_one else list(array)


def _one(port: Port, image: ArrayLike) -> NDArray[Any]:
    array = _fitting(port, image)
    if array is None:
        wanted = f"{DTYPES.get(port.type, port.type)} {list(port.shape)}"
        raise InputError(f"images: {list(np.shape(image))} does not fit the input {port.name}, which wants {wanted}")
    return array


def _fitting(port: Port, image: ArrayLike) -> NDArray[Any] | None:
    """The image as the input takes it, with a batch axis where only that is missing; None where it does not fit."""
    array = np.asarray(image)
    for each in (array, array[None]):
        if fits(port.shape, each.shape):
            return np.ascontiguousarray(each, DTYPES.get(port.type))
    return None


def _path(folder: Folder, name: str) -> Path:
    return folder.path / "benchmarks" / f"{name}.json"
