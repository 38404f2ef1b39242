"""A real S3 server (SeaweedFS) on the loopback, with an administrator and a device that may only read `models`."""

import json
import os
import subprocess
import sys
from pathlib import Path

from agent.core.errors import EdgeError
from fleet.stores import open_store
from tests.fakes.ports import free_ports
from tests.fakes.waiting import until

BUCKET = "models"
ADMIN = ("AKIAADMIN", "admin-secret-of-the-tests")
EDGE = ("AKIAEDGE", "edge-secret-of-the-tests")
IDENTITIES = {
    "identities": [
        {
            "name": "admin",
            "credentials": [{"accessKey": ADMIN[0], "secretKey": ADMIN[1]}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        },
        {
            "name": "edge",
            "credentials": [{"accessKey": EDGE[0], "secretKey": EDGE[1]}],
            "actions": [f"Read:{BUCKET}"],
        },
    ]
}
PORTS = ("s3.port", "master.port", "volume.port", "filer.port", "admin.port")
GRPC = ("s3.port.grpc", "master.port.grpc", "volume.port.grpc", "filer.port.grpc", "admin.port.grpc")


class Seaweed:
    """One server, started when made and ready when `start` returns."""

    def __init__(self, folder):
        self.folder = folder
        self.ports = dict(zip(PORTS + GRPC, free_ports(len(PORTS) + len(GRPC)), strict=True))
        self.port = self.ports["s3.port"]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        config = self.folder / "s3.json"
        config.write_text(json.dumps(IDENTITIES))
        (self.folder / "blobs").mkdir(exist_ok=True)  # what it had when it was stopped is there again
        self.process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("weed")), "mini", f"-dir={self.folder / 'blobs'}",
                "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={config}", f"-bucket={BUCKET}",
                "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
                "-master.telemetry=false", *(f"-{name}={number}" for name, number in self.ports.items()),
            ],
            stdout=(self.folder / "weed.log").open("ab"),
            stderr=subprocess.STDOUT,
            env=os.environ | {"GOMEMLIMIT": "400MiB"},
            cwd=self.folder,
        )  # fmt: skip
        until(self._answers, 60, "SeaweedFS takes a signed PUT and gives it back")

    def _answers(self):
        assert self.process.poll() is None, (self.folder / "weed.log").read_text()[-2000:]
        try:
            self.store("ready").write("key", b"content")
            return self.store("ready").read("key", 7) == b"content"
        except EdgeError:
            return False

    def store(self, prefix, who=ADMIN, endpoint=None):
        """The bucket below `prefix`, as the administrator or another, directly or through a proxy."""
        return open_store(
            f"s3://{BUCKET}/{prefix}", endpoint=endpoint or self.endpoint, access_key=who[0], secret_key=who[1]
        )

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
