"""What a device stands on: a disk that is full, files that are corrupt, settings that are wrong."""

import contextlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from agent.core.release import Ref
from agent.daemon import cli
from tests.fakes.waiting import until
from tests.faults.standing import files_of, told, until_told
from tests.system.client import command, sync
from tests.system.plant import ONE, ROOT, TWO, CalmCamera, Plant, golden
from tests.system.steady import until_settled

NOISE = random.Random(7).randbytes(64 * 1024)


def state(device, name):
    return Path(device.tree["state_folder"]) / name


# --- files that are corrupt ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rested(tmp_path_factory):
    """A device that has confirmed the good release, and was stopped."""
    plant = Plant(tmp_path_factory.mktemp("rested") / "plant")
    plant.good = plant.publish(ONE)
    plant.rollout(ONE)
    device = plant.device(store={"poll_s": 1.0}).with_one_backend().start()
    assert until_settled(device, plant.good)
    device.stop()
    yield device
    plant.close()


@contextlib.contextmanager
def without_a_store(device):
    """Nothing can be fetched meanwhile."""
    store = Path(device.tree["store"]["url"].removeprefix("file://"))
    away = store.rename(store.with_name("away"))
    try:
        yield
    finally:
        away.rename(store)


@contextlib.contextmanager
def living(device):
    """The agent runs meanwhile."""
    device.start()
    try:
        device.until(lambda: (device.state() or {}).get("pid") == device.agent.pid, "the agent is there")
        assert device.is_alive(), device.log.read_text()[-3000:]
        yield
        assert device.is_alive(), device.log.read_text()[-3000:]
    finally:
        device.stop()


def garble(path):
    path.write_bytes(NOISE)


def garble_the_middle(path):
    content = path.read_bytes()
    path.write_bytes(content[:4096] + NOISE[: len(content) - 4096])


def halve(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 + 100])


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


@pytest.mark.parametrize("spoil", [garble, garble_the_middle, halve, empty, remove])
def test_a_ledger_that_is_corrupt(rested, spoil):
    """Its copy takes its place: the last good release serves, confirmed, without a store; `status` says so."""
    files = files_of(rested)
    spoil(state(rested, "ledger.db"))
    with without_a_store(rested), living(rested):
        rested.until_serving(ONE, confirmed=True)
        until_told(rested, "its copy took its place")
        assert files_of(rested) == files
    with living(rested):
        assert until_settled(rested, rested_release(rested))
        assert rested.state()["ledger"] == ""


def rested_release(device):
    """The release that serves, as its slot names it."""
    device.until(lambda: device.slot().get("digest"), "it serves")
    return Ref(name=ONE, digest=device.slot()["digest"])


def test_a_ledger_and_its_copy_that_are_both_corrupt(rested):
    """It begins anew and says so; as soon as the store answers, the release is there again."""
    garble(state(rested, "ledger.db"))
    garble(state(rested, "ledger.db.copy"))
    with without_a_store(rested), living(rested):
        until_told_in_status(rested, "the ledger begins anew")
    with living(rested):
        rested.until_serving(ONE, confirmed=True)


def until_told_in_status(device, words):
    """Without a slot there is nothing to ask `why` about."""
    device.until(lambda: words in json.dumps(device.state()), words, 20)
    assert words in told(device)["status"]


@pytest.mark.parametrize("spoil", [garble, garble_the_middle, halve, empty])
def test_an_outbox_that_is_corrupt(rested, spoil):
    """What was not said yet is lost, and nothing else."""
    spoil(state(rested, "outbox.db"))
    with without_a_store(rested), living(rested):
        rested.until_serving(ONE, confirmed=True)
        assert rested.is_alive()


@pytest.mark.parametrize("spoil", [garble, halve, empty, remove])
def test_a_sealed_release_that_rotted_on_the_disk(rested, spoil):
    """It is not served; it is fetched again, and serves."""
    spoil(rested.models / "weights" / f"{ONE}.sealed")
    with living(rested):
        rested.until_serving(ONE, confirmed=True)
        assert rested.slot()["rejections"] == []


@pytest.mark.parametrize("spoil", [garble, empty, remove])
def test_kept_metadata_that_is_corrupt(rested, spoil):
    """What the last contact left is damaged: the last good release serves, and the next contact mends it."""
    for path in state(rested, "tuf").rglob("*.json"):
        if not path.is_symlink():
            spoil(path)
    with living(rested), contextlib.ExitStack() as without:
        without.enter_context(without_a_store(rested))
        rested.until_serving(ONE, confirmed=True)
        without.close()
        sync(rested)
        rested.until_serving(ONE, confirmed=True)


def test_ledger_and_outbox_that_are_corrupt_while_a_camera_asks(standing):
    """Killed, garbled, started again: no request fails, for the runner serves meanwhile."""
    device = standing.device
    with standing.unharmed():
        device.agent.kill()
        device.agent.wait()
        for name in ("ledger.db", "outbox.db"):
            garble(state(device, name))
            garble(state(device, f"{name}-wal"))
        device.start()
        device.until(lambda: device.state()["pid"] == device.agent.pid, "the agent is back")
        until_told(device, "its copy took its place")


# --- a disk that is full --------------------------------------------------------------------------------------------

DISK_MB = 72  # 64 stay in reserve


@pytest.fixture
def small_disk(new_plant, mosquitto):
    """A device whose state lies on a disk of its own, with a camera; `fill(leaving)` and `free()` are its disk's."""
    plant = new_plant(broker=mosquitto)
    device = plant.device(store={"poll_s": 1.0}).with_one_backend()
    folder = Path(device.tree["state_folder"])
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("a disk of its own needs root: mount -t tmpfs")
    device.ballast, device.plant = folder / "ballast", plant
    plant.good, plant.other = plant.publish(ONE), plant.publish(TWO)
    plant.rollout(ONE)
    device.start()
    try:
        assert until_settled(device, plant.good), device.log.read_text()[-2000:]
        frame, wanted = golden(ONE)
        device.camera = CalmCamera(device.door, frame, {"20250628": wanted})
        device.camera.start()
        yield device
        device.camera.end()
        assert device.camera.failures == []
    finally:
        device.close()
        subprocess.run(["umount", "-l", folder], check=True)


def fill(device, leaving):
    """Leave so many bytes of the disk."""
    free = os.statvfs(device.ballast.parent)
    with device.ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        left = free.f_bavail * free.f_frsize - leaving
        while left > 0:
            left -= file.write(bytes(min(left, 1 << 16)))


def test_a_disk_without_room_for_a_release(small_disk):
    """It is refused with the numbers; nothing half done stays; it comes when there is room."""
    device, plant = small_disk, small_disk.plant
    files = files_of(device)
    fill(device, 20_000_000)
    plant.rollout(TWO)
    until_told(device, "MB are free: make room; it is tried again")
    assert device.slot()["serving"] == ONE
    assert [name for name in files_of(device) if name not in files and not name.endswith(".part")] == []
    device.ballast.unlink()
    assert until_settled(device, plant.other, 90)


def test_a_disk_that_is_wholly_full(small_disk):
    """The agent lives, the camera is answered, what cannot be recorded is not done; and it recovers."""
    device, plant = small_disk, small_disk.plant
    fill(device, 0)
    plant.rollout(TWO)
    plant.command(device, "report")
    command(device, "sync")
    command(device, "retry")
    until_told(device, "full")
    began = device.camera.answers
    until(lambda: device.camera.answers > began + 50, 20, "the camera is answered")
    assert device.is_alive()
    assert device.slot()["serving"] == ONE
    device.ballast.unlink()
    assert until_settled(device, plant.other, 120)
    assert [name for name in files_of(device) if ".part" in name or ".tmp" in name] == []


def test_an_agent_that_starts_on_a_full_disk(small_disk):
    """Killed and started again on a full disk, it goes on as soon as there is room; the runner serves meanwhile."""
    device, plant = small_disk, small_disk.plant
    device.agent.kill()
    device.agent.wait()
    fill(device, 0)
    device.start()
    until(lambda: "full" in device.log.read_text() or not device.is_alive(), 20, "it says why")
    assert "Traceback" not in device.log.read_text()
    device.ballast.unlink()

    def is_there():  # it may still be about to end over the full disk; systemd starts it again, too
        if not device.is_alive():
            device.start()
        return device.state()["pid"] == device.agent.pid

    until(is_there, 60, "the agent is there")
    assert until_settled(device, plant.good, 60)


# --- settings that are wrong ---------------------------------------------------------------------------------------


def edited(change):
    """Settings with one thing changed."""

    def spoil(folder):
        path = folder / "agent.yaml"
        tree = yaml.safe_load(path.read_bytes())
        change(tree)
        path.write_text(yaml.safe_dump(tree))

    return spoil


def overwritten(name, content):
    return lambda folder: (folder / name).write_bytes(content)


SETTINGS = {
    "no config file": (lambda folder: (folder / "agent.yaml").unlink(), ["agent.yaml: No such file", "enrol"]),
    "a config that is no YAML": (overwritten("agent.yaml", b"device: [cam"), ["agent.yaml", "not valid YAML"]),
    "a config that is binary": (overwritten("agent.yaml", NOISE), ["agent.yaml", "not valid YAML"]),
    "a config of no bytes": (overwritten("agent.yaml", b""), ["agent.yaml", "Expected `object`"]),
    "a config that is a list": (overwritten("agent.yaml", b"- a\n"), ["agent.yaml", "Expected `object`"]),
    "an unknown key": (edited(lambda tree: tree.update(devise="x")), ["agent.yaml", "unknown field `devise`"]),
    "a key that is missing": (edited(lambda tree: tree.pop("group")), ["agent.yaml", "missing required field `group`"]),
    "a key of another type": (edited(lambda tree: tree["store"].update(poll_s="often")), ["agent.yaml", "store.poll_s"]),
    "a number that cannot be": (edited(lambda tree: tree["store"].update(poll_s=-1)), ["agent.yaml", "store.poll_s"]),
    "a device whose name cannot be one": (edited(lambda tree: tree.update(device="a/b")), ["agent.yaml", "`$.device`"]),
    "a store that is none": (edited(lambda tree: tree["store"].update(url="ftp://x")), ["agent.yaml", "`$.store.url`"]),
    "a store without a place": (edited(lambda tree: tree["store"].update(url="s3://")), ["s3://", "write s3://bucket"]),
    "a broker without a host": (edited(lambda tree: tree.update(broker={"port": 1})), ["agent.yaml", "`host`"]),
    "a broker whose host cannot be one": (edited(lambda tree: tree.update(broker={"host": "a..b"})), ["`$.broker.host`"]),
    "half a certificate": (edited(lambda tree: tree.update(broker={"host": "a", "cert": "x"})), ["give both or neither"]),
    "a swap policy that is none": (edited(lambda tree: tree.update(slots={"pose": {"swap": "fast"}})), ["agent.yaml", "fast"]),
    "no key file": (lambda folder: (folder / "device.key").unlink(), ["device.key: No such file", "enrol"]),
    "a key that everybody may read": (lambda folder: (folder / "device.key").chmod(0o644), ["device.key", "chmod 600"]),
    "a key that is none": (overwritten("device.key", b"key"), ["device.key", "no private key in PEM"]),
    "no pinned root": (lambda folder: (folder / "root.json").unlink(), ["root.json: No such file", "enrol"]),
    "a pinned root that is garbage": (overwritten("root.json", b"garbage"), ["root", "provision this device again"]),
    "a pinned root that is another document": (overwritten("root.json", b"{}"), ["root", "provision this device again"]),
}  # fmt: skip


@pytest.fixture
def enrolled(rested, tmp_path):
    """A device's folder, to be spoilt."""
    for name in ("agent.yaml", "device.key", "root.json"):
        content = (rested.folder / name).read_bytes()
        (tmp_path / name).write_bytes(content.replace(str(rested.folder).encode(), str(tmp_path).encode()))
    (tmp_path / "device.key").chmod(0o600)
    return tmp_path


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_are_wrong_end_the_agent_with_one_line(enrolled, monkeypatch, capsys, case):
    """Exit 78, so that systemd does not try again; the line names file and key, and what to do."""
    spoil, words = SETTINGS[case]
    spoil(enrolled)
    monkeypatch.setattr(sys, "argv", ["edge-agent", "run", "--config", str(enrolled / "agent.yaml")])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 78
    (line,) = capsys.readouterr().err.strip().splitlines()
    for word in words:
        assert word in line
    assert "; " in line or ": write" in line, "what to do"


def run(folder, **environment):
    return subprocess.run(
        [sys.executable, "-m", "agent.daemon.cli", "run", "--config", str(folder / "agent.yaml")],
        capture_output=True, text=True, timeout=120, cwd=ROOT, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def test_a_log_level_that_is_none(enrolled):
    """A wrong word in the environment is a setting like any other."""
    done = run(enrolled, EDGE_LOG="loud")
    assert done.returncode == 78
    assert "EDGE_LOG" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_agent_for_one_state(rested):
    """It says so, and the first one goes on."""
    with living(rested):
        rested.until_serving(ONE, confirmed=True)
        done = run(rested.folder)
        assert done.returncode == 78
        assert "another agent runs with this state folder; stop it first" in done.stderr
        assert rested.is_alive()


def test_a_run_folder_that_is_too_long_for_a_socket(enrolled):
    """The system's limit is told before anything is started."""
    edited(lambda tree: tree.update(run_folder=str(enrolled / ("long" * 40))))(enrolled)
    refused(enrolled, "choose a shorter folder")


def test_a_state_folder_that_cannot_be_one(enrolled):
    """Nothing can be kept there: the disk is named, and what to look at."""
    (enrolled / "file").write_text("")
    edited(lambda tree: tree.update(state_folder=str(enrolled / "file" / "x")))(enrolled)
    refused(enrolled, "check the folder's owner, mode and health")


def refused(folder, words):
    done = run(folder)
    assert done.returncode in {1, 78}
    assert words in done.stderr
    assert "Traceback" not in done.stderr
