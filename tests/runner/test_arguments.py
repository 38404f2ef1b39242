"""How the runner is told whom to obey."""

import os
import pwd
import socket
import subprocess
import sys

import pytest

from agent.adapters.channel import listen
from agent.core.errors import InputError
from agent.runner.main import arguments


def test_the_agents_user_may_be_named():
    """A unit knows the name of the agent's user, not its number."""
    name = pwd.getpwuid(os.getuid()).pw_name
    assert arguments(["--agent-user", name]).agent_uid == os.getuid()
    assert arguments(["--agent-uid", "123"]).agent_uid == 123


def test_without_a_word_only_its_own_user_is_obeyed():
    """Nobody else gives orders unless somebody says so."""
    assert arguments([]).agent_uid == os.getuid()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--agent-user", "nobody-of-this-name"], "no user 'nobody-of-this-name'"),
        (["--agent-user", "root", "--agent-uid", "123"], "not allowed with"),
    ],
)
def test_a_wrong_user_is_refused_at_start(words, answer, capsys):
    """A runner that would obey nobody, or either of two, does not start."""
    with pytest.raises(SystemExit):
        arguments(words)
    assert answer in capsys.readouterr().err


def refusal(*words):
    """What the command says of a start that it refuses."""
    command = [sys.executable, "-m", "agent.runner.main", *map(str, words)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_file_where_a_socket_should_be_is_kept(tmp_path):
    """Whatever lies there is somebody's: it is told, and not removed."""
    (tmp_path / "file").write_text("mine")
    assert "another file lies there" in refusal("--models", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("place", [".", "nowhere/models.sock", "x" * 200])
def test_a_place_where_no_socket_can_be_is_told(tmp_path, place):
    """A folder, a folder that is missing, a name that is too long: a sentence with the path."""
    assert f"edge-runner: {tmp_path / place}: " in refusal("--models", tmp_path / place)


def test_the_socket_of_a_live_process_is_left_to_it(tmp_path):
    """A second runner does not take the first one's clients away."""
    with listen(tmp_path / "s", socket.SOCK_STREAM):
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            with pytest.raises(InputError, match=r"another process listens there|no socket can be made there"):
                listen(tmp_path / "s", kind)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))


def test_the_socket_of_a_dead_process_is_replaced(tmp_path):
    """What a killed runner left does not keep the next one out."""
    listen(tmp_path / "s").close()
    with listen(tmp_path / "s"), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(tmp_path / "s"))
