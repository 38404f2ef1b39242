"""The head of an ONNX file, read without a runtime and without its weights.

1. The file is mapped, and only lengths are followed: a file of a gigabyte costs as much as one of a kilobyte.
2. Whatever is not a whole ONNX model is an InputError; nothing else is ever raised for its bytes.

Wire format: protocol buffers (protobuf.dev/programming-guides/encoding); numbers of fields: onnx.proto.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.core.errors import BackendError, InputError, Kind
from agent.core.release import Compatibility

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_IR_VERSION, _GRAPH, _OPSET = 1, 7, 8  # of ModelProto
_INITIALIZER, _INPUT, _OUTPUT = 5, 11, 12  # of GraphProto
_DATA_TYPE, _TENSOR_NAME, _DATA_LOCATION = 2, 8, 14  # of TensorProto
_PRECISIONS = {1: "fp32", 2: "int8", 3: "int8", 10: "fp16", 16: "bf16"}  # of TensorProto.DataType

Value = int | memoryview


@dataclass(frozen=True, slots=True)
class OnnxHead:
    """What an ONNX file says about itself."""

    opset: int  # the version of the standard operators
    inputs: tuple[str, ...]  # without those that have a value in the file
    outputs: tuple[str, ...]
    precisions: frozenset[str]  # of the weights: fp32, fp16, bf16, int8


def read_head(path: str | Path) -> OnnxHead:
    """The head of the ONNX file at `path` (which may be `/proc/self/fd/N`).

    Raises:
        InputError: it is not there, truncated, or not an ONNX model.
    """
    try:
        with Path(path).open("rb") as file:  # the map goes with its last view, which an error may still hold
            return parse_head(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), str(path))
    except (OSError, ValueError) as error:  # an empty file cannot be mapped: ValueError
        raise InputError(f"{path}: this is not an ONNX model: {error}; export it again") from error


def parse_head(content: bytes | mmap.mmap, where: str) -> OnnxHead:
    """The head of an ONNX model in memory; as `read_head`."""
    with memoryview(content) as view:
        try:
            return _model(view, where)
        except (_TruncatedError, UnicodeDecodeError) as error:
            raise InputError(f"{where}: this ONNX model is truncated or not one: {error}; export it again") from None


def check_compatibility(head: OnnxHead, needs: Compatibility, runtime: str, version: str) -> None:
    """Return when a runtime can be expected to load the model.

    Args:
        head: of the model's file.
        needs: what its metadata declares.
        runtime: its name, as in `minimum_runtime`.
        version: its version.

    Raises:
        BackendError: the file is not what was declared (STRUCTURE), or the runtime is too old (BACKEND).
    """
    if head.opset != needs.opset:
        raise BackendError(
            f"the model is of opset {head.opset}; its metadata says {needs.opset}: publish it again", Kind.STRUCTURE
        )
    minimum = needs.minimum_runtime.get(runtime)
    if minimum is not None and _numbers(version) < _numbers(minimum):
        raise BackendError(f"{runtime} {version} is older than {minimum}, which the release needs: update {runtime}")


def check_opset(head: OnnxHead, runtime: str, version: str, opset: int) -> None:
    """Return when a runtime knows the model's operators.

    Raises:
        BackendError: says which opset the model has, what the runtime supports, and what to do.
    """
    if head.opset > opset:
        raise BackendError(
            f"the model is of opset {head.opset}; {runtime} {version} supports up to {opset}: "
            f"update {runtime}, or export the model with opset {opset} or lower"
        )


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.replace("-", ".").split(".")[:3]
    return tuple(int(part) if part.isdigit() else 0 for part in parts)


class _TruncatedError(Exception):
    """A length points behind the end, or a number does not end."""


def _model(view: memoryview, where: str) -> OnnxHead:
    ir_version = 0
    opsets: dict[str, int] = {}
    graph: memoryview | None = None
    for number, value in _fields(view):
        if number == _IR_VERSION and isinstance(value, int):
            ir_version = value
        elif number == _OPSET and isinstance(value, memoryview):
            domain, version = _opset(value)
            opsets[domain] = version
        elif number == _GRAPH and isinstance(value, memoryview):
            graph = value
    if not ir_version or graph is None or not opsets:
        raise InputError(f"{where}: this is not an ONNX model: it lacks version, operators or graph; export it again")
    inputs, outputs, precisions = _graph(graph)
    return OnnxHead(opsets.get("", 0), inputs, outputs, precisions)


def _opset(view: memoryview) -> tuple[str, int]:
    fields = dict(_fields(view))
    domain, version = _text(fields.get(1)), fields.get(2)
    return "" if domain == "ai.onnx" else domain, version if isinstance(version, int) else 0


def _graph(view: memoryview) -> tuple[tuple[str, ...], tuple[str, ...], frozenset[str]]:
    inputs, outputs, valued, types = [], [], set(), set()
    for number, value in _fields(view):
        if isinstance(value, int):
            continue
        if number == _INITIALIZER:
            fields = dict(_fields(value))
            if fields.get(_DATA_LOCATION):
                raise _TruncatedError("its weights lie in another file")  # of this device, by any path
            valued.add(_text(fields.get(_TENSOR_NAME)))
            types.add(fields.get(_DATA_TYPE))
        elif number == _INPUT:
            inputs.append(_text(dict(_fields(value)).get(1)))
        elif number == _OUTPUT:
            outputs.append(_text(dict(_fields(value)).get(1)))
    precisions = frozenset(_PRECISIONS[kind] for kind in types if isinstance(kind, int) and kind in _PRECISIONS)
    return tuple(name for name in inputs if name not in valued), tuple(outputs), precisions


def _text(value: Value | None) -> str:
    return str(value, "utf-8") if isinstance(value, memoryview) else ""


def _fields(view: memoryview) -> Iterator[tuple[int, Value]]:
    """The fields of one message: numbers as int, everything of a length as a view of its bytes."""
    place = 0
    while place < len(view):
        key, place = _varint(view, place)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, place = _varint(view, place)
            yield number, value
            continue
        if wire == _BYTES:
            size, place = _varint(view, place)
        elif wire in {_FIXED64, _FIXED32}:
            size = 8 if wire == _FIXED64 else 4
        else:
            raise _TruncatedError(f"unknown field kind {wire}")
        if size > len(view) - place:
            raise _TruncatedError(f"a field of {size} bytes where {len(view) - place} are left")
        yield number, view[place : place + size]
        place += size


def _varint(view: memoryview, place: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):  # ten bytes hold 64 bits
        if place >= len(view):
            raise _TruncatedError("a number without an end")
        byte = view[place]
        place += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follows
            return result, place
    raise _TruncatedError("a number of more than 64 bits")
