"""Which candidates a release has on a device."""

import msgspec
import pytest

from agent.core.candidate import Backend, Candidate, Found, candidates_for
from agent.core.release import Config

CPU = Found(backend=Backend.CPU, present=True)
OPENVINO = Found(backend=Backend.OPENVINO, present=True, devices=("GPU.0", "GPU.1", "NPU"))
CUDA = Found(backend=Backend.CUDA, present=True)


def names(found, **optimization):
    config = Config(input_size=(8, 8), confidence_threshold=0.5, optimization=optimization)
    return [str(one) for one in candidates_for(config, found, cores=4)]


def test_every_backend_that_is_here_is_a_candidate_in_the_config_s_order():
    """Threads are the machine's cores where the processor computes, and nobody's elsewhere."""
    absent = Found(backend=Backend.TENSORRT, present=False)
    assert names([CPU, CUDA, absent]) == ["cuda/fp32", "cpu/fp32/4t"]


def test_several_precisions_and_thread_counts_are_each_tried():
    """A list in the config is a candidate for each of its values."""
    given = names([CPU, CUDA], cuda={"precision": ["fp16", "fp32"]}, threads=[1, 2])
    assert given == ["cuda/fp16", "cuda/fp32", "cpu/fp32/1t", "cpu/fp32/2t"]


def test_every_device_of_openvino_is_a_candidate():
    """Its CPU, and the GPUs and NPUs that worked in the probe."""
    assert names([OPENVINO]) == ["openvino/fp32/4t", "openvino:GPU.0/fp32", "openvino:GPU.1/fp32", "openvino:NPU/fp32"]


@pytest.mark.parametrize(
    ("device", "left"),
    [
        ("CPU", ["openvino/fp32/4t"]),
        ("GPU", ["openvino:GPU.0/fp32", "openvino:GPU.1/fp32"]),
        (["NPU", "CPU"], ["openvino/fp32/4t", "openvino:NPU/fp32"]),
        ("GPU.7", []),
    ],
)
def test_the_config_says_which_devices_of_openvino(device, left):
    """A device that is named and absent has no other in its place."""
    assert names([OPENVINO], openvino={"device": device}) == left


def test_a_runner_that_names_its_processor_as_device_offers_the_cpu():
    """What an earlier runner found is understood."""
    assert names([Found(backend=Backend.OPENVINO, present=True, devices=("AMD EPYC",))]) == ["openvino/fp32/4t"]


def test_a_runner_before_this_one_understands_a_candidate():
    """Nothing is sent that it does not know, unless it is needed."""
    assert msgspec.json.encode(Candidate(backend=Backend.CPU, threads=2)) == b'{"backend":"cpu","threads":2}'


@pytest.mark.parametrize("threads", ["many", None, ["two"]])
def test_threads_that_are_no_number_are_the_cores(threads):
    """A config that publishing would refuse does not stop a device."""
    assert names([CPU], threads=threads) == ["cpu/fp32/4t"]
