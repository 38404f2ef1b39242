"""Every datatype that a release can declare passes the door, as bytes and as JSON, to the last bit."""

import io
import json

import numpy as np
import pytest
import pytest_asyncio
from onnx import helper

from agent.core.messages import Unload
from agent.runner.open_inference import DATATYPES
from tests.runner.conftest import Camera, altered, release

SHAPE = (-1, 2, 3)  # any number of rows
ROWS = 4


def of(dtype: str, rows: int = ROWS) -> np.ndarray:
    """Numbers of a type, with its largest and smallest."""
    kind = np.dtype(dtype).kind
    chance = np.random.default_rng(rows)
    if kind == "b":
        return chance.integers(0, 2, (rows, 2, 3)).astype(bool)
    limits = np.iinfo(dtype) if kind in "iu" else np.finfo(dtype)
    some = chance.integers(0, 100, (rows, 2, 3)).astype(dtype)
    some.flat[:4] = limits.min, limits.max, 0, 1
    return some


def every_type():
    """A release whose every output is the input of that type."""
    one = release(1)
    tensors = [{"name": dtype, "shape": SHAPE, "dtype": dtype} for dtype in DATATYPES.values()]
    metadata = json.loads(one.parts["metadata.json"])
    outputs = [{**tensor, "name": f"same_{tensor['name']}"} for tensor in tensors]
    golden = io.BytesIO()
    samples = {dtype: of(dtype, 1)[None] for dtype in DATATYPES.values()}
    np.savez(
        golden,
        **{f"in.{dtype}": sample for dtype, sample in samples.items()},
        **{f"out.same_{dtype}": sample for dtype, sample in samples.items()},
    )
    one = altered(one, "metadata.json", json.dumps(metadata | {"inputs": tensors, "outputs": outputs}).encode())
    one = altered(one, "golden.npz", golden.getvalue())
    return altered(one, "model.onnx", network())


def network() -> bytes:
    nodes, inputs, outputs = [], [], []
    for dtype in DATATYPES.values():
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        inputs.append(helper.make_tensor_value_info(dtype, kind, ["n", 2, 3]))
        outputs.append(helper.make_tensor_value_info(f"same_{dtype}", kind, ["n", 2, 3]))
        nodes.append(helper.make_node("Identity", [dtype], [f"same_{dtype}"]))
    graph = helper.make_graph(nodes, "types", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(shared):
    agent, one = await shared.agent(), every_type()
    await agent.serve("types", one)
    yield "types"
    await agent.ask(Unload(slot="types", place=one.place))
    await agent.client.close()


async def infer(camera: Camera, slot: str, rows: int, *, binary_in: bool, binary_out: bool):
    """The outputs by type, as they came."""
    arrays = {dtype: of(dtype, rows) for dtype in DATATYPES.values()}
    inputs, raw = [], b""
    for datatype, dtype in DATATYPES.items():
        tensor = {"name": dtype, "datatype": datatype, "shape": arrays[dtype].shape}
        if binary_in:
            tensor["parameters"] = {"binary_data_size": arrays[dtype].nbytes}
            raw += arrays[dtype].tobytes()
        else:
            tensor["data"] = arrays[dtype].tolist()
        inputs.append(tensor)
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": binary_out}}).encode()
    length = {"Inference_Header_Content_Length": str(len(head))}
    answer = await camera.ask("POST", f"/v2/models/{slot}/infer", head + raw, **length)
    assert answer.status == 200, answer.json
    return arrays, answer


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
async def test_every_type_passes(camera, served, binary_in, binary_out):
    """What goes in as bytes or JSON comes out as bytes or JSON, with the same numbers, for one row and many."""
    for rows in (1, 7):
        arrays, answer = await infer(camera, served, rows, binary_in=binary_in, binary_out=binary_out)
        place = int(answer.headers.get("inference-header-content-length", 0))
        for output in answer.json["outputs"]:
            dtype = output["name"].removeprefix("same_")
            assert DATATYPES[output["datatype"]] == dtype
            if binary_out:
                size = output["parameters"]["binary_data_size"]
                got = np.frombuffer(answer.body[place : place + size], dtype)
                place += size
            else:
                got = np.array(output["data"], dtype)
            np.testing.assert_array_equal(got.reshape(output["shape"]), arrays[dtype])


async def test_text_is_refused(camera, served):
    """BYTES is a datatype of the protocol; no release can declare it, and the refusal says so."""
    tensor = {"name": "uint8", "datatype": "BYTES", "shape": [1], "data": ["text"]}
    answer = await camera.ask("POST", f"/v2/models/{served}/infer", json.dumps({"inputs": [tensor]}).encode())
    assert answer.status == 400
    assert answer.json["error"].startswith("input uint8: no model takes BYTES: a release has tensors of numbers alone")


async def test_not_a_number_is_null_in_json(camera, served):
    """JSON knows no NaN and no Inf: they are null there, and themselves in bytes."""
    arrays = {dtype: of(dtype, 1) for dtype in DATATYPES.values()}
    arrays["float32"].flat[:3] = np.nan, np.inf, -np.inf
    inputs = [
        {"name": dtype, "datatype": datatype, "shape": (1, 2, 3), "parameters": {"binary_data_size": one.nbytes}}
        for (datatype, dtype), one in zip(DATATYPES.items(), arrays.values(), strict=True)
    ]
    head = json.dumps({"inputs": inputs, "outputs": [{"name": "same_float32"}]}).encode()
    length = {"Inference_Header_Content_Length": str(len(head))}
    raw = b"".join(one.tobytes() for one in arrays.values())
    answer = await camera.ask("POST", f"/v2/models/{served}/infer", head + raw, **length)
    assert answer.json["outputs"][0]["data"][:4] == [None, None, None, arrays["float32"].flat[3]]
