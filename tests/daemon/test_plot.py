"""The picture of a bench shows which candidate is faster, and which is out."""

import importlib

import pytest

from agent.core.candidate import Backend, Candidate, Evidence, Failure, Latency
from agent.core.errors import InputError, Kind
from agent.daemon import plot
from agent.daemon.state import Measured

RELEASE = "face_detection_retinaface_widerface_20250628"


def measured(backend, p50, spread=1.5, failure=None, **more):
    latency = Latency(mean=p50, std=0.1, p50=p50, p95=p50 * spread, p99=p50 * spread**2)
    candidate = Candidate(backend=backend, threads=2, **more)
    return Measured(
        release=RELEASE,
        candidate=candidate,
        evidence=Evidence(candidate=candidate, key="", latency_ms=latency, fps=1000 / p50),
        failure=failure,
    )


OUT = Failure(kind=Kind.PARITY, reason="output y is 3 away from its golden reference")
SLOW, FAST = measured(Backend.CPU, 8.0), measured(Backend.OPENVINO, 2.0)
NEVER = Measured(
    release=RELEASE, candidate=Candidate(backend=Backend.CUDA), failure=Failure(kind=Kind.BACKEND, reason="no GPU")
)


def drawn(tmp_path, *rows):
    """The picture, and for each colour of boxes where they lie: x of the left edge by row."""
    image = pytest.importorskip("PIL.Image", reason="the plot extra is not installed")
    path = tmp_path / "bench.png"
    plot.draw("face_detection on cam-7", rows, path)
    return image.open(path).convert("RGB")


def edges(picture, colour, rows):
    """Where the box of each row begins, None where there is none of this colour."""
    wanted = tuple(int(colour[place : place + 2], 16) for place in (1, 3, 5))
    found = []
    for row in range(rows):
        y = plot.TOP + plot.ROW * row + plot.ROW // 2 + 8
        xs = [x for x in range(plot.LEFT, plot.WIDTH - plot.RIGHT) if picture.getpixel((x, y)) == wanted]
        found.append(xs[0] if xs else None)
    return found


def test_the_fastest_candidate_stands_first_and_furthest_to_the_left(tmp_path):
    """Boxes lie on one axis, whatever order the candidates were measured in."""
    first, second = edges(drawn(tmp_path, SLOW, FAST), plot.PASSED, 2)
    assert first < second


def test_a_candidate_that_is_out_has_another_colour(tmp_path):
    """Fast and wrong is not mistaken for the best."""
    wrong = measured(Backend.OPENVINO, 1.0, failure=OUT, precision="bf16")
    picture = drawn(tmp_path, SLOW, wrong)
    assert edges(picture, plot.FAILED, 2)[0] is not None
    assert edges(picture, plot.PASSED, 2)[0] is None


@pytest.mark.parametrize("rows", [[NEVER], [NEVER, SLOW], [measured(Backend.CPU, 0.5, spread=1.0)]])
def test_whatever_came_of_the_bench_is_drawn(tmp_path, rows):
    """Candidates that never ran, and one that never varied, make a picture too."""
    assert drawn(tmp_path, *rows).size[1] == plot.TOP + plot.ROW * len(rows) + plot.BOTTOM


def test_without_pillow_it_says_what_to_install(tmp_path, monkeypatch):
    """A device need not be able to draw."""

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(plot, "import_module", absent)
    with pytest.raises(InputError, match="pip install pillow"):
        plot.draw("title", [SLOW], tmp_path / "bench.png")
    monkeypatch.setattr(plot, "import_module", importlib.import_module)


def test_a_picture_that_cannot_be_written_is_told(tmp_path):
    """The path is in the error."""
    pytest.importorskip("PIL.Image", reason="the plot extra is not installed")
    with pytest.raises(InputError, match=r"absent/bench\.png"):
        plot.draw("title", [SLOW], tmp_path / "absent" / "bench.png")
