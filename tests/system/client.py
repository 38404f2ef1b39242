"""The commands of a device, as its user gives them."""

import subprocess
import sys

from tests.system.plant import ROOT


def command(device, *words, timeout=120):
    """Run `edge-agent WORDS` for a device; the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "agent.daemon.cli", words[0], *words[1:], "--config", str(device.config)],
        capture_output=True, text=True, timeout=timeout, cwd=ROOT, check=False,
    )  # fmt: skip


def sync(device):
    """Ask the store now."""
    done = command(device, "sync")
    assert done.returncode == 0, done.stderr
