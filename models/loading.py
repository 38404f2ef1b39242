"""From a name to what a program needs: a session, the metadata, the config.

1. A device that is named and absent is an error. Only "auto" looks for another one; `get_providers()` tells which.
2. A model that is not there has no metadata and no config (None); a document that is there and bad is an error.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from msgspec import Meta

from agent.backends import open_session, probe_backend
from agent.backends.session import DTYPES, Port, Session
from agent.core.candidate import Backend, Candidate
from agent.core.documents import OpenDocument, from_tree
from agent.core.errors import BackendError, InputError, Kind
from agent.core.release import Config, NonNegative, Share, Tensor, as_list
from models.folder import Folder, open_folder
from models.storage import opened

Device = Literal["auto", "tensorrt", "cuda", "openvino", "cpu"]
_UNTOLD = Config(input_size=(1, 1), confidence_threshold=0.0)  # how to run a model that has no config


class _Figures(OpenDocument):
    """The keys of metadata that programs read everywhere: wrong ones are told, other keys are left alone."""

    version: str | int | float | None = None
    accuracy: Share | None = None
    inference_time: NonNegative | None = None  # ms
    model_size_mb: NonNegative | None = None
    name: Annotated[str, Meta(min_length=1)] | None = None


def load_model(name: str, device: Device = "auto", folder: str | Path | None = None) -> Session:
    """A session that answers as ONNX Runtime's does: run, get_inputs, get_outputs, get_providers; and close.

    Args:
        name: of the release, without a file ending.
        device: a backend, or "auto" for the first of the config's backends that works here. Loading on TensorRT
            builds an engine, which takes minutes.
        folder: the models folder; else EDGE_MODELS, else the package's own.

    Raises:
        ModelNotFoundError: there are no weights of that name.
        InputError: the device is unknown, or the config or the weights are bad.
        BackendError: the device is absent or cannot run the model.
    """
    if device not in get_args(Device):
        raise InputError(f"device {device!r}: one of {', '.join(get_args(Device))}")
    place = open_folder(folder)
    weights = place.weights(name)
    config = config_of(place, name)
    with opened(weights) as path:
        if device == "auto":
            return _first_that_works(path, config)
        return _named(path, config, Backend(device))


def get_model_metadata(name: str, folder: str | Path | None = None) -> dict[str, Any] | None:
    """The metadata of a release, as in its file; None where there is none.

    Raises:
        InputError: the document is bad, or could be of several releases.
    """
    found = open_folder(folder).metadata(name)
    if found is None:
        return None
    path, tree = found
    from_tree(_Figures, tree, str(path))
    return tree


def load_model_config(name: str, folder: str | Path | None = None) -> dict[str, Any] | None:
    """The config of a release, as in its file; None where there is none. Raises as `get_model_metadata`."""
    found = open_folder(folder).config(name)
    if found is None:
        return None
    path, tree = found
    from_tree(Config, tree, str(path))
    return tree


def config_of(folder: Folder, name: str) -> Config:
    """The config of a release as a value; one that says nothing where there is none."""
    found = folder.config(name)
    return _UNTOLD if found is None else from_tree(Config, found[1], str(found[0]))


def _named(path: str, config: Config, backend: Backend) -> Session:
    try:
        return _open(path, config, backend)
    except BackendError as error:
        found = probe_backend(backend)
        raise error if found.present else BackendError(f"{backend} is absent here: {found.reason}") from error


def _first_that_works(path: str, config: Config) -> Session:
    reasons: list[str] = []
    for name in config.backends:
        try:
            return _open(path, config, Backend(name))
        except BackendError as error:
            reasons.append(str(error))
    raise BackendError(f"no backend of the config runs it here: {'; '.join(reasons)}")


def _open(path: str, config: Config, backend: Backend) -> Session:
    device = str(as_list(config.options(backend).get("device", ""))[0])
    precision = config.precisions_on(backend)[0]
    try:
        return open_session(path, Candidate(backend=backend, precision=precision, device=device), config)
    except BackendError as error:
        if error.kind is Kind.STRUCTURE:
            raise InputError(f"{error}; take the model from a backup, or export it again") from error
        raise


def tensors(ports: Sequence[Port]) -> tuple[Tensor, ...]:
    """A session's inputs or outputs as they would be declared."""
    return tuple(
        Tensor(
            name=port.name,
            shape=tuple(size if isinstance(size, int) else -1 for size in port.shape),
            dtype=DTYPES[port.type],
        )
        for port in ports
    )
