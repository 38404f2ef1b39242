"""Client and runner as different users, as on a device: what was written for Triton, unmodified, and who may use what.

perf_analyzer is Triton's own load generator; `tools/perf_analyzer.sh` brings it.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.ports import free_ports
from tests.runner.conftest import SHAPE, release, runner_in
from tests.system.plant import ROOT

RUNNER, CAMERA, CLIENTS = 64001, 64002, 64003  # two users and a group that the machine need not know
SLOT = "defects"
PERF = ROOT / ".cache" / "perf_analyzer"

# What a camera application does with NVIDIA's client. Arguments: address, group of its regions or -1 for its own.
APPLICATION = """
import json, os, sys
import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, shared_memory

address, group = sys.argv[1], int(sys.argv[2])
x = np.random.default_rng(1).random({shape}, np.float32)
key = f"/edge-test-users-{{os.getpid()}}"
memory = shared_memory.create_shared_memory_region("frames", key, 2 * x.nbytes)
try:
    if group >= 0:
        os.chown("/dev/shm" + key, -1, group)
        os.chmod("/dev/shm" + key, 0o660)
    shared_memory.set_shared_memory_region(memory, [x])
    client = triton.InferenceServerClient(address)
    try:
        client.register_system_shared_memory("frames", key, 2 * x.nbytes)
    except InferenceServerException as error:
        print(json.dumps({{"refused": str(error)}}))
        sys.exit()
    given = triton.InferInput("x", x.shape, "FP32")
    given.set_shared_memory("frames", x.nbytes)
    wanted = triton.InferRequestedOutput("y")
    wanted.set_shared_memory("frames", x.nbytes, offset=x.nbytes)
    client.infer("{slot}", [given], outputs=[wanted])
    y = shared_memory.get_contents_as_numpy(memory, np.float32, x.shape, offset=x.nbytes)
    client.unregister_system_shared_memory("frames")
    print(json.dumps({{"doubled": bool((y == 2 * x).all())}}))
finally:
    shared_memory.destroy_shared_memory_region(memory)
"""

# Ours may lie in a folder of root's; the system's takes our packages where it is of the same version.
PYTHONS = (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}")
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}:{sysconfig.get_path('purelib')}"}


@dataclass(frozen=True)
class User:
    """Who runs a program."""

    number: int
    groups: tuple[int, ...]

    @property
    def options(self):
        return {"user": self.number, "group": self.number, "extra_groups": self.groups}

    def run(self, *words):
        return subprocess.run(
            [*map(str, words)],
            capture_output=True, text=True, timeout=120, check=False, cwd="/", env=ENVIRONMENT, **self.options,
        )  # fmt: skip


CAMERA_USER, STRANGER = User(CAMERA, (CLIENTS,)), User(CAMERA, ())
RUNNER_USER = User(RUNNER, (CLIENTS,))


@pytest.fixture(scope="module")
def python():
    """An interpreter that other users can run, with what the client needs."""
    if os.geteuid() != 0:
        pytest.skip("only root can start programs as other users")
    for python in PYTHONS:
        try:
            if not CAMERA_USER.run(python, "-c", "import agent.runner.main, numpy, tritonclient.http").returncode:
                return python
        except OSError:  # not there, or not for them
            continue
    pytest.skip(f"other users can run none of {PYTHONS} with our packages")


@pytest.fixture(scope="module")
def grpc_address():
    """Where the same runner is asked by gRPC."""
    return f"127.0.0.1:{free_ports(1)[0]}"


@pytest.fixture(scope="module")
def address(python, grpc_address):
    """The loopback door of a runner that is a user of its own, and serves twice what it is given."""
    folder = Path(tempfile.mkdtemp(prefix="edge-users-"))
    os.chown(folder, RUNNER, CLIENTS)
    folder.chmod(0o750)
    (port,) = free_ports(1)
    tcp = f"127.0.0.1:{port}"
    with asyncio.Runner() as loop:
        words = ("--agent-uid", "0", "--grpc", grpc_address)
        runner = runner_in(folder, tcp, *words, python=python, env=ENVIRONMENT, **RUNNER_USER.options)
        running = loop.run(runner.__aenter__())
        loop.run(serve(running))
        yield tcp
        loop.run(runner.__aexit__(None, None, None))
    shutil.rmtree(folder)


async def serve(running):
    agent = await running.agent()
    await agent.serve(SLOT, release(1))
    await agent.client.close()


def application(python, address, group):
    done = CAMERA_USER.run(python, "-c", APPLICATION.format(shape=SHAPE, slot=SLOT), address, group)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_region_of_the_group_serves(python, address):
    """A camera's region that it gave to the group of clients carries its frames and answers."""
    assert application(python, address, CLIENTS) == {"doubled": True}


def test_a_region_of_the_camera_alone_is_refused(python, address):
    """As NVIDIA's client makes it, for its user alone: the refusal says whose it is and what to do."""
    refused = application(python, address, -1)["refused"]
    assert re.search(rf"user {CAMERA} with mode 0600.* chgrp edge-clients /dev/shm/\S+ && chmod 660", refused)


@pytest.fixture
def tidy():
    """perf_analyzer calls its regions as the model's tensors, and leaves them where it fails."""
    yield
    for name in "xy":
        Path("/dev/shm", name).unlink(missing_ok=True)


def perf_analyzer(user, address, *words):
    if not PERF.exists():
        pytest.skip("perf_analyzer is not here: tools/perf_analyzer.sh brings it")
    done = user.run(
        PERF, "-m", SLOT, "-u", address, "--concurrency-range", 2, "--measurement-mode", "count_windows",
        "--measurement-request-count", 50, "--stability-percentage", 999, "--max-trials", 3, *words,
    )  # fmt: skip
    return done, re.search(r"Throughput: ([\d.]+) infer/sec", done.stdout)


def test_perf_analyzer_with_binary_tensors(address):
    """It measures the door as another user, and finds all figures that it asks for."""
    done, throughput = perf_analyzer(CAMERA_USER, address)
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(throughput[1]) > 1
    assert re.search(r"Inference count: [1-9]", done.stdout)


def test_perf_analyzer_with_shared_memory(address, tidy):
    """It makes regions for its own user alone; so it must be the runner's user."""
    done, throughput = perf_analyzer(RUNNER_USER, address, "--shared-memory", "system")
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(throughput[1]) > 1


@pytest.mark.usefixtures("address")
@pytest.mark.parametrize("words", [(), ("--streaming",), ("--shared-memory", "system")], ids=str)
def test_perf_analyzer_by_grpc(grpc_address, words):
    """It measures the door for gRPC, too: message by message, as a stream, and with frames in regions."""
    done, throughput = perf_analyzer(RUNNER_USER, grpc_address, "-i", "grpc", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(throughput[1]) > 1


def test_perf_analyzer_is_told_why_it_may_not(address, tidy):
    """As another user it shows the door's own words."""
    done, throughput = perf_analyzer(STRANGER, address, "--shared-memory", "system")
    assert (done.returncode != 0, throughput) == (True, None)
    assert "chgrp edge-clients" in done.stdout + done.stderr
