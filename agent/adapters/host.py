"""How the machine is: what can be read cheaply, and what is unknown left out rather than guessed.

Sources: psutil; /proc and /sys; on a Jetson also nvpmodel's status file and the device tree. The clock counts as
synchronised when systemd-timesyncd's mark is there (a service may not ask the kernel under ProtectClock).
"""

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil
from msgspec import field

from agent.core.documents import Document

MEGABYTE = 1_000_000
SYNCHRONISED = Path("/run/systemd/timesync/synchronized")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
TREE_MODEL = Path("/sys/firmware/devicetree/base/model")
BOARD = Path("/sys/class/dmi/id")
POWER_MODE = Path("/var/lib/nvpmodel/status")  # e.g. "pmode:0002 ..."
COOLERS = Path("/sys/class/thermal")
BRAKES = re.compile("cpufreq|devfreq|processor|gpu|cpu-throttle")  # in a cooler's type: it slows something down
CORE_THROTTLES = "devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"


class Readings(Document):
    """One look at the machine."""

    cpu_percent: float  # of all cores, since the look before
    load: float  # average of one minute
    memory_available_mb: float
    memory_total_mb: float
    disk_free_mb: float
    celsius: Mapping[str, float] = field(default_factory=dict)  # sensor: temperature
    uptime_s: float = 0.0
    boot_id: str = ""
    clock_synchronised: bool = False
    power_mode: str = ""  # empty: not known
    throttled: bool | None = None  # None: not known
    throttle_count: int = 0  # since boot, where the processor counts
    hardware: str = ""


def readings(disk: Path) -> Readings:
    """How the machine is now; `disk` is a folder on the file system whose free space counts."""
    memory = psutil.virtual_memory()
    return Readings(
        cpu_percent=psutil.cpu_percent(interval=None),
        load=psutil.getloadavg()[0],
        memory_available_mb=memory.available / MEGABYTE,
        memory_total_mb=memory.total / MEGABYTE,
        disk_free_mb=psutil.disk_usage(str(disk)).free / MEGABYTE,
        celsius=_temperatures(),
        uptime_s=time.clock_gettime(time.CLOCK_BOOTTIME),
        boot_id=_line(BOOT_ID),
        clock_synchronised=SYNCHRONISED.exists(),
        power_mode=_line(POWER_MODE).removeprefix("pmode:").split(" ")[0],
        throttled=_is_cooled(),
        throttle_count=sum(_number(path) or 0 for path in Path("/sys").glob(CORE_THROTTLES)),
        hardware=hardware(),
    )


def hardware() -> str:
    """What the maker calls this machine, or its processor's architecture."""
    tree = _line(TREE_MODEL)
    board = " ".join(filter(None, (_line(BOARD / "sys_vendor"), _line(BOARD / "product_name"))))
    return tree or board or os.uname().machine


def _temperatures() -> dict[str, float]:
    found = {}
    with suppress(OSError, AttributeError):  # psutil offers this only where it knows how
        for chip, sensors in psutil.sensors_temperatures().items():
            for number, sensor in enumerate(sensors):
                found[f"{chip}-{sensor.label or number}"] = sensor.current
    return found


def _is_cooled() -> bool | None:
    """Whether the kernel holds a processor or GPU back because of heat; None where it does not say."""
    brakes = [cooler for cooler in COOLERS.glob("cooling_device*") if BRAKES.search(_line(cooler / "type").lower())]
    states = [state for cooler in brakes if (state := _number(cooler / "cur_state")) is not None]
    return any(states) if states else None


def _number(path: Path) -> int | None:
    text = _line(path)
    return int(text) if text.isdigit() else None


def _line(path: Path) -> str:
    """The first line, or nothing: a file of /sys may be there and yet refuse."""
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text().rstrip("\0\n ").split("\n")[0].strip()
    return ""
