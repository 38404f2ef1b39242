"""The doctor says what each backend can really do here, also where asking it goes wrong."""

import asyncio
from types import SimpleNamespace

import pytest

from agent.adapters import seat_process
from agent.adapters.seat_process import find
from agent.core.candidate import Backend
from agent.core.documents import to_json
from agent.daemon import doctor


def test_a_backend_that_works_is_named_with_its_version_and_hardware():
    """ONNX Runtime's CPU computes on this machine."""
    found = doctor.backend(asyncio.run(find(Backend.CPU))[0])
    assert found.fine
    assert found.says.startswith("onnxruntime ")


def test_the_folder_that_it_is_started_in_is_not_believed(tmp_path, monkeypatch):
    """Root asks from any folder: what others put there under the name of a module is not run."""
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "__init__.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    assert asyncio.run(find(Backend.CPU))[0].present


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("#!/bin/sh\nkill -SEGV $$\n", "was killed by SIGSEGV"),
        ("#!/bin/sh\necho nonsense\n", "the probe of cuda: this is not valid JSON"),
    ],
    ids=["crashes", "says nothing of use"],
)
def test_a_probe_that_fails_is_a_finding(tmp_path, monkeypatch, program, told):
    """A driver that takes the probe down is told with the backend that it belongs to: nothing goes missing silently."""
    stand_in = tmp_path / "python"
    stand_in.write_text(program)
    stand_in.chmod(0o755)
    monkeypatch.setattr(seat_process, "sys", SimpleNamespace(executable=str(stand_in)))
    found = doctor.backend(asyncio.run(find(Backend.CUDA))[0])
    assert (found.what, found.fine) == ("backend cuda", False)
    assert told in found.says
    assert "look at the runner's log and the driver's" in found.says


@pytest.mark.parametrize(
    ("drawn", "fine", "says"),
    [
        ({"no network": "", "read-only files": ""}, True, "walled in: no network, read-only files"),
        ({"no network": "", "read-only files": "Function not implemented"}, False, "read-only files (Function not"),
    ],
)
def test_the_walls_of_a_seat_are_told(monkeypatch, drawn, fine, says):
    """Which hold, or which does not and why."""

    async def ask_seat(_):
        return to_json(drawn)

    monkeypatch.setattr(doctor, "ask_seat", ask_seat)
    found = doctor.checked("seat", doctor.walls)
    assert found.fine == fine
    assert says in found.says
