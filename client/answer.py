"""What a client gets: an answer, or an error that says who must act.

RequestError: you. What you asked does not fit the model, or there is no such model.
ModelError: the model. It failed on this input; the device has noticed.
UnavailableError: nobody. The runner or a model is not there now: ask again in a moment.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from agent.core.messages import Denied


@dataclass(frozen=True, slots=True)
class Answer:
    """Outputs by name, and what made them. The arrays are copies: yours to keep and to change."""

    outputs: Mapping[str, NDArray[Any]]
    release: str
    candidate: str
    is_finite: bool  # False: it holds NaN or Inf, and the frame held none

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.outputs[name]

    @property
    def version(self) -> str:
        """The date in the release's name, which is the model's version in the Open Inference Protocol."""
        return self.release.rpartition("_")[2]


class ClientError(Exception):
    """Any error of the client."""


class RequestError(ClientError):
    """The request is at fault: mend it."""


class ModelError(ClientError):
    """The model failed on this input."""


class UnavailableError(ClientError):
    """Nothing answers now: ask again in a moment."""


def error_of(denied: Denied) -> ClientError:
    """The runner's refusal as an error."""
    kind = {"client": RequestError, "model": ModelError, "nobody": UnavailableError}[denied.blame]
    return kind(denied.reason)
