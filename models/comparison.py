"""What changed from one version of a model to another.

1. A positive difference is: more accurate, faster, larger. Phrases are for people, in Korean.
2. Speed is compared by kept benchmark figures where both versions have them from the same machine and providers, and
   by the metadata else; `speed_source` says which.
3. A figure that one version has not is None, and is not guessed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.benchmark import find_benchmark
from models.folder import open_folder
from models.loading import get_model_metadata

Comparison = dict[str, Any]


def compare_model_versions(
    model: str, version1: str, version2: str, folder: str | Path | None = None
) -> Comparison | None:
    """The second version against the first; None where one of them has no metadata.

    Args:
        model: a name without its date, for example face_detection_retinaface_widerface.
        version1: a date (YYYYMMDD, with `-2` for a second build).
        version2: another one.
        folder: the models folder; else EDGE_MODELS, else the package's own.

    Returns:
        accuracy_diff (share), speed_diff (ms saved), size_diff (MB), the same as ..._percent of the first version,
        speed_source, improvements and regressions.

    Raises:
        InputError: a document is bad.
    """
    names = f"{model}_{version1}", f"{model}_{version2}"
    first, second = (get_model_metadata(name, folder) for name in names)
    if not first or not second:
        return None
    (old_ms, new_ms), source = _speeds(names, first, second, folder)
    accuracy = _difference(first.get("accuracy"), second.get("accuracy"))
    speed = _difference(new_ms, old_ms)
    size = _difference(first.get("model_size_mb"), second.get("model_size_mb"))
    improvements, regressions = _phrases(accuracy, speed)
    return {
        "accuracy_diff": accuracy,
        "speed_diff": speed,
        "size_diff": size,
        "accuracy_diff_percent": _percent(accuracy, first.get("accuracy")),
        "speed_diff_percent": _percent(speed, old_ms),
        "size_diff_percent": _percent(size, first.get("model_size_mb")),
        "speed_source": source,
        "improvements": improvements,
        "regressions": regressions,
    }


def _speeds(
    names: tuple[str, str], first: Mapping[str, Any], second: Mapping[str, Any], folder: str | Path | None
) -> tuple[tuple[float | None, float | None], str]:
    """Milliseconds of one inference, old and new, and where they come from."""
    place = open_folder(folder)
    old, new = (find_benchmark(name, place) for name in names)
    if old is not None and new is not None and (old.machine, old.providers) == (new.machine, new.providers):
        key = "avg_inference_time_ms"
        return (old.figures.get(key), new.figures.get(key)), "benchmarks"
    return (first.get("inference_time"), second.get("inference_time")), "metadata"


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else second - first


def _percent(difference: float | None, whole: float | None) -> float | None:
    return None if difference is None or not whole else 100 * difference / whole


def _phrases(accuracy: float | None, speed: float | None) -> tuple[list[str], list[str]]:
    found = (
        (accuracy, "정확도 {:.3f} 향상", "정확도 {:.3f} 감소"),
        (speed, "속도 {:.1f}ms 향상", "속도 {:.1f}ms 감소"),
    )
    better = [up.format(value) for value, up, _ in found if value is not None and value > 0]
    worse = [down.format(-value) for value, _, down in found if value is not None and value < 0]
    return better, worse
