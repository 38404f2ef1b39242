"""A disk that is small, and one that can only be read: what was confirmed serves, and it is said why no more is taken."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.faults.standing import files_of, told, until_told
from tests.system.plant import SLOT
from tests.system.steady import until_settled
from tests.system.weighty import Weighty

MEGABYTES = 0.3
QUOTA_MB = 0.8  # two releases and not three
DISK_BYTES = 160_000_000  # 67 MB stay in reserve, and ext4 keeps a part for itself
LARGE_MB = 0.75  # not even one of these beside what serves


@pytest.fixture
def releases(tmp_path):
    """Makes releases: a date and megabytes give one."""
    return lambda date, megabytes=MEGABYTES: Weighty(tmp_path / "models", date, megabytes, backends=["cpu"])


def test_a_quota_is_kept(plant, releases):
    """The way back makes room for what is wanted; what cannot have room is refused with every number in the refusal."""
    device = plant.device(quota_mb=QUOTA_MB, store={"poll_s": 1.0}).with_one_backend().start()
    for date in ("20250701", "20250702", "20250703"):
        one = plant.publish_checked(releases(date).checked)
        plant.rollout(one.name)
        assert until_settled(device, one)
    kept = [name for name in files_of(device) if name.endswith(".sealed")]
    assert kept == [f"weights/{SLOT}_ssd_plates_2025070{day}.sealed" for day in (2, 3)]
    large = plant.publish_checked(releases("20250704", LARGE_MB).checked)
    plant.rollout(large.name)
    said, _ = until_told(device, "more than the quota_mb of 0.8 in agent.yaml: raise it, or deploy a smaller release")
    assert re.search(r"0\.\d MB are to come and 0\.3 MB are kept \(\w+_20250703 0\.3\)", said["status"])
    assert device.slot()["serving"] == f"{SLOT}_ssd_plates_20250703"
    assert device.slot()["rejections"] == []


class Disk:
    """An ext4 of its own for a device's state, which stops taking writes at an error."""

    def __init__(self, image, folder):
        self.image, self.folder = image, folder
        image.touch()
        os.truncate(image, DISK_BYTES)
        folder.mkdir(parents=True)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", image], check=True)

    def mount(self):
        """Whether that was allowed."""
        options = "loop,errors=remount-ro"
        return subprocess.run(["mount", "-o", options, self.image, self.folder], check=False).returncode == 0

    def fail(self):
        """As by a block that cannot be read."""
        found = subprocess.run(["findmnt", "-no", "SOURCE", self.folder], capture_output=True, text=True, check=True)
        Path(f"/sys/fs/ext4/{Path(found.stdout.strip()).name}/trigger_fs_error").write_text("a test")

    def unmount(self):
        subprocess.run(["umount", "-l", self.folder], check=True)


@pytest.fixture
def device(plant, releases, tmp_path):
    """A device that has confirmed a release, on a disk of its own: `device.disk`."""
    if os.geteuid():
        pytest.skip("a disk of its own needs root")
    made = plant.device(store={"poll_s": 1.0}).with_one_backend()
    made.disk = Disk(tmp_path / "disk.img", Path(made.tree["state_folder"]))
    if not made.disk.mount():
        pytest.skip("a disk of its own needs a loop device: mount -o loop")
    try:
        made.good = plant.publish_checked(releases("20250701").checked)
        plant.rollout(made.good.name)
        assert until_settled(made.start(), made.good)
        yield made
    finally:
        made.close()
        made.disk.unmount()


def test_a_disk_that_fails_can_only_be_read(plant, device, releases):
    """Before and after a reboot the last good release serves, and it is said; after the mend the new one comes."""
    device.disk.fail()
    other = plant.publish_checked(releases("20250702").checked)
    plant.rollout(other.name)
    device.until(lambda: "the disk refused (Read-only file system)" in told(device)["status"], "it is said", 30)
    assert device.slot()["serving"] == device.good.name
    device.close()
    device.start()
    device.until(lambda: device.state()["pid"] == device.agent.pid, "the agent is there")
    device.until_serving(device.good, confirmed=True)
    until_told(device, "the disk can only be read: what was confirmed serves, and nothing new is taken")
    assert device.is_alive()
    assert "Traceback" not in device.log.read_text()
    device.close()
    device.disk.unmount()
    assert device.disk.mount()
    assert until_settled(device.start(), other)
    assert device.state()["ledger"] == ""
