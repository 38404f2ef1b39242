"""How the runner is told whom to obey."""

import os
import pwd

import pytest

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
