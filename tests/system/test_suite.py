"""`make test` runs what failed once more, alone: what passes then is named, and nothing else passes."""

import os
import subprocess
import sys

import pytest

from tests.system.plant import ROOT

HEAD = "import os\nimport signal\nfrom pathlib import Path\n\nimport pytest\n\n"
FIRST = "is_first = not (mark := Path(__file__).with_suffix('.mark')).exists(); mark.touch(); "
SHARED = ("-p", "xdist", "-n", "1")
NAMED = "passed when it was run again alone: "


@pytest.fixture
def suite(tmp_path):
    """Runs a suite of a part for each body, with `words` for the first; the exit code, and what was said."""

    def run(*bodies, words=()):
        parts = [*words]
        for number, body in enumerate(bodies):
            (tmp_path / f"test_{number}.py").write_text(f"{HEAD}{body}\n")
            parts += [f"test_{number}.py", "--"]
        done = subprocess.run(
            [sys.executable, "-m", "tools.suite", *parts],
            capture_output=True, text=True, timeout=100, cwd=tmp_path, check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        )  # fmt: skip
        return done.returncode, done.stdout

    return run


def one(body):
    return f"def test_it():\n    {body}"


@pytest.mark.parametrize(
    ("fails", "words"),
    [("assert not is_first", ()), ("assert not is_first", SHARED), ("is_first and os.abort()", SHARED)],
    ids=["alone", "shared", "crash of a worker"],
)
def test_what_passes_the_second_time_is_named_at_the_end(suite, fails, words):
    """A race, or a worker that crashed, does not fail the run; the last line says which test it was."""
    code, said = suite(one(FIRST + fails), one("pass"), words=words)
    assert code == 0, said
    assert f"{NAMED}test_0.py::test_it" in said.splitlines()[-1]


def test_what_fails_twice_fails(suite):
    """It is run again, fails the run, and what comes after it is not begun."""
    code, said = suite(one("assert False"), one("Path('/').exists()"))
    assert code == 1
    assert said.count("1 failed") == 2
    assert (NAMED in said, "test_1.py" in said) == (False, False)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("@pytest.mark.parametrize('n', range(6))\ndef test_it(n):\n    assert False", 1),
        ("import nothing_of_this_name", 2),
        (one("raise KeyboardInterrupt"), 2),
        (one("os.kill(os.getpid(), signal.SIGKILL)"), -9 % 256),
    ],
    ids=["six failures", "a broken file", "an interrupt", "a crash"],
)
def test_what_is_no_race_is_not_run_again(suite, body, code):
    """More failures than a race makes, and whatever else ends pytest, end the run."""
    ended, said = suite(body)
    assert ended == code, said
    assert "once more" not in said
