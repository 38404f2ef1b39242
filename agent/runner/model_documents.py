"""What a slot says of its model, as the Open Inference Protocol's documents: for every door the same.

A version is the date of the release that serves. Another one is not here, though it may be on the device.
"""

from typing import Any

from agent.core.errors import InputError
from agent.runner.answers import Answered
from agent.runner.http_head import unavailable
from agent.runner.open_inference import config_document, model_document, stats_entry, version_of
from agent.runner.slots import Slot


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
    """A document about one model.

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
    platform = f"{seat.place.candidate.backend}_onnx"  # as Triton would say it
    match what:
        case "ready":
            return {"name": slot.name, "ready": True}
        case "config":
            return config_document(slot.name, platform, metadata)
    return model_document(slot.name, version_of(name), platform, metadata)


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
