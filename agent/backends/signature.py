"""A model's tensors are the declared ones, or it is not the model that was published."""

from collections.abc import Sequence

from agent.backends.session import DTYPES, Port, Session, fits
from agent.core.errors import BackendError, Kind
from agent.core.release import Metadata, Tensor


def check_tensors(session: Session, metadata: Metadata) -> None:
    """Return when inputs and outputs are as declared; a size of -1, or a symbolic one, is any size.

    Raises:
        BackendError: STRUCTURE; says which tensor differs, and how.
    """
    _check("input", metadata.inputs, session.get_inputs())
    _check("output", metadata.outputs, session.get_outputs())


def _check(side: str, declared: Sequence[Tensor], given: Sequence[Port]) -> None:
    ports = {port.name: port for port in given}
    if {tensor.name for tensor in declared} != ports.keys():
        names = sorted(tensor.name for tensor in declared)
        raise BackendError(f"{side}s: declared are {names}, the model has {sorted(ports)}", Kind.STRUCTURE)
    for tensor in declared:
        port = ports[tensor.name]
        dtype = DTYPES.get(port.type, port.type)
        if dtype != tensor.dtype or not fits(port.shape, tensor.shape):
            raise BackendError(
                f"{side} {tensor.name}: declared {tensor.dtype} {list(tensor.shape)}, "
                f"the model has {dtype} {list(port.shape)}",
                Kind.STRUCTURE,
            )
