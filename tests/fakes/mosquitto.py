"""A real mosquitto on the loopback that can be killed and come back with what it had on its disk."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fakes.ports import free_ports, is_open
from tests.fakes.waiting import until

CACHED = Path(__file__).parents[2] / ".cache" / "mosquitto"
CONFIG = """\
user root
persistence true
persistence_location {folder}/
autosave_on_changes true
autosave_interval 1
set_tcp_nodelay true
max_queued_messages 20000
max_inflight_messages 20
max_packet_size 262144
allow_anonymous {anonymous}
log_dest stderr
listener {port} 127.0.0.1
{more}
"""


def program():
    """Where mosquitto is, or None."""
    found = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/sbin")
    return found or shutil.which("mosquitto") or (str(CACHED) if CACHED.exists() else None)


def require():
    """Skips the test, saying how to bring one, where there is no mosquitto."""
    if program() is None:
        pytest.skip("mosquitto is not here: run tools/apt.sh mosquitto 2.0")


class Mosquitto:
    """One broker; `more` is appended to its configuration."""

    def __init__(self, folder, more="", anonymous=True):
        self.host = "127.0.0.1"
        (self.port,) = free_ports(1)
        self.config = folder / "mosquitto.conf"
        self.log = folder / "mosquitto.log"
        state = folder / "state"
        state.mkdir(exist_ok=True)
        self.config.write_text(CONFIG.format(folder=state, port=self.port, more=more, anonymous=str(anonymous).lower()))
        self.process = None

    def start(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([program(), "-c", str(self.config)], stderr=log)
        until(lambda: is_open(self.port) or self.process.poll() is not None, what="mosquitto listens")
        assert self.process.poll() is None, self.log.read_text()

    def kill(self):
        """As by `kill -9`: nothing is written any more."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.terminate()
        self.process.wait(10)

    def restart(self):
        self.kill()
        self.start()
