"""The settings of one device, `agent.yaml`: who it is, where things are, and what it may use.

Few knobs: how to run a model travels with the model, signed. No setting here skips a gate or a check.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, field

from agent.adapters import files
from agent.adapters.broker import BrokerSettings
from agent.adapters.channel import grpc_address, loopback
from agent.adapters.store import Positive, StoreSettings
from agent.core.documents import END, Document, from_yaml
from agent.core.errors import InputError

SOCKET_BYTES = 107  # Linux: sun_path with its end
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}" + END


class RunnerSettings(Document):
    """Where the runner listens; `start: auto` starts one where systemd does not."""

    folder: str = "/run/edge-runner"
    tcp: str | None = "127.0.0.1:8000"
    grpc: str | None = None  # takes the extra `grpc`
    start: Literal["auto", "never"] = "auto"

    @property
    def models_socket(self) -> Path:
        """Where the agent gives its orders."""
        return Path(self.folder) / "models.sock"

    @property
    def door_socket(self) -> Path:
        """Where camera applications ask."""
        return Path(self.folder) / "door.sock"


class SlotSettings(Document):
    """How one slot changes its seat, and how long requests may wait for one."""

    swap: Literal["auto", "availability", "resource"] = "auto"
    hold_s: Positive = 10.0


class Settings(Document):
    """All of `agent.yaml`."""

    device: Annotated[str, Meta(pattern=NAME)]
    group: Annotated[str, Meta(pattern=NAME)]
    root: str  # the pinned TUF root, root.json
    device_key: str  # the private key that opens grants, PEM
    store: StoreSettings
    broker: BrokerSettings | None = None
    state_folder: str = "/var/lib/edge-agent"
    run_folder: str = "/run/edge-agent"
    quota_mb: Annotated[float, Meta(gt=0)] | None = None
    import_folder: Annotated[str, Meta(pattern="^/")] | None = None
    runner: RunnerSettings = RunnerSettings()
    slots: Mapping[str, SlotSettings] = field(default_factory=dict)
    health_s: Positive = 30.0
    fps_s: Positive = 10.0

    @property
    def state(self) -> Path:
        """What survives a reboot."""
        return Path(self.state_folder)

    @property
    def run(self) -> Path:
        """What does not."""
        return Path(self.run_folder)

    def slot(self, name: str) -> SlotSettings:
        """The settings of one slot."""
        return self.slots.get(name, SlotSettings())


def read_settings(path: Path) -> Settings:
    """The settings in a file.

    Raises:
        InputError: it is not there, not YAML, or a key is missing, unknown or of another type.
    """
    cure = "give the file agent.yaml: `edge-provision device enrol` writes one, docs/agent.example.yaml explains it"
    content = files.read_needed(path, cure)
    try:
        settings = from_yaml(Settings, content, str(path))
    except InputError as error:
        raise InputError(f"{' '.join(str(error).split())}; docs/agent.example.yaml explains every key") from error
    sockets = {"run_folder": settings.run / "control.sock", "runner.folder": settings.runner.models_socket}
    for name, socket in sockets.items():
        if len(os.fsencode(socket)) > SOCKET_BYTES:
            raise InputError(
                f"{path}: {name}: {socket} has more than {SOCKET_BYTES} bytes, too long for a unix socket; "
                "choose a shorter folder"
            )
    if settings.runner.tcp is not None:
        loopback(f"{path}: runner.tcp:", settings.runner.tcp)
    if settings.runner.grpc is not None:
        grpc_address(f"{path}: runner.grpc:", settings.runner.grpc)
    return settings
