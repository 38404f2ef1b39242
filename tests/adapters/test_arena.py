"""What is put into an arena is read from it by another who maps the file, whatever was put there before."""

import numpy as np
import pytest

from agent.adapters.arena import Arena
from agent.adapters.memory_file import arena, map_for_reading
from agent.core.messages import Slice

ONE = {"x": np.arange(12, dtype=np.float32).reshape(3, 4)}
FORMS = {
    "the same form": {"x": np.full((3, 4), 7, np.float32)},
    "another shape of as many": {"x": ONE["x"].reshape(2, 6)},
    "another type of as many bytes": {"x": np.arange(12, dtype=np.int32).reshape(3, 4)},
    "another byte order": {"x": ONE["x"].astype(">f4")},
    "another name": {"y": ONE["x"]},
    "one more": {"x": ONE["x"], "y": np.ones(3, np.uint8)},
    "none": {},
    "more than the file holds": {"x": np.ones((1000, 1000), np.float32)},
    "not contiguous": {"x": np.arange(24, dtype=np.float32).reshape(4, 6)[:3, 1:5]},
}


@pytest.fixture
def ours():
    one = Arena(arena("test", 4096))
    yield one
    one.close()


@pytest.mark.parametrize("arrays", FORMS.values(), ids=FORMS)
def test_what_was_put_last_is_read(ours, arrays):
    """Another's mapping has what came second and, where that is as long as the first, the first's again after it."""
    theirs = Arena(ours.number, map_for_reading)
    for put in (ONE, arrays, ONE):
        slices = ours.put(put)
        assert [one.name for one in slices] == list(put)
        for one, array in zip(slices, put.values(), strict=True):
            np.testing.assert_array_equal(theirs.tensor(one), array)
            assert (one.shape, one.dtype) == (array.shape, array.dtype.name)


def test_tensors_do_not_overlap(ours):
    """Each begins at a multiple of 64 bytes, behind the one before, also when their order turns."""
    pair = {"a": np.ones(5, np.uint8), "b": np.ones(5, np.float64)}
    for put in (pair, dict(reversed(pair.items()))):
        first, second = ours.put(put)
        assert (first.offset, second.offset, second.offset >= first.size) == (0, 64, True)


def test_a_place_behind_the_end_is_refused(ours):
    """A slice that nobody wrote raises, whatever it says."""
    with pytest.raises(ValueError, match="buffer"):
        ours.tensor(Slice(name="x", shape=(5000,), dtype="uint8", offset=0, size=5000))
