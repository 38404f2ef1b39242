"""The head of a model's file is read without its weights, and no bytes can confuse the reader."""

import contextlib
import random

import numpy as np
import onnx
import pytest

from agent.backends import check_model, read_head
from agent.backends.onnx_file import check_opset, parse_head
from agent.core.candidate import Backend
from agent.core.errors import BackendError, InputError, Kind
from agent.core.release import Compatibility
from tests.backends import graphs


def test_the_head_says_what_onnx_says(model):
    """The version of its operators and its names are those that the onnx library reads."""
    head, proto = read_head(model), onnx.load(model)
    assert head.opset == proto.opset_import[0].version
    assert (head.inputs, head.outputs) == (("input",), ("features", "scores"))
    assert head.precisions == {"fp32"}


def test_weights_listed_as_inputs_are_no_inputs(tmp_path):
    """Old exports list their weights as inputs too."""
    assert read_head(graphs.network(tmp_path / "m.onnx", listed=True)).inputs == ("input",)


def test_every_truncation_is_noticed(model):
    """A model cut anywhere is refused, or is so by losing its last whole field."""
    content = model.read_bytes()
    noticed = 0
    for end in range(len(content)):
        try:
            parse_head(content[:end], "cut")
        except InputError:
            noticed += 1
    assert noticed >= len(content) - 1


def test_a_truncated_file_is_no_model(tmp_path, model):
    """A device maps the file: its truncation is told as what it is, and no device tries it again."""
    path = tmp_path / "cut.onnx"
    path.write_bytes(model.read_bytes()[:-100])
    with pytest.raises(BackendError, match="truncated or not one") as caught:
        check_model(str(path), Compatibility(opset=17), Backend.CPU)
    assert caught.value.kind is Kind.STRUCTURE


def test_no_bytes_raise_anything_else(model):
    """Random bytes, and models with a random byte in them, give a head or an InputError."""
    chance = random.Random(7)
    content = model.read_bytes()
    for place in range(600):
        noise = chance.randbytes(place)
        broken = bytearray(content)
        broken[chance.randrange(len(content))] = chance.randrange(256)
        for each in (noise, bytes(broken)):
            with contextlib.suppress(InputError):
                parse_head(each, "noise")


def test_a_missing_file_is_named(tmp_path):
    """Whoever mistypes a path reads it in the error."""
    with pytest.raises(InputError, match=r"absent\.onnx"):
        read_head(tmp_path / "absent.onnx")


def test_a_runtime_older_than_the_opset_is_told_before_loading(tmp_path):
    """The error names the model's opset, what the runtime supports, and what to do."""
    head = read_head(graphs.network(tmp_path / "m.onnx", opset=99))
    with pytest.raises(BackendError, match=r"opset 99; onnxruntime 1\.20\.0 supports up to 21: update onnxruntime, or"):
        check_opset(head, "onnxruntime", "1.20.0", 21)


def test_a_runtime_older_than_the_release_needs_is_told(model):
    """minimum_runtime is compared by numbers: 1.9 is older than 1.20."""
    check_model(str(model), Compatibility(opset=17, minimum_runtime={"onnxruntime": "1.9"}), Backend.CPU)
    with pytest.raises(BackendError, match="older than 99") as caught:
        check_model(str(model), Compatibility(opset=17, minimum_runtime={"onnxruntime": "99.0"}), Backend.CPU)
    assert caught.value.kind is Kind.BACKEND


def test_a_file_of_another_opset_than_declared_is_rejected(model):
    """The signed metadata is about this file, or the release is broken for ever."""
    with pytest.raises(BackendError, match="opset 17; its metadata says 13") as caught:
        check_model(str(model), Compatibility(opset=13), Backend.CPU)
    assert caught.value.kind is Kind.STRUCTURE


def test_weights_are_not_read(tmp_path):
    """A head is read from a file whose weights are a hole larger than memory would like."""
    path = graphs.chain(tmp_path / "m.onnx", ["Add"], weight=np.ones((1, 4), np.float32))
    content = path.read_bytes()
    size = 3 << 30
    key = bytes([9 << 3 | 2]) + b"".join(bytes([(size >> shift) & 0x7F | 0x80]) for shift in range(0, 28, 7))
    with path.open("wb") as file:
        file.write(content + key + bytes([size >> 28]))
        file.truncate(file.tell() + size)
    assert read_head(path).opset == 17


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "weights.bin"])
def test_weights_in_another_file_are_not_followed(model, location):
    """A path in a model is not opened, whatever a runtime would do with it."""
    made = onnx.load(model)
    onnx.external_data_helper.set_external_data(made.graph.initializer[0], location)
    with pytest.raises(InputError, match="lie in another file; export it again"):
        parse_head(made.SerializeToString(), "model")
