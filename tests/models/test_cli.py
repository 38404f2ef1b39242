"""`python -m models` says what the functions say."""

import json

import pytest

from models.cli import main
from tests.models.tree import FACE, RECOGNITION, plant_two_versions


def test_a_benchmark_is_printed_and_kept(folder, capsys):
    """The figures are printed as JSON, and lie where a comparison finds them."""
    assert main(["benchmark", RECOGNITION, "--device", "cpu", "--runs", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["device"] == "CPUExecutionProvider"
    assert (folder / "benchmarks" / f"{RECOGNITION}.json").is_file()


def test_a_comparison_is_printed(folder, capsys):
    """Both versions, with the phrases; an absent version is status 1."""
    plant_two_versions(folder)
    stem = FACE.rpartition("_")[0]
    assert main(["compare", stem, "20250628", "20250629"]) == 0
    assert json.loads(capsys.readouterr().out)["improvements"] == ["정확도 0.012 향상"]
    assert main(["compare", stem, "20250628", "20250630"]) == 1


@pytest.mark.parametrize("command", ["check", "benchmark"])
def test_an_error_is_told_in_words(folder, capsys, command):
    """A name that is not there is status 1 and a sentence, not a traceback."""
    assert main([command, "pose_ssd_coco_20250628"]) == 1
    assert "pose_ssd_coco_20250628" in capsys.readouterr().err
