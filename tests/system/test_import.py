"""A site without a network: a device that never reaches its store lives on exported files."""

import os

import pytest

from agent.adapters.archive import ArchiveStore
from fleet.export import export
from tests.adapters.zips import zipped
from tests.system.client import command
from tests.system.plant import GROUP, ONE, SLOT, TWO, now

NOWHERE = "https://127.0.0.1:9/store"


@pytest.fixture
def site(plant, tmp_path):
    """A plant whose device cannot reach the store, with a folder for files."""
    drop = tmp_path / "drop"
    drop.mkdir()
    device = plant.device(store={"url": NOWHERE}, import_folder=str(drop)).start()
    return plant, device, drop


def exported(plant, path):
    export(plant.repository, GROUP, [], path, now=now(), tell=lambda *_: None)
    return path


def test_a_site_lives_on_files_alone(site, tmp_path):
    """Imported by command, then by a copy into the folder: each release serves and is confirmed; an old file is refused."""
    plant, device, drop = site
    first = plant.publish(ONE)
    plant.rollout(ONE)
    old = exported(plant, tmp_path / "one.zip")
    device.until(lambda: device.state() and device.state()["runner"]["connected"], "the runner is there")
    done = command(device, "import", str(old))
    assert (done.returncode, done.stdout) == (0, f"imported {old}: `edge-agent status` shows what comes of it\n")
    device.until_serving(first, confirmed=True)

    second = plant.publish(TWO)
    plant.rollout(TWO)
    temp = exported(plant, drop / "two.part")
    temp.rename(drop / "two.zip")
    device.until_serving(second, confirmed=True)

    done = command(device, "import", str(old))
    assert done.returncode != 0
    assert "older than what was seen here" in done.stderr
    assert device.slot()["serving"] == TWO


def test_what_is_refused_leaves_nothing(site, tmp_path):
    """A file without its release, a damaged one, garbage: one line each, nothing half done, and the agent lives."""
    plant, device, drop = site
    plant.publish(ONE)
    plant.rollout(ONE)
    whole = ArchiveStore(exported(plant, tmp_path / "site.zip"))
    entries = [(key, whole.read(key, 1 << 30)) for key in sorted(whole._entries)]
    without = zipped(tmp_path / "without.zip", [one for one in entries if not one[0].endswith(".sealed")])
    spoilt = [(key, content[:-1] + b"x" if key.endswith(".sealed") else content) for key, content in entries]
    spoilt = zipped(tmp_path / "spoilt.zip", spoilt)
    device.until(lambda: device.state() and device.state()["runner"]["connected"], "the runner is there")
    for path, words in (
        (without, "is not in it"),
        (spoilt, "is signed"),
        (device.config, "not a whole export"),
        (tmp_path, f"{tmp_path}: a folder"),
        (tmp_path / "none", "no such file"),
    ):
        done = command(device, "import", str(path))
        assert done.returncode != 0
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    (drop / "bad.zip").write_text("garbage")
    device.until(lambda: "bad.zip" in device.state()["refused"], "the refusal is told")
    assert not [name for _, _, names in os.walk(device.models) for name in names if "part" not in name]
    assert device.slot(SLOT)["serving"] == ""
    assert device.is_alive()
