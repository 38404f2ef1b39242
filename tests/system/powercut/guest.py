"""Inside the guest, as its first process: write through dm-log-writes, then cut the power after every write.

1. A device does all its durable work (tests/faults/durable.py) on an ext4 whose block device keeps a log: every write
   with its content, in the order in which the disk had it, and a mark where the device said that something counts.
   A write that no flush has confirmed comes into the log behind the mark: what was said too early is found out.
2. The log is replayed over the empty file system. After every entry the disk as it then was is mounted, which plays
   ext4's own journal, and is given to the next start of the device.
3. At every NEXT-th of these points the device also does the rest of its work, and is looked at again.

The guest has no disk but its memory, sees the machine's files read-only, and writes one file: the figures.
"""

import ctypes
import json
import os
import platform
import struct
import subprocess
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path

from tests.faults import durable, next_start

MODULES = Path("/usr/lib/uml/modules")
FINIT_MODULE = 313  # its number on x86-64, where User-Mode Linux lives
POWER_OFF = 0x4321FEDC  # linux/reboot.h
DISK_BYTES = 16 * 1024 * 1024
RAM_KB = 384 * 1024  # of each memory disk: the log holds all that was ever written
SECTOR = 512
MAGIC, VERSION = 0x6A736677736872, 1  # drivers/md/dm-log-writes.c: its head, then 4 numbers before each entry's bytes
DISCARD, MARK = 4, 8
NEXT = 25
DISK, LOG, CRASHED = "/dev/ram0", "/dev/ram1", "/dev/ram2"

libc = ctypes.CDLL(None, use_errno=True)


def call(*words):
    subprocess.run(words, check=True, env={**os.environ, "DM_DISABLE_UDEV": "1"})


def prepare():
    """Kernel file systems, modules, and three disks of memory."""
    for kind, place in (("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run"), ("tmpfs", "/dev/shm")):
        Path(place).mkdir(parents=True, exist_ok=True)
        mount(kind, place, kind)
    for name, options in (("dm-mod", ""), ("dm-log-writes", ""), ("brd", f"rd_nr=3 rd_size={RAM_KB}")):
        insert(next((MODULES / platform.release()).rglob(f"{name}.ko")), options)
    call("dmsetup", "mknodes")
    for place in ("/run/device", "/run/crashed", "/run/out"):
        Path(place).mkdir()


def insert(module, options):
    with module.open("rb") as file:
        demand(libc.syscall(FINIT_MODULE, file.fileno(), options.encode(), 0), f"module {module}")


def mount(source, place, kind, options=""):
    demand(libc.mount(source.encode(), place.encode(), kind.encode(), 0, options.encode()), f"mount {place}")


def unmount(place):
    demand(libc.umount2(place.encode(), 0), f"unmount {place}")


def demand(code, what):
    if code:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


@contextmanager
def logged():
    """The disk that keeps a log, mounted; the log is whole when it is left."""
    sectors = DISK_BYTES // SECTOR
    call("dmsetup", "create", "log", "--table", f"0 {sectors} log-writes {DISK} {LOG}")
    mount("/dev/mapper/log", "/run/device", "ext4")
    try:
        yield
    finally:
        unmount("/run/device")
        call("dmsetup", "remove", "log")


def mark(said):
    """What counts from now on, in the log."""
    call("dmsetup", "message", "log", "0", "mark", json.dumps(said, separators=(",", ":")).replace(" ", "_"))


def record(world, broken):
    """The empty disk, and the log of all the work."""
    call("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-J", "size=4", "-E",
         "lazy_itable_init=0,lazy_journal_init=0", DISK, f"{DISK_BYTES // 1024}K")  # fmt: skip
    os.sync()
    with Path(DISK).open("rb") as disk:
        empty = bytearray(disk.read(DISK_BYTES))
    with logged():
        durable.work(world, Path("/run/device/state"), 0, mark, broken)
    return empty


def entries():
    """(offset on the disk, bytes, mark) of each entry of the log."""
    with Path(LOG).open("rb") as log:
        magic, version, count, sector = struct.unpack("<QQQI", log.read(28))
        assert (magic, version, sector) == (MAGIC, VERSION, SECTOR), "this kernel logs in another format"
        at = sector
        for _ in range(count):
            log.seek(at)
            place, sectors, flags, length = struct.unpack("<QQQQ", log.read(32))
            at += sector
            if flags & MARK:
                yield 0, b"", log.read(length).rstrip(b"\0").decode()
            elif not flags & DISCARD:
                log.seek(at)
                yield place * sector, log.read(sectors * sector), ""
                at += sectors * sector


def replay(world, image):
    """(points, what was wrong at the bad ones)."""
    said, points, bad = {}, 0, []
    for place, content, marked in entries():
        if marked and not marked.startswith("{"):
            continue  # the log's own
        if marked:
            said = {name.replace("_", " "): number for name, number in json.loads(marked).items()}
            continue
        if not content:
            continue  # a flush alone: the disk is as it was
        image[place : place + len(content)] = content
        points += 1
        found = look(world, image, said, is_finished=points % NEXT == 0)
        if found:
            bad.append(f"after write {points}, in {name_of(said)}: {'; '.join(found)}")
        if points % 100 == 0 or (found and len(bad) == 1):
            print(f"{points} points, {len(bad)} of them bad {bad[-1:]}", flush=True)
    return points, bad


def name_of(said):
    return [*(step.name for step in durable.STEPS), "the end"][said.get("done", 0)]


def look(world, image, said, *, is_finished):
    """What is wrong with a disk as it was left."""
    with Path(CRASHED).open("r+b", buffering=0) as disk:
        disk.write(image)
    try:
        mount(CRASHED, "/run/crashed", "ext4")
    except OSError as error:
        return [str(error)]
    try:
        state = Path("/run/crashed/state")
        state.mkdir(exist_ok=True)
        found = next_start.check(world, state, said)
        return found or (finish(world, state, said) if is_finished else [])
    except Exception as error:  # noqa: BLE001  whatever the device does then is a finding
        return [f"{type(error).__name__}: {error}"]
    finally:
        unmount("/run/crashed")


def finish(world, state, said):
    """The rest of the work after the cut."""
    told = [said]
    durable.work(world, state, said.get("done", 0), told.append)
    return [f"and run again: {one}" for one in next_start.check(world, state, told[-1], cuts=1)]


def main(world, out, broken):
    """The figures, into the one folder that may be written."""
    mount("none", "/run/out", "hostfs", str(out))
    image = record(world, broken)
    points, bad = replay(world, image)
    figures = {"points": points, "bad": len(bad), "first": bad[:10]}
    Path("/run/out/figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    try:
        prepare()
        main(durable.World.load(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3])
    except BaseException:  # noqa: BLE001  the first process of a machine has nobody above it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        libc.reboot(POWER_OFF)
