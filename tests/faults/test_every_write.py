"""`kill -9` before every system call that writes: what lies on the disk then is whole, and the next start goes on.

A child does the work of tests/faults/durable.py; strace kills it at the entry of its k-th call that changes the disk.
SAMPLE of these moments are tried, spread over the run, and some at which one step of several is done (TURNS);
EVERY_WRITE=all tries all of them (`make every-write`).
"""

import ctypes
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from tests.faults import durable, next_start

STRACE = shutil.which("strace") or str(Path(__file__).parents[2] / ".cache" / "strace")
WRITES = (
    "write,pwrite64,writev,pwritev,pwritev2,sendfile,copy_file_range,truncate,ftruncate,fallocate,"
    "?rename,renameat,renameat2,?link,linkat,?symlink,symlinkat,?unlink,unlinkat,?mkdir,mkdirat,?rmdir,"
    "fchmod,fsync,fdatasync"
)
ALL = os.environ.get("EVERY_WRITE") == "all"
SAMPLE = 36
CALL = re.compile(r"\d+ +(\w+)\(")
TURNS = r"tuf/\.tmp-current|unlink.*/(metadata|configs)/"  # a set of metadata comes, a release goes
HANGS_S = 60
PR_SET_PTRACER = 0x59616D61  # linux/prctl.h
NEVER = ("write", 65_535)  # the highest number that strace takes

pytestmark = [
    pytest.mark.skipif(not Path(STRACE).exists(), reason="strace is not here: run tools/apt.sh strace 5.0"),
    pytest.mark.timeout(3600 if ALL else 900),
]


def child(gate, world, state, said, begin, broken):
    """The run that is killed: waits until it is watched."""
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)  # else, with yama, only a parent may watch
    with said.open("ab", buffering=0) as file, state.with_name("log").open("w") as log, redirect_stderr(log):
        gate.recv()
        try:
            durable.work(world, state, begin, lambda what: file.write(json.dumps(what).encode() + b"\n"), broken)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=log)
            raise


class Bench:
    """One world, and a folder for each run of the device in it."""

    def __init__(self, folder):
        self.folder = folder
        self.world = durable.make_world(folder / "world")
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(["tests.faults.durable"])
        self.calls, self.killed = [], 0

    def state(self):
        """A device that was never on."""
        return Path(tempfile.mkdtemp(dir=self.folder)) / "state"

    def run(self, state, *, die_at=NEVER, broken=""):
        """A run that dies before its n-th call of one name, `die_at`; what it had said. `calls` are all up to there."""
        said = state.with_name("said")
        ours, its = self.processes.Pipe()
        process = self.processes.Process(
            target=child, args=(its, self.world, state, said, last(said).get("done", 0), broken)
        )
        process.start()
        watcher = None if die_at is None else self.watch(process.pid, state.with_name("calls"), die_at)
        ours.send(None)
        process.join(HANGS_S)
        error = state.with_name("log").read_text() if process.exitcode is not None else f"not over after {HANGS_S} s"
        process.kill()
        if watcher is not None:
            watcher.communicate(timeout=10)
            lines = state.with_name("calls").read_text().splitlines()
            self.calls = [line for line in lines if CALL.match(line)]  # others say how a thread's call went on
        self.killed += die_at not in {None, NEVER} and process.exitcode == -signal.SIGKILL
        return {**last(said), "error": error} if error else last(said)

    def watch(self, pid, calls, die_at):
        """strace, attached."""
        watcher = subprocess.Popen(
            [STRACE, "-f", "-y", "-s", "80", "-o", calls, "-e", f"trace={WRITES}",
             "-e", f"inject={die_at[0]}:signal=KILL:when={die_at[1]}", "-p", str(pid)],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        line = watcher.stderr.readline()
        if "not permitted" in line:
            pytest.skip(f"strace may not watch a child here: {line.strip()}")
        assert "attached" in line, line
        return watcher

    def trouble(self, die_at, broken=""):
        """What is wrong after a death at that moment, and after the run that follows."""
        state = self.state()
        said = self.run(state, die_at=die_at, broken=broken)
        at = f"killed before {die_at} in {STEP_NAMES[said.get('done', 0)]}: {self.calls[-2:-1]}"
        state.mkdir(exist_ok=True)
        found = [said["error"]] if "error" in said else next_start.check(self.world, state, said)
        if not found:
            said = self.run(state, die_at=None)
            found = [said["error"]] if "error" in said else next_start.check(self.world, state, said, cuts=1)
            at += ", and run again"
        shutil.rmtree(state.parent)
        return [f"{at}: {one}" for one in found]


STEP_NAMES = [*(step.name for step in durable.STEPS), "the end"]


def numbered(calls):
    """Each call as (its name, how many of that name there were): strace counts every name by itself."""
    names = [CALL.match(call)[1] for call in calls]
    return [(name, names[: at + 1].count(name)) for at, name in enumerate(names)]


def last(said):
    """The last line that was said."""
    lines = said.read_text().splitlines() if said.exists() else []
    return json.loads(lines[-1]) if lines else {}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Where memory is a disk, for nothing here is lost with the power."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory)) if os.access(memory, os.W_OK) else tmp_path_factory.mktemp("device")
    yield Bench(folder)
    shutil.rmtree(folder)


def test_a_device_killed_before_any_of_its_writes_is_whole_and_goes_on(bench):
    """No half file under a name, no half transaction, no number that fell, nothing left over; the next run finishes."""
    assert bench.run(bench.state())["done"] == len(durable.STEPS)
    moments = numbered(bench.calls)
    turns = {moment for moment, call in zip(moments, bench.calls, strict=True) if re.search(TURNS, call)}
    spread = moments[:: len(moments) // SAMPLE]
    tried = moments if ALL else [moment for moment in moments if moment in {*spread, *turns}]
    found = [one for die_at in tried for one in bench.trouble(die_at)]
    print(f"\n{len(moments)} writes, killed before {bench.killed} of them")
    assert bench.killed > 0.95 * len(tried), "the writes are other ones each time: nothing was shown"
    assert found == [], "\n".join(found)


def test_an_agent_that_writes_in_place_is_found_out(bench):
    """The search itself notices half a file that has its name."""
    broken = "files are written in place"
    bench.run(bench.state(), broken=broken)
    large = [moment for moment, call in zip(numbered(bench.calls), bench.calls, strict=True) if "models/large" in call]
    assert any("large is not whole" in one for one in bench.trouble(large[len(large) // 2], broken))
