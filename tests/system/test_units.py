"""The units say what the code does, and systemd finds nothing to object to. `boot/boot.sh` boots them for real."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.adapters.channel import frames_beside
from agent.daemon import cli
from agent.daemon.settings import RunnerSettings, Settings
from agent.runner import main as runner

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"
OF_254 = {"RestartSteps", "RestartMaxDelaySec"}  # an older systemd says "Unknown key" and goes on
EXPOSURE = {"edge-agent": 15, "edge-runner": 10}  # tenths; `systemd-analyze security`

analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here: apt-get install systemd"
)


def values(unit, key):
    """Every value of a key, in order."""
    return re.findall(rf"^{key}=(.*)$", (UNITS / unit).read_text(), re.MULTILINE)


def command(unit, which=0):
    _, *words = shlex.split(values(unit, "ExecStart")[which])
    return words


def run(*words):
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def version():
    return int(re.search(r"\d+", run("systemd-analyze", "--version").stdout)[0])


def extended(drop_in):
    """The unit that a drop-in is for."""
    return re.match(r"# /etc/systemd/system/(edge-\w+\.service)\.d/\d\d-\w+\.conf\n", drop_in.read_text())[1]


def installed(path):
    """A unit or drop-in whose programs are there."""
    return re.sub("/opt/edge-agent/bin/edge-[a-z]+", "/bin/true", path.read_text())


def listened(unit):
    return values(unit, "ListenStream") + values(unit, "ListenSequentialPacket")


@analyze
def test_systemd_understands_every_unit(tmp_path):
    """Each key, value and dependency is known to systemd, those of the drop-ins too."""
    units = [path for path in UNITS.iterdir() if path.suffix in {".service", ".socket", ".slice"}]
    for path in units:
        (tmp_path / path.name).write_text(installed(path))
    for path in (UNITS / "drop-ins").iterdir():
        folder = tmp_path / f"{extended(path)}.d"
        folder.mkdir(exist_ok=True)
        (folder / path.name).write_text(installed(path))
    said = run("systemd-analyze", "verify", *(str(tmp_path / path.name) for path in units))
    known = "|".join(OF_254)
    trouble = [line for line in said.stderr.splitlines() if not re.search(f"Unknown key.*'({known})'", line)]
    assert (said.returncode, trouble) == (0, [])


@analyze
@pytest.mark.parametrize("unit", EXPOSURE)
def test_the_walls_stay_up(unit):
    """A restriction that is dropped raises the exposure that systemd computes."""
    if version() < 250:
        pytest.skip("systemd-analyze security --offline came with 250")
    threshold = f"--threshold={EXPOSURE[unit]}"
    said = run("systemd-analyze", "security", "--offline=true", threshold, str(UNITS / f"{unit}.service"))
    assert said.returncode == 0, said.stdout[-300:]


def test_every_drop_in_says_where_it_goes():
    """Its first line is the path it is copied to, beside a unit that is there."""
    for path in (UNITS / "drop-ins").iterdir():
        assert (UNITS / extended(path)).exists(), path.name


def test_the_agents_command_is_one_it_has():
    """The command line of the unit parses, and names the file that the unit waits for."""
    options = cli.parser().parse_args(command("edge-agent.service"))
    assert options.call is cli.run
    assert [str(options.config)] == values("edge-agent.service", "ConditionPathExists") == [str(cli.CONFIG)]


def test_a_wrong_setting_is_not_tried_again():
    """The exit status of a broken config is the one that ends restarting."""
    assert values("edge-agent.service", "RestartPreventExitStatus") == [str(cli.EX_CONFIG)]


def test_the_drop_in_for_grpc_changes_nothing_else():
    """Its command is the unit's with one option more, for a socket in the folder that systemd makes."""
    *words, option, address = command("drop-ins/30-grpc.conf", -1)
    assert (words, option) == (command("edge-runner.service"), "--grpc")
    (folder,) = values("drop-ins/30-grpc.conf", "RuntimeDirectory")
    assert address == f"unix:/run/{folder}/grpc.sock"


def test_the_runner_obeys_the_agents_user(monkeypatch):
    """The runner's command line parses, and means the user that the agent runs as."""
    asked = []
    monkeypatch.setattr(runner.pwd, "getpwnam", lambda name: asked.append(name) or runner.pwd.struct_passwd("nx12ghs"))
    runner.arguments(command("edge-runner.service"))
    assert asked == values("edge-agent.service", "User")


def test_sockets_lie_where_the_agent_looks():
    """Orders and door are where the settings' defaults say, and the orders' socket has the name that the runner takes."""
    settings = RunnerSettings()
    assert listened("edge-runner-models.socket") == [str(settings.models_socket)]
    assert values("edge-runner-models.socket", "FileDescriptorName") == ["models"]
    frames = frames_beside(settings.door_socket)
    assert listened("edge-runner-door.socket") == [str(settings.door_socket), settings.tcp, str(frames)]
    (names,) = values("edge-runner.service", "Sockets")
    assert names.split() == ["edge-runner-models.socket", "edge-runner-door.socket"]


def test_folders_are_where_the_settings_say():
    """systemd makes the folders that the agent writes to."""
    settings = Settings(device="d", group="g", root="r", device_key="k", store={"url": "file:///s"})
    assert [f"/var/lib/{name}" for name in values("edge-agent.service", "StateDirectory")] == [settings.state_folder]
    assert [f"/run/{name}" for name in values("edge-agent.service", "RuntimeDirectory")] == [settings.run_folder]


@pytest.mark.parametrize("unit", EXPOSURE)
def test_a_device_never_gives_up(unit):
    """Both are started again for ever, and are watched."""
    assert values(f"{unit}.service", "Restart") == ["always"]
    assert values(f"{unit}.service", "StartLimitIntervalSec") == ["0"]
    assert values(f"{unit}.service", "WatchdogSec")
    assert values(f"{unit}.service", "Type") == ["notify"]


def test_every_user_and_group_that_the_units_name_is_made():
    """sysusers.d makes what User=, SupplementaryGroups= and the sockets name."""
    made = set(re.findall(r"^[ug] (\S+)", (UNITS / "sysusers.d/edge-agent.conf").read_text(), re.MULTILINE))
    named = set()
    for path in UNITS.glob("edge-*"):
        for key in ("User", "Group", "SupplementaryGroups", "SocketUser", "SocketGroup"):
            named |= {word for value in values(path.name, key) for word in value.split()}
    assert named <= made
