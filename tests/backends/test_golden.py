"""Golden samples tell a right answer from a wrong one."""

import io

import numpy as np
import pytest
from msgspec.structs import replace

from agent.backends import open_session
from agent.backends.golden import compare, deviation, load_golden
from agent.core.errors import BackendError, Kind
from agent.core.release import Gates, Tensor, Tolerance
from models.golden import save_golden
from tests.backends import graphs

GATES = Gates()


def packed(**arrays):
    file = io.BytesIO()
    np.savez(file, **{name.replace("_", ".", 1): array for name, array in arrays.items()})
    return file.getvalue()


def test_the_right_model_is_within_its_tolerance(model, candidate, config, golden):
    """Each backend in fp32 answers as the reference does, for every output."""
    found = compare(open_session(str(model), candidate, config), golden, GATES)
    assert [(one.output, one.within) for one in found] == [("features", True), ("scores", True)]


def test_another_model_is_not(tmp_path, candidate, config, golden):
    """A model with other weights is out, and the deviation says how far."""
    other = graphs.network(tmp_path / "other.onnx", seed=1)
    found = compare(open_session(str(other), candidate, config), golden, GATES)
    assert not any(one.within for one in found)
    assert min(one.max_abs for one in found) > 0.01


def test_one_bad_sample_is_enough(model, config, candidate, golden):
    """A sample that fits does not make up for one that does not."""
    golden[0].outputs["scores"][0, 0] += 1
    found = {one.output: one for one in compare(open_session(str(model), candidate, config), golden, GATES)}
    assert (found["scores"].within, found["features"].within) == (False, True)
    assert found["scores"].max_abs == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("given", "within"), [(10.5, True), (10.62, False), (9.5, True), (9.38, False)])
def test_the_tolerance_is_absolute_plus_relative(given, within):
    """|difference| <= atol + rtol * |reference|."""
    gates = Gates(parity={"y": Tolerance(atol=0.1, rtol=0.05)})
    assert deviation("y", np.array([given], np.float32), np.array([10.0], np.float32), gates).within is within


def test_unsigned_outputs_do_not_wrap_around():
    """Labels in uint8 are compared as numbers: 0 is one away from 1, not 255."""
    found = deviation("y", np.array([0], np.uint8), np.array([1], np.uint8), GATES)
    assert (found.max_abs, found.within) == (1.0, False)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_inf_are_parity_failures(tmp_path, candidate, config, value):
    """An answer that holds NaN or Inf is never close to anything."""
    path = graphs.chain(tmp_path / "m.onnx", ["Mul"], weight=np.full((1, 4), value, np.float32))
    session = open_session(str(path), candidate, config)
    sample = {"in_input": np.ones((1, 1, 4), np.float32), "out_output": np.ones((1, 1, 4), np.float32)}
    from tests.backends.conftest import describe

    golden = load_golden(packed(**sample), describe(path, config))
    with pytest.raises(BackendError, match="NaN or Inf") as caught:
        compare(session, golden, GATES)
    assert caught.value.kind is Kind.PARITY


def test_samples_come_back_as_they_were_saved(golden, metadata):
    """What publishing saves, a device loads."""
    loaded = load_golden(save_golden(golden), metadata)
    assert len(loaded) == 2
    assert np.array_equal(loaded[1].feeds["input"], golden[1].feeds["input"])
    assert np.array_equal(loaded[1].outputs["scores"], golden[1].outputs["scores"])


def test_samples_may_stand_on_the_batch_axis(golden, metadata):
    """Two samples of a batch of one, laid behind one another, are two samples with a batch axis each."""
    joined = {f"in_{name}": np.concatenate([s.feeds[name] for s in golden]) for name in golden[0].feeds}
    joined |= {f"out_{name}": np.concatenate([s.outputs[name] for s in golden]) for name in golden[0].outputs}
    loaded = load_golden(packed(**joined), metadata)
    assert [sample.feeds["input"].shape for sample in loaded] == [graphs.SHAPE] * 2
    assert [sample.outputs["scores"].shape for sample in loaded] == [(1, 4)] * 2


def test_samples_of_a_fixed_batch_are_whole_batches(metadata):
    """A model that takes four images at a time gets four from eight, twice."""
    four = replace(
        metadata,
        inputs=(Tensor(name="x", shape=(4, 2), dtype="float32"),),
        outputs=(Tensor(name="y", shape=(4,), dtype="float32"),),
    )
    loaded = load_golden(packed(in_x=np.zeros((8, 2), np.float32), out_y=np.zeros(8, np.float32)), four)
    assert [sample.feeds["x"].shape for sample in loaded] == [(4, 2)] * 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no zip",
        packed(in_input=np.zeros((1, *graphs.SHAPE), np.float32)),
        packed(in_image=np.zeros((1, *graphs.SHAPE), np.float32)),
        packed(in_input=np.zeros((1, *graphs.SHAPE)), out_features=np.zeros(1), out_scores=np.zeros(1)),
        packed(in_input=np.array([{}], object), out_features=np.zeros(1), out_scores=np.zeros(1)),
        packed(
            in_input=np.zeros((0, *graphs.SHAPE), np.float32),
            out_features=np.zeros((0, 1, 4, 8, 8), np.float32),
            out_scores=np.zeros((0, 1, 4), np.float32),
        ),
    ],
    ids=["empty", "no zip", "no outputs", "other names", "dtype", "pickle", "no samples"],
)
def test_a_bad_file_of_golden_samples_is_rejected_for_ever(metadata, content):
    """Whatever is no set of golden samples for these tensors is a fault of the release."""
    with pytest.raises(BackendError, match="golden samples") as caught:
        load_golden(content, metadata)
    assert caught.value.kind is Kind.STRUCTURE
