"""The agent's half of loading a sealed release, in a process with nothing else in it: its own steps, its own line.

python -m benchmarks._load_agent RUNNER-FOLDER SEALED REF KEY SIZE [alone]: loads and proves, prints figures as JSON;
`alone`, nobody looks at memory and stalls meanwhile.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from agent.adapters.pulse import Pulse
from agent.core import plan
from agent.core.candidate import Backend, Candidate
from agent.core.documents import from_json
from agent.core.messages import Place, Prove
from agent.core.records import Device
from agent.core.release import Ref
from agent.daemon.engines import Engines
from agent.daemon.keyring import pieces
from agent.daemon.runner_link import RunnerLink
from agent.daemon.settings import RunnerSettings
from agent.daemon.steps import Steps, Success
from agent.trust.sealing import Opener
from benchmarks._warm import warm

SLOT = "defect_detection"
LOOK_S = 0.01
QUIET_S = 1.0  # until the runner, which began just now, has warmed what seats are forked from, as on a device
THREADS = 2
ALONE = "alone"
DEVICE = Device(found=(), cores=THREADS, power_mode="")


def main() -> None:
    """Print what one load cost."""
    folder, sealed, ref, key, size, *alone = sys.argv[1:]
    release, peak = from_json(Ref, ref.encode(), "ref"), None if alone == [ALONE] else Peak(int(size))
    opener = partial(Opener, bytes.fromhex(key), release.name, pieces(Path(sealed)), int(size))
    print(json.dumps(asyncio.run(loaded(folder, release, opener, peak))))


async def loaded(folder: str, ref: Ref, opener: Callable[[], Opener], peak: "Peak | None") -> dict[str, float]:
    """Seconds and memory from a sealed file to the first inference, and how late the loops were."""
    link, place = RunnerLink(RunnerSettings(folder=folder, start="never")), Place(ref=ref, candidate=candidate())
    steps, pulse = steps_of(link, opener), Pulse()
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one) for one in (link.run(), pulse.run())]
        while link.facts.value is None:
            await link.facts.turned()
        await asyncio.sleep(QUIET_S)
        if peak:
            running.append(tasks.create_task(peak.run(link)))
        else:
            await asyncio.to_thread(warm)
        pulse.lag_ms, began = 0.0, time.perf_counter()
        assert await steps.act(SLOT, plan.Load(place), DEVICE) == Success()
        await link.ask(Prove(slot=SLOT, place=place))
        seconds = time.perf_counter() - began
        found = {"seconds": seconds} | (peak.figures(pulse) if peak else {})
        for step in (plan.Promote(place, None), plan.Unload(place)):  # once it has served it is forgotten
            assert await steps.act(SLOT, step, DEVICE) == Success()
        for one in running:
            one.cancel()
    return found


def candidate() -> Candidate:
    """What loads it, here and in the peer."""
    return Candidate(backend=Backend.CPU, threads=THREADS)


def steps_of(link: RunnerLink, opener: Any) -> Steps:
    """The agent's steps with a file that needs no ledger and no grant."""
    none: Any = SimpleNamespace()
    keyring: Any = SimpleNamespace(engine_key=lambda: b"")
    engines = Engines(Path("/nonexistent"), keyring, link)
    copies: Any = SimpleNamespace(open=lambda _: opener(), blaming=lambda _, read: read())
    return Steps(copies, engines, none, link, lambda _: 10.0, none)


class Peak:
    """The most memory that the seat held, and seat, memory files and agent together, in MB; and how late answers came.

    A look at the facts waits for the loops of agent and runner, and for nothing else.
    """

    def __init__(self, sealed_bytes: int) -> None:
        self.seat_mb = self.system_mb = self.agent_mb = self.late_ms = 0.0
        self._files_mb = sealed_bytes / 1e6

    def figures(self, pulse: Pulse) -> dict[str, float]:
        """All of it, with what the agent's own loop says."""
        return {
            "peak_mb": self.seat_mb, "system_mb": self.system_mb, "agent_mb": self.agent_mb,
            "stall_ms": round(max(pulse.lag_ms, self.late_ms), 1),
        }  # fmt: skip

    async def run(self, link: RunnerLink) -> None:
        while True:
            seats = [pid for one in link.slot(SLOT).seats if (pid := one.pid)]
            seat = sum(private_mb(pid) for pid in seats)
            self.agent_mb = max(self.agent_mb, private_mb("self"))
            self.seat_mb = max([self.seat_mb, *(peak_mb(pid) for pid in seats)])
            self.system_mb = max(self.system_mb, seat + private_mb("self") + self._files_mb)
            asked = time.perf_counter()
            await link.look()
            self.late_ms = max(self.late_ms, 1000 * (time.perf_counter() - asked))
            await asyncio.sleep(LOOK_S)


def status_mb(pid: int | str, names: tuple[str, ...]) -> float:
    """Some figures of a process together; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.split(":")[0] in names)


def private_mb(pid: int | str) -> float:
    """Resident memory that is no memory file: those are counted once."""
    return status_mb(pid, ("RssAnon", "RssFile"))


def peak_mb(pid: int | str) -> float:
    """The most that was ever resident."""
    return status_mb(pid, ("VmHWM",))


if __name__ == "__main__":
    main()
