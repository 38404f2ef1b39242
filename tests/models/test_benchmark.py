"""Figures mean what their names say, for any model; and two versions are compared by the best there are."""

import time

import numpy as np
import pytest

from agent.backends.session import Port
from agent.core.errors import InputError
from models import benchmark_model, compare_model_versions, load_model, save_benchmark
from models.benchmark import WARM_UP, feeds_for
from tests.models.tree import DEFECT, FACE, NEXT_FACE, RECOGNITION, plant_two_versions, write_metadata

STEM = "face_detection_retinaface_widerface"
SEEDS_KEYS = {
    "avg_inference_time_ms",
    "std_inference_time_ms",
    "p95_inference_time_ms",
    "avg_memory_usage_mb",
    "fps",
}


IMAGE = (Port("image", (1, 2), "tensor(float)"),)


class Slow:
    """A session that keeps what it was fed, takes a while, and holds on to memory."""

    def __init__(self, ports=IMAGE, held=0):
        self.ports, self.held, self.fed, self.kept = ports, held, [], []

    def get_inputs(self):
        return self.ports

    def get_providers(self):
        return ["Slow"]

    def run(self, output_names, input_feed, run_options=None):
        self.fed.append(input_feed)
        self.kept.append(np.ones(self.held, np.uint8))
        end = time.perf_counter() + 0.001
        while time.perf_counter() < end:
            pass
        return []


def test_the_seeds_keys_and_two_percentiles_are_there(folder):
    """All keys of the seed, and p50 and p99."""
    figures = benchmark_model(load_model(RECOGNITION), np.ones((1, 3, 112, 112), np.float32), num_runs=5)
    assert figures.keys() >= SEEDS_KEYS | {"p50_inference_time_ms", "p99_inference_time_ms"}
    assert figures["fps"] == pytest.approx(1000 / figures["avg_inference_time_ms"])
    assert figures["p50_inference_time_ms"] <= figures["p95_inference_time_ms"] <= figures["p99_inference_time_ms"]


def test_ten_runs_warm_up_and_are_not_counted():
    """Runs beyond those asked for come first and are not timed."""
    session = Slow()
    figures = benchmark_model(session, np.ones((1, 2)), num_runs=3)
    assert len(session.fed) == WARM_UP + 3
    assert figures["avg_inference_time_ms"] >= 1


def test_memory_is_what_the_process_holds():
    """A session that holds on to 4 MB with each run is seen to."""
    grew = benchmark_model(Slow(held=4 << 20), np.ones((1, 2)), num_runs=11)
    steady = benchmark_model(Slow(), np.ones((1, 2)), num_runs=11)
    assert grew["memory_growth_mb"] == pytest.approx(40, abs=8)
    assert abs(steady["memory_growth_mb"]) < 4
    assert grew["peak_memory_usage_mb"] >= grew["avg_memory_usage_mb"] > 40


@pytest.mark.parametrize(
    ("shape", "images", "expected"),
    [
        ((1, 3, 4, 4), np.ones((1, 3, 4, 4)), [(1, 3, 4, 4)]),
        ((1, 3, 4, 4), np.ones((3, 4, 4)), [(1, 3, 4, 4)]),
        ((1, 3, 4, 4), np.ones((5, 3, 4, 4)), [(1, 3, 4, 4)] * 5),
        ((1, 3, 4, 4), [np.ones((3, 4, 4)), np.ones((1, 3, 4, 4))], [(1, 3, 4, 4)] * 2),
        ((4, 3, 4, 4), np.ones((4, 3, 4, 4)), [(4, 3, 4, 4)]),
        ((None, 3, 4, 4), np.ones((5, 3, 4, 4)), [(1, 3, 4, 4)] * 5),
        ((None, 3, 4, 4), np.ones((3, 4, 4)), [(1, 3, 4, 4)]),
        ((None, 3, 4, 4), [np.ones((5, 3, 4, 4))], [(5, 3, 4, 4)]),
        ((3, 4, 4), np.ones((1, 3, 4, 4)), [(3, 4, 4)]),
        ((), np.ones((2, 2)), [(2, 2)]),
    ],
)
def test_images_come_in_any_form(shape, images, expected):
    """One array, a batch, or a list: each image becomes a feed of the shape that the input takes."""
    feeds = feeds_for([Port("x", shape, "tensor(float)")], images)
    assert [feed["x"].shape for feed in feeds] == expected


def test_images_get_the_inputs_dtype():
    """A model of uint8 gets uint8."""
    feeds = feeds_for([Port("x", (1, 2), "tensor(uint8)")], np.array([[1.0, 2.0]]))
    assert feeds[0]["x"].dtype == np.uint8


def test_several_inputs_are_fed_by_name():
    """A mapping of names feeds a model of several inputs."""
    ports = (Port("image", (1, 2), "tensor(float)"), Port("size", (1,), "tensor(int64)"))
    session = Slow(ports)
    benchmark_model(session, {"image": np.ones(2), "size": [640]}, num_runs=1)
    assert {name: (one.shape, one.dtype.name) for name, one in session.fed[0].items()} == {
        "image": ((1, 2), "float32"),
        "size": ((1,), "int64"),
    }


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (np.ones((1, 5)), r"\[5\] does not fit the input image, which wants float32 \[1, 2\]"),
        ([], "there is none"),
        ({"picture": np.ones((1, 2))}, "inputs are"),
    ],
)
def test_images_that_do_not_fit_are_told(images, told):
    """The error says what the input wants."""
    with pytest.raises(InputError, match=told):
        benchmark_model(Slow(), images)


def test_no_runs_are_no_benchmark():
    """num_runs below one is an error, not a division by zero."""
    with pytest.raises(InputError, match="num_runs"):
        benchmark_model(Slow(), np.ones((1, 2)), num_runs=0)


def test_a_comparison_has_the_seeds_keys_and_percentages(folder):
    """Differences, percentages of the first version, and the seed's phrases."""
    found = compare_model_versions(STEM, "20250628", "20250629", plant_two_versions(folder))
    assert found["accuracy_diff"] == pytest.approx(0.012)
    assert found["speed_diff"] == pytest.approx(-1.8)
    assert found["size_diff"] == pytest.approx(-1.3)
    assert found["accuracy_diff_percent"] == pytest.approx(1.263, abs=1e-3)
    assert found["speed_diff_percent"] == pytest.approx(-11.842, abs=1e-3)
    assert found["size_diff_percent"] == pytest.approx(-4.762, abs=1e-3)
    assert (found["improvements"], found["regressions"]) == (["정확도 0.012 향상"], ["속도 1.8ms 감소"])


def test_the_other_way_round_the_phrases_change_sides(folder):
    """What was gained is lost on the way back."""
    found = compare_model_versions(STEM, "20250629", "20250628", plant_two_versions(folder))
    assert (found["improvements"], found["regressions"]) == (["속도 1.8ms 향상"], ["정확도 0.012 감소"])


def test_a_version_that_is_not_there_gives_none(folder):
    """Two versions never compare one file with itself: the seed's tree has documents of one."""
    assert compare_model_versions(STEM, "20250628", "20250629") is None


def test_a_figure_that_is_missing_is_none(folder):
    """Nothing is guessed for a figure that one version has not."""
    plant_two_versions(folder)
    write_metadata(folder, NEXT_FACE, version="20250629", inference_time=10.0)
    found = compare_model_versions(STEM, "20250628", "20250629")
    assert (found["accuracy_diff"], found["accuracy_diff_percent"], found["size_diff"]) == (None, None, None)
    assert found["improvements"] == ["속도 5.2ms 향상"]


def test_measured_speeds_go_before_declared_ones(folder):
    """Kept figures of both versions, from one machine and device, decide what is faster."""
    plant_two_versions(folder)
    save_benchmark(FACE, {"avg_inference_time_ms": 20.0}, Slow())
    assert compare_model_versions(STEM, "20250628", "20250629")["speed_source"] == "metadata"
    save_benchmark(NEXT_FACE, {"avg_inference_time_ms": 15.0}, Slow())
    found = compare_model_versions(STEM, "20250628", "20250629")
    assert (found["speed_diff"], found["speed_diff_percent"], found["speed_source"]) == (5.0, 25.0, "benchmarks")


def test_figures_of_different_devices_are_not_compared(folder):
    """A figure of one device against one of another says nothing about the versions."""
    plant_two_versions(folder)
    save_benchmark(FACE, {"avg_inference_time_ms": 20.0}, Slow())
    save_benchmark(NEXT_FACE, {"avg_inference_time_ms": 15.0}, load_model(DEFECT, "cpu"))
    assert compare_model_versions(STEM, "20250628", "20250629")["speed_source"] == "metadata"


def test_a_bad_file_of_figures_is_told(folder):
    """The error names the file."""
    plant_two_versions(folder)
    path = save_benchmark(FACE, {"avg_inference_time_ms": 20.0}, Slow())
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=rf"{FACE}\.json"):
        compare_model_versions(STEM, "20250628", "20250629")
