"""`make demo` tells its story to the end, and leaves nothing running."""

import re
import subprocess
import sys

import psutil
import pytest
from PIL import Image

from tests.system.plant import ROOT


@pytest.mark.slow
@pytest.mark.timeout(600)  # a minute, and more where other tests keep the cores busy
def test_the_demo_goes_all_the_way(tmp_path):
    """Keys to rollback: a picture is drawn, no request fails, the slow release is refused for its speed."""
    out = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "tools.demo", "--out", str(out)],
        capture_output=True, text=True, timeout=560, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    with Image.open(out / "inspected.png") as picture:
        assert picture.size > (640, 640)
    assert str(out / "inspected.png") in done.stdout
    assert re.search(r"camera, in all: \d+ requests, 0 failed; .* by 20250628, .* by 20250629;", done.stdout)
    assert re.search(r"rejected \w+_20250630 \(speed\): .* FPS; its gate asks for 30 FPS", done.stdout)
    assert re.search(r"cam-7 done .*_20250628", done.stdout)
    assert [
        one.pid for one in psutil.process_iter(["cmdline"]) if str(out) in " ".join(one.info["cmdline"] or ())
    ] == []


def test_the_demo_empties_only_its_own_folder(tmp_path):
    """A folder with something that no demo wrote is left as it is."""
    (tmp_path / "mine").write_text("precious")
    done = subprocess.run(
        [sys.executable, "-m", "tools.demo", "--out", str(tmp_path)],
        capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "give an empty folder with --out" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
