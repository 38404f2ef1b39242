"""What this machine is, and how it is doing while a trial runs. Absent sensors are left out, never guessed."""

import ctypes
import os
import platform
import re
from importlib import import_module
from pathlib import Path

from agent.core.release import Config

_NVIDIA = Path("/proc/driver/nvidia")
_THROTTLED = "devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_NVPMODEL = Path("/var/lib/nvpmodel/status")

WORKSPACE_MB = 1024  # what TensorRT may use while building; half the memory of the smallest Jetson that can build
BUILD_SHARE = 0.5  # of the free memory: engine, weights and what runs beside the build need the rest

Conditions = dict[str, str | float]


def board() -> str:
    """The board or processor, as the firmware names it."""
    tree = _text(Path("/proc/device-tree/model")).strip("\0")
    lines = _text(Path("/proc/cpuinfo")).splitlines()
    return tree or next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def gpu() -> str:
    """The NVIDIA GPU and its driver, or nothing where there is none."""
    if not (_NVIDIA.exists() or Path("/dev/nvhost-gpu").exists() or Path("/dev/nvgpu").exists()):
        return ""
    models = [
        line.split(":")[1].strip()
        for path in sorted(_NVIDIA.glob("gpus/*/information"))
        for line in _text(path).splitlines()
        if line.startswith("Model:")
    ]
    driver = re.search(r"\d+\.[\d.]+", _text(_NVIDIA / "version"))
    release = [f"driver {driver[0]}"] if driver else _text(Path("/etc/nv_tegra_release")).splitlines()[:1]
    return "; ".join([*(models or [board()]), *release])


def peak_memory_mb() -> float:
    """The most memory that this process ever had resident, in MB: what a device must have free for a seat."""
    for line in _text(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def gpu_memory_mb() -> tuple[float, float]:
    """What is free, and in use by everybody, on the first NVIDIA GPU; zeros where its driver has no such counter."""
    memory, gpu_handle = (ctypes.c_uint64 * 3)(), ctypes.c_void_p()  # nvml.h: nvmlMemory_t is total, free, used
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        nvml.nvmlInit_v2()
        nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(gpu_handle))
        failed = nvml.nvmlDeviceGetMemoryInfo(gpu_handle, memory)
    except (OSError, AttributeError):
        return 0.0, 0.0
    return (0.0, 0.0) if failed else (memory[1] / 2**20, memory[2] / 2**20)


def workspace_bytes(config: Config) -> int:
    """What TensorRT may use for a build: what the config says, but no more than this device can spare now."""
    psutil = import_module("psutil")
    free_mb = gpu_memory_mb()[0] or psutil.virtual_memory().available / 2**20  # a Jetson's GPU shares the host's
    wanted_mb = int(config.options("tensorrt").get("workspace_mb", WORKSPACE_MB))
    return int(min(wanted_mb, BUILD_SHARE * free_mb)) << 20


def conditions() -> Conditions:
    """Temperature (celsius), clock (mhz), load (1 minute), power mode and throttle counts of this moment."""
    found: Conditions = {"load": os.getloadavg()[0]}
    psutil = import_module("psutil")  # here, for a seat that loads has no use for it, and starts a tenth sooner without
    celsius = [one.current for group in psutil.sensors_temperatures().values() for one in group]
    if celsius:
        found["celsius"] = max(celsius)
    clock = psutil.cpu_freq()
    if clock is not None and clock.current:
        found["mhz"] = clock.current
    counts = [_text(path).strip() for path in Path("/sys").glob(_THROTTLED)]
    if counts:
        found["throttled"] = float(sum(int(count) for count in counts if count.isdigit()))
    mode = _text(_NVPMODEL).strip() or _text(_GOVERNOR).strip()
    return found | ({"power_mode": mode} if mode else {})


def moved(before: Conditions, after: Conditions) -> tuple[str, ...]:
    """What changed in a way that makes a benchmark between the two void."""
    return tuple(name for name in ("power_mode", "throttled") if before.get(name) != after.get(name))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
