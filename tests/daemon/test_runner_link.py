"""The agent's line to a runner that it starts itself."""

import asyncio

from agent.daemon.runner_link import RunnerLink
from agent.daemon.settings import RunnerSettings


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
