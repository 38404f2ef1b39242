"""Small models, made with onnx, that behave in one chosen way."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SHAPE = (1, 3, 8, 8)
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


def save(path, nodes, inputs, outputs, initializers=(), opset=17):
    graph = helper.make_graph(nodes, "graph", inputs, outputs, [numpy_helper.from_array(a, n) for n, a in initializers])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def tensor(name, shape, dtype="float32"):
    return helper.make_tensor_value_info(name, TYPES[dtype], shape)


def network(path, name="input", shape=SHAPE, opset=17, seed=0, *, listed=False):
    """A convolution and its mean: outputs `features` [1, 4, 8, 8] and `scores` [1, 4]."""
    weight = np.random.default_rng(seed).normal(size=(4, shape[1], 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", [name, "weight"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["scores"]),
    ]
    inputs = [tensor(name, shape)] + ([tensor("weight", weight.shape)] if listed else [])
    outputs = [tensor("features", (shape[0], 4, *shape[2:])), tensor("scores", (shape[0], 4))]
    return save(path, nodes, inputs, outputs, [("weight", weight)], opset)


def chain(path, ops, shape=(1, 4), dtype="float32", weight=None):
    """`output` = the ops one after another on `input`; each with `weight` as second operand where one is given."""
    more = ["w"] if weight is not None else []
    names = ["input", *(f"t{place}" for place in range(len(ops) - 1)), "output"]
    nodes = [helper.make_node(op, [names[place], *more], [names[place + 1]]) for place, op in enumerate(ops)]
    initializers = [("w", weight)] if weight is not None else []
    return save(path, nodes, [tensor("input", shape, dtype)], [tensor("output", shape, dtype)], initializers)
