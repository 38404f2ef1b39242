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


def in_precision(source, path, precision):
    """The model at `source` with the weights of its convolutions in fp16 or int8, and its inputs and outputs as they were."""
    model = onnx.load(str(source))
    used = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    for weight in [one for one in model.graph.initializer if one.name in used]:
        array, name = numpy_helper.to_array(weight), f"{weight.name}_{precision}"
        scale = max(float(np.abs(array).max()) / 127, 1e-12)
        stored = array.astype(np.float16) if precision == "fp16" else np.round(array / scale).astype(np.int8)
        model.graph.initializer.remove(weight)
        model.graph.initializer.append(numpy_helper.from_array(stored, name))
        node = helper.make_node("Cast", [name], [weight.name], to=TensorProto.FLOAT)
        if precision == "int8":
            model.graph.initializer.append(numpy_helper.from_array(np.float32(scale), f"{name}_scale"))
            node = helper.make_node("DequantizeLinear", [name, f"{name}_scale"], [weight.name])
        model.graph.node.insert(0, node)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def detector(path, batch=1, dtype="float32", size=640, width=16):
    """A detector's backbone and heads, of YOLOv8n's size at 640 pixels (8 GFLOP): `output` [batch, cells, 84]."""
    made = _Layers(dtype)
    x = made.conv("input", 3, width, stride=2)
    ends, channels = [], width
    for blocks in (1, 2, 2, 1):
        x = made.conv(x, channels, 2 * channels, stride=2)
        channels *= 2
        for _ in range(blocks):
            x = made.node("Add", x, made.conv(made.conv(x, channels, channels), channels, channels))
        ends.append((x, channels))
    heads = [made.head(end, channels, 4 * width) for end, channels in ends[1:]]
    made.node("Concat", *heads, output="output", axis=1)
    cells = sum((size // stride) ** 2 for stride in (8, 16, 32))
    inputs, outputs = [tensor("input", (batch, 3, size, size), dtype)], [tensor("output", (batch, cells, 84), dtype)]
    return save(path, made.nodes, inputs, outputs, made.weights)


class _Layers:
    """Nodes and their weights, so scaled that what comes out is about as large as what goes in."""

    def __init__(self, dtype):
        self.nodes, self.weights, self.dtype, self.chance = [], [], dtype, np.random.default_rng(0)

    def node(self, op, *inputs, output=None, **attributes):
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def conv(self, x, given, made, kernel=3, stride=1):
        name = f"w{len(self.weights)}"
        weight = self.chance.normal(size=(made, given, kernel, kernel)) / np.sqrt(given) / kernel
        self.weights.append((name, weight.astype(self.dtype)))
        x = self.node("Conv", x, name, strides=[stride] * 2, pads=[kernel // 2] * 4)
        return self.node("Mul", x, self.node("Sigmoid", x))

    def head(self, x, given, width):
        x = self.conv(self.conv(self.conv(x, given, width), width, width), width, 84, kernel=1)
        shape = f"w{len(self.weights)}"
        self.weights.append((shape, np.array([0, 84, -1], np.int64)))
        return self.node("Sigmoid", self.node("Transpose", self.node("Reshape", x, shape), perm=[0, 2, 1]))


def chain(path, ops, shape=(1, 4), dtype="float32", weight=None):
    """`output` = the ops one after another on `input`; each with `weight` as second operand where one is given."""
    more = ["w"] if weight is not None else []
    names = ["input", *(f"t{place}" for place in range(len(ops) - 1)), "output"]
    nodes = [helper.make_node(op, [names[place], *more], [names[place + 1]]) for place, op in enumerate(ops)]
    initializers = [("w", weight)] if weight is not None else []
    return save(path, nodes, [tensor("input", shape, dtype)], [tensor("output", shape, dtype)], initializers)
