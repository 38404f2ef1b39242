"""Every code sample of the seed runs as it was written, with its own functions and with ours in their place."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.tree import plant, plant_two_versions

SAMPLES = Path(__file__).parent / "seed_samples" / "samples.md"
BLOCKS = re.findall(r"```python\n(.*?)```", SAMPLES.read_text(encoding="utf-8"), re.DOTALL)
USAGE = "# 사용 예시\n"
OURS = """
import numpy as np
from models import benchmark_model, compare_model_versions, get_model_metadata, load_model, load_model_config
"""
SPEED = r"평균 추론 시간: \d+\.\d\dms\nFPS: \d+\.\d\n평균 메모리 사용량: -?\d+\.\dMB\n"
METADATA = "모델 버전: 20250628\n정확도: 0.95\n추론 속도: 15.2ms\n"
CONFIG = "입력 크기: [640, 640]\n신뢰도 임계값: 0.5\n"
COMPARISON = "개선사항: ['정확도 0.012 향상']\n퇴보사항: ['속도 1.8ms 감소']\n"


def run(root, program):
    """What a program that lies beside the models folder prints."""
    path = root / "vision" / "samples.py"
    path.parent.mkdir()
    path.write_text(program, encoding="utf-8")
    env = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "EDGE_MODELS": str(root / "models"), "PYTHONIOENCODING": "utf-8"}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, str(path)], check=False, capture_output=True, encoding="utf-8", env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_copy_holds_all_samples():
    """Five samples, each with a use."""
    assert len(BLOCKS) == 5
    assert all(USAGE in block for block in BLOCKS)


def test_the_seeds_own_functions_run_on_the_seeds_tree(tmp_path):
    """Verbatim, all five; documents of a task are none to the seed's own look-up, which returns None."""
    plant(tmp_path)
    assert re.fullmatch(SPEED, run(tmp_path, "".join(BLOCKS)))


def test_the_seeds_own_functions_find_documents_of_a_release(tmp_path):
    """Verbatim, all five, with a document for each release."""
    plant_two_versions(plant(tmp_path))
    printed = run(tmp_path, "".join(BLOCKS))
    assert re.fullmatch(re.escape(METADATA + CONFIG) + SPEED + re.escape(COMPARISON), printed)


def test_our_functions_take_their_place_on_the_seeds_tree(tmp_path):
    """The uses verbatim, with ours: documents of a task answer for the release that they are of."""
    plant(tmp_path)
    printed = run(tmp_path, OURS + "".join(block.partition(USAGE)[2] for block in BLOCKS))
    assert re.fullmatch(re.escape(METADATA + CONFIG) + SPEED, printed)


@pytest.mark.parametrize("place", range(5))
def test_each_of_our_functions_does_what_the_seeds_does(tmp_path, place):
    """One function of ours among four of the seed's changes nothing that is printed but times."""
    plant_two_versions(plant(tmp_path))
    blocks = [*BLOCKS]
    blocks[place] = OURS + blocks[place].partition(USAGE)[2]
    printed = run(tmp_path, "".join(blocks))
    assert re.fullmatch(re.escape(METADATA + CONFIG) + SPEED + re.escape(COMPARISON), printed)
