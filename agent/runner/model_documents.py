"""What a slot says of its model, as the Open Inference Protocol's documents: for every door the same.

The model's name is the slot, its version the date of the release that serves. Another one is not here, though it may be
on the device. Sources: as for requests, and Triton's extensions statistics, model_configuration and model_repository.
"""

from collections.abc import Iterable
from typing import Any

from agent.core.errors import InputError
from agent.core.release import Tensor
from agent.runner.http_head import unavailable
from agent.runner.open_inference import NAMES
from agent.runner.serving import Answered
from agent.runner.slots import Slot
from agent.runner.tally import Statistics


class OtherVersionError(InputError):
    """A request names a version that does not serve."""


def check_version(slot: Slot, name: str, version: str | None) -> None:
    """Return when `version` is the serving one, or none is asked for.

    Raises:
        OtherVersionError: it is another.
    """
    serving = version_of(name)
    if version not in {None, serving}:
        raise OtherVersionError(f"{slot.name} serves version {serving}; version {version} is not here")


def response_head(slot: Slot, answered: Answered) -> dict[str, Any]:
    """Whose answer it is."""
    place = answered.seat.place
    parameters: dict[str, Any] = {"release": place.ref.name, "candidate": str(place.candidate)}
    if not answered.ran.finite:
        parameters["finite"] = False
    return {"model_name": slot.name, "model_version": version_of(place.ref.name), "parameters": parameters}


def model_answer(slot: Slot, version: str | None, what: str | None) -> Any:
    """A document about one model: what a client asks first, its state, its statistics, or its configuration.

    Raises:
        HttpError: no model serves.
        OtherVersionError: another version does.
    """
    if what == "stats":
        return {"model_stats": stats_of(slot, version)}
    seat = slot.serving
    if seat is None:
        raise unavailable(f"{slot.name}: no model serves at the moment", slot.hold_s)
    name, metadata = seat.place.ref.name, seat.held.metadata
    check_version(slot, name, version)
    said = {"name": slot.name, "platform": f"{seat.place.candidate.backend}_onnx"}  # as Triton would say it
    match what:
        case "ready":
            return {"name": slot.name, "ready": True}
        case "config":  # as Triton writes it; the batch stands in the shapes
            tensors = {"input": _configs(metadata.inputs), "output": _configs(metadata.outputs)}
            return {**said, "backend": "edge-runner", "max_batch_size": 0, **tensors}
    tensors = {"inputs": _tensors(metadata.inputs), "outputs": _tensors(metadata.outputs)}
    return {**said, "versions": [version_of(name)], **tensors}


def _tensors(tensors: Iterable[Tensor]) -> list[Any]:
    return [{"name": one.name, "datatype": NAMES[one.dtype], "shape": one.shape} for one in tensors]


def _configs(tensors: Iterable[Tensor]) -> list[Any]:
    return [{"name": one.name, "data_type": f"TYPE_{NAMES[one.dtype]}", "dims": one.shape} for one in tensors]


def stats_of(slot: Slot, version: str | None) -> list[Any]:
    """The statistics of one version, or of all that are loaded and have served.

    Raises:
        OtherVersionError: that one has not.
    """
    found = {version_of(name): one for name, one in slot.statistics.items()}
    if version is not None and version not in found:
        raise OtherVersionError(f"{slot.name}: version {version} has no statistics; there are {sorted(found)}")
    return [stats_entry(slot.name, one, found[one]) for one in found if version in {None, one}]


def index_entry(slot: Slot) -> dict[str, str]:
    """One line of the model repository's index."""
    if slot.serving is None:
        return {"name": slot.name, "state": "UNAVAILABLE", "reason": "no model serves at the moment"}
    return {"name": slot.name, "version": version_of(slot.serving.place.ref.name), "state": "READY", "reason": ""}


def version_of(name: str) -> str:
    """The date in a release's name, which is the version of a model."""
    return name.rpartition("_")[2]


def stats_entry(slot: str, version: str, counted: Statistics) -> dict[str, Any]:
    """One version's statistics as Triton writes them; a request is one inference and one execution."""

    def entry(count: int, seconds: float) -> dict[str, int]:
        return {"count": count, "ns": round(seconds * 1e9)}

    answered = counted.answered
    computed = {
        "compute_input": entry(answered, counted.input_s),
        "compute_infer": entry(answered, counted.infer_s),
        "compute_output": entry(answered, 0.0),
    }
    inference = {
        "success": entry(answered, counted.answered_s),
        "fail": entry(counted.failed + counted.late, counted.failed_s),
        "queue": entry(answered, counted.queue_s),
        **computed,
        "cache_hit": entry(0, 0.0),
        "cache_miss": entry(0, 0.0),
    }
    return {
        "name": slot,
        "version": version,
        "last_inference": round(counted.last * 1000),
        "inference_count": answered,
        "execution_count": answered,
        "inference_stats": inference,
        "batch_stats": [{"batch_size": 1, **computed}] if answered else [],
    }
