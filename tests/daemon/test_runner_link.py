"""The agent's line to a runner that it starts itself."""

import asyncio
import socket
import sys
import time

import pytest

from agent.adapters import memory_file
from agent.adapters.packets import close_all
from agent.core.errors import TransferError
from agent.core.messages import Load, Offer, Seal
from agent.daemon.runner_link import FIRST_WAIT_S, RunnerLink
from agent.daemon.settings import RunnerSettings
from tests.fakes.waiting import reached
from tests.runner.conftest import release

OF_ANOTHER_VERSION = """#!/bin/sh
shift 3
exec {python} -c 'from agent.adapters import fork_server as forks; from agent.runner import main; forks.VERSION = "{version}"; main.main()' "$@"
"""


async def test_the_folder_that_the_agent_is_started_in_is_not_believed(tmp_path, monkeypatch):
    """A runner comes up whatever lies there under the name of a module: it is not run."""
    (tmp_path / "json.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    link = RunnerLink(RunnerSettings(folder=str(tmp_path / "run"), tcp=None))
    keeping = asyncio.create_task(link.run())
    try:
        async with asyncio.timeout(60):
            async for line in link.line.changes():
                if line is not None:
                    break
    finally:
        await link.stop_ours()
        keeping.cancel()
    assert link.last_error == ""


async def test_why_no_runner_comes_up_is_told_for_as_long_as_that_is_so(tmp_path):
    """While one after another is started and ends, the reason of the last one stands, and not that nobody is there yet."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        link = RunnerLink(RunnerSettings(folder=str(tmp_path), tcp=address))
        keeping = asyncio.create_task(link.run())
        try:
            await reached(lambda: address in link.last_error, 60)
            told = set[str]()
            await reached(
                lambda: told.add(link.last_error) or (tmp_path / "runner.log").read_text().count(address) > 2, 60
            )
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])
            await link._child.wait()  # the last one meets the same, before the port is free
    assert all(f"edge-runner ended: --tcp {address}" in one for one in told), told


async def test_a_runner_that_ends_at_once_is_started_ever_more_rarely(tmp_path, monkeypatch):
    """What keeps a runner from coming up is met again after longer and longer waits, not as fast as processes start."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho started\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    monkeypatch.setattr("random.uniform", lambda _, longest: longest)
    link = RunnerLink(RunnerSettings(folder=str(tmp_path), tcp=None))
    began, keeping = time.monotonic(), asyncio.create_task(link.run())
    try:
        await reached((tmp_path / "runner.log").exists)
        await reached(lambda: (tmp_path / "runner.log").read_text().count("started") == 3, 60)
    finally:
        keeping.cancel()
    assert time.monotonic() - began > FIRST_WAIT_S + 2 * FIRST_WAIT_S


@pytest.fixture
async def older(tmp_path, monkeypatch):
    """A line to a runner that was started before the package was upgraded."""
    program = tmp_path / "python"
    program.write_text(OF_ANOTHER_VERSION.format(python=sys.executable, version="0.0.7"))
    program.chmod(0o755)
    link = RunnerLink(RunnerSettings(folder=str(tmp_path / "run"), tcp=None))
    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", str(program))
        keeping = asyncio.create_task(link.run())
        await reached(lambda: link.line.value, 60)
    yield link
    await link.stop_ours()
    keeping.cancel()
    await link._child.wait()


async def test_an_upgrade_without_a_restart_of_the_runner_is_told_and_no_fault_of_a_release(older):
    """Seats of the new files do not guess what an older runner means: loads wait, and what to do is said."""
    one = release(1)
    _, descriptors = await older.ask(Offer(ref=one.ref, parts=one.announced))
    for number, content in zip(descriptors, one.parts.values(), strict=True):
        memory_file.write(number, content)
    close_all(descriptors)
    await older.ask(Seal(ref=one.ref))
    with pytest.raises(TransferError, match=r"still 0\.0\.7, .* restart edge-runner"):
        await older.ask(Load(slot="defect_detection", place=one.place))
