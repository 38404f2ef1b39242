"""What a seat cannot do, whatever the libraries in it are made to do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agent.core.candidate import Backend, Candidate
from agent.core.messages import Load, Place
from agent.runner import walls
from tests.runner.conftest import release

TRIED = """
import json, os, socket, sys
from pathlib import Path
from agent.runner import walls

folder, cache = Path(sys.argv[1]), Path(os.environ["CACHE_DIRECTORY"])
drawn = walls.draw()
(at_tcp := lambda kind: socket.socket(kind, socket.SOCK_STREAM))
deeds = {
    "IPv4": lambda: at_tcp(socket.AF_INET), "IPv6": lambda: at_tcp(socket.AF_INET6),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "UDP": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "unix": lambda: at_tcp(socket.AF_UNIX),
    "write": lambda: (folder / "old").write_text("x"), "make": lambda: (folder / "new").write_text("x"),
    "remove": lambda: (folder / "old").unlink(), "truncate": lambda: os.truncate(folder / "old", 0),
    "read": lambda: (folder / "old").read_text(),
    "device": lambda: Path("/dev/null").write_text("x"), "cache": lambda: (cache / "new").write_text("x"),
    "memory": lambda: os.write(os.memfd_create("m"), b"x"),
    "signal": lambda: os.kill(os.getppid(), 0), "signal to itself": lambda: os.kill(os.getpid(), 0),
}
done = []
for name, deed in deeds.items():
    try:
        deed()
    except OSError:
        continue
    done.append(name)
print(json.dumps([drawn, done]))
"""
MAY = ["unix", "read", "device", "cache", "memory", "signal to itself"]


@pytest.fixture
def tried(tmp_path):
    """Which walls were drawn, and what could still be done inside them."""
    (tmp_path / "old").write_text("kept")
    (tmp_path / "cache").mkdir()
    environment = {"CACHE_DIRECTORY": str(tmp_path / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}
    said = subprocess.run(
        [sys.executable, "-c", TRIED, str(tmp_path)], env=environment, capture_output=True, check=True
    )
    drawn, done = json.loads(said.stdout)
    for wall, reason in drawn.items():
        if reason:
            pytest.skip(f"{wall}: {reason}")
    return done


def test_inside_the_walls_only_harmless_things_are_done(tried, tmp_path):
    """No network, no file changed but devices and the cache, no signal to others; reading and memory are left."""
    assert tried == MAY
    assert (tmp_path / "old").read_text() == "kept"


async def test_each_thread_of_a_seat_is_walled_in(agent, slot):
    """No thread was there before the walls: a library's own would be free of them."""
    one = release(1)
    await agent.hand_over(one)
    place = Place(ref=one.ref, candidate=Candidate(backend=Backend.CPU, threads=2))
    loaded = await agent.ask(Load(slot=slot, place=place))
    threads = threads_of(loaded.pid)
    assert len(threads) > 1
    assert {(one["NoNewPrivs"], one["Seccomp"]) for one in threads} == {("1", "2")}


def threads_of(pid):
    """What the kernel says of each thread of a process."""
    texts = [(thread / "status").read_text() for thread in Path(f"/proc/{pid}/task").iterdir()]
    return [dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line) for text in texts]


def test_a_wall_that_the_kernel_lacks_is_told(monkeypatch):
    """Where one cannot be drawn the reason is given; nothing is raised."""
    monkeypatch.setattr(walls, "_prctl", lambda *_: None)  # this process is to stay as it is
    monkeypatch.setattr(walls, "_CREATE_RULESET", 100_000)
    monkeypatch.setattr(walls.platform, "machine", lambda: "riscv64")
    drawn = walls.draw()
    assert drawn["no new privileges"] == ""
    assert "riscv64" in drawn["no network"]
    assert "not implemented" in drawn["read-only files"]
