"""A session is a loaded model: what ONNX Runtime's session offers, on every backend, plus `engine` and `close`.

1. A session computes on the backend that was asked for, or it does not exist.
2. Feeds of a wrong name, shape or dtype raise InputError and change nothing; a backend that fails raises BackendError.
3. After `close` a session is of no use, and what it held is given back.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from agent.core.errors import InputError
from agent.core.release import Dtype

Array = NDArray[Any]
Feeds = Mapping[str, Array]

_C_NAMES = {"float32": "float", "float64": "double"}
DTYPES: Mapping[str, Dtype] = {  # ONNX Runtime's name of a tensor type: numpy's name of its elements
    f"tensor({_C_NAMES.get(name, name)})": name for name in get_args(Dtype)
}
TYPES: Mapping[str, str] = {dtype: kind for kind, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output, as ONNX Runtime describes it (`onnxruntime.NodeArg`)."""

    name: str
    shape: Sequence[int | str | None]  # a text or None is any size
    type: str  # for example `tensor(float)`


class Session(Protocol):
    """A loaded model."""

    def run(self, output_names: Sequence[str] | None, input_feed: Feeds, run_options: Any = None) -> list[Array]:
        """The outputs named, or all, in order.

        Raises:
            InputError: a feed does not fit.
            BackendError: the backend failed.
        """

    def get_inputs(self) -> Sequence[Port]:
        """The inputs, in order."""

    def get_outputs(self) -> Sequence[Port]:
        """The outputs, in order."""

    def get_providers(self) -> Sequence[str]:
        """Where it computes, first choice first."""

    def engine(self) -> memoryview | None:
        """What was built for this device, which `open_session` takes back; None: the backend has no such thing.

        It holds the weights.
        """

    def close(self) -> None:
        """Give back what it holds."""


class Ports:
    """What the sessions beside ONNX Runtime's do alike: the feeds are checked, one inference runs at a time."""

    def __init__(self, inputs: Iterable[Port], outputs: Iterable[Port]) -> None:
        self._inputs, self._outputs, self._lock = tuple(inputs), tuple(outputs), Lock()

    def run(self, output_names: Sequence[str] | None, input_feed: Feeds, run_options: Any = None) -> list[Array]:
        """As `Session.run`; `run_options` are ONNX Runtime's and mean nothing here."""
        del run_options
        places = select([port.name for port in self._outputs], output_names)
        check_feeds(self._inputs, input_feed)
        with self._lock:
            outputs = self._computed([np.ascontiguousarray(input_feed[port.name]) for port in self._inputs])
        return [outputs[place] for place in places]

    def _computed(self, feeds: Sequence[Array]) -> Sequence[Array]:
        """All outputs for the inputs, both in the order of the ports."""
        raise NotImplementedError

    def get_inputs(self) -> Sequence[Port]:
        """As `Session.get_inputs`."""
        return self._inputs

    def get_outputs(self) -> Sequence[Port]:
        """As `Session.get_outputs`."""
        return self._outputs


def check_feeds(inputs: Sequence[Port], feeds: Feeds) -> None:
    """Return when the feeds fit the inputs; for backends that would cast or guess.

    Raises:
        InputError: says which feed is missing, unknown, or of another shape or dtype.
    """
    wanted = {port.name: port for port in inputs}
    if feeds.keys() != wanted.keys():
        raise InputError(f"feeds: the inputs are {sorted(wanted)}; given are {sorted(feeds)}")
    for name, port in wanted.items():
        given, dtype = feeds[name], DTYPES[port.type]
        if np.asarray(given).dtype.name != dtype or not fits(port.shape, np.shape(given)):
            raise InputError(
                f"input {name}: wants {dtype} {list(port.shape)}; got {np.asarray(given).dtype} {list(np.shape(given))}"
            )


def fits(declared: Sequence[int | str | None], given: Sequence[int | str | None]) -> bool:
    """Whether a tensor of the one shape can be given for the other.

    A negative size, a text and None are any size; an empty declared shape is one of no known rank.
    """
    return not declared or (
        len(declared) == len(given)
        and all(_is_open(one) or _is_open(other) or one == other for one, other in zip(declared, given, strict=True))
    )


def select(names: Sequence[str], wanted: Sequence[str] | None) -> list[int]:
    """The places of the wanted outputs among all; all when none is named.

    Raises:
        InputError: there is no such output.
    """
    unknown = set(wanted or ()) - set(names)
    if unknown:
        raise InputError(f"outputs: the model has {list(names)}; asked for are {sorted(unknown)}")
    return [names.index(name) for name in wanted or names]


def _is_open(size: int | str | None) -> bool:
    return not isinstance(size, int) or size < 0
