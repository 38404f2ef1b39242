"""`make powercut`: a device that loses its power after every single write starts again whole, in a guest machine.

User-Mode Linux needs neither root nor a virtual machine; the guest sees this machine's files read-only. What is found
of an agent that leaves out the sync of folders shows that the search finds something. The guest: guest.py.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import _results
from tests.faults import durable
from tests.system.powercut.guest import MODULES

ROOT = Path(__file__).parents[3]
NEEDED = {"linux.uml": "user-mode-linux", "dmsetup": "dmsetup", "mke2fs": "e2fsprogs"}
MEMORY_MB = 1536
LONGEST_S = 3600
WRONG = "folders are not synced"
CLAIMS = {
    "points": "writes of a device's whole life, after each of which the power was cut",
    "bad_points": "of these: a fact, file or number was lost or torn, or the next start did not go on",
    "points_unsynced": "the same, of an agent that leaves out the sync of folders",
    "bad_points_unsynced": "of these bad, which shows that the search finds something",
    "seconds": "seconds for both, in a User-Mode Linux guest",
    "load": "load average of the machine before all this began",
}


def missing():
    """The packages that are not here."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    found = {package for program, package in NEEDED.items() if shutil.which(program, path=path) is None}
    return sorted(found if MODULES.is_dir() else found | {"user-mode-linux"})


def cut(world, folder, broken):
    """What a guest found; its console goes to this one's."""
    init, out = folder / "init", folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    init.write_text(
        f'#!/bin/sh\ncd "{ROOT}"\nexport PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/run\n'
        "export PYTHONDONTWRITEBYTECODE=1 OPENBLAS_NUM_THREADS=1\n"
        f'exec "{sys.executable}" -m tests.system.powercut.guest "{world}" "{out}" "{broken}"\n'
    )
    init.chmod(0o755)
    subprocess.run(
        ["linux.uml", f"mem={MEMORY_MB}M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet",
         "con0=fd:0,fd:1", "con=null", f"init={init}"],
        stdin=subprocess.DEVNULL, timeout=LONGEST_S, check=False, start_new_session=True,
    )  # fmt: skip
    figures = out / "figures.json"
    return json.loads(figures.read_text()) if figures.exists() else None


def main():
    """Exit 0: no bad moment, and the agent that leaves out a sync has some."""
    if packages := missing():
        print(f"missing: {', '.join(packages)}. As root: apt-get install -y {' '.join(packages)}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="edge-cut-"))
    began, load = time.monotonic(), os.getloadavg()[0]
    try:
        durable.make_world(folder / "world")
        world = folder / "world" / "world.json"
        sound, wrong = cut(world, folder, ""), cut(world, folder, WRONG)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if sound is None or wrong is None:
        print("the guest ended without figures; its console is above", file=sys.stderr)
        return 1
    print("\n".join(sound["first"]))
    is_good = not sound["bad"] and bool(wrong["bad"])
    figures = {
        "points": sound["points"],
        "bad_points": sound["bad"],
        "points_unsynced": wrong["points"],
        "bad_points_unsynced": wrong["bad"],
        "seconds": round(time.monotonic() - began),
        "load": round(load, 1),
    }
    if is_good:
        _results.write("powercut", CLAIMS, figures)
    _results.tell(figures)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
