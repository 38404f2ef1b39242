"""Models of one device share its cores: two of them do not get all of it twice."""

import os
from types import SimpleNamespace

import pytest

from agent.core.candidate import Backend, Found
from agent.core.release import Config, Ref
from agent.core.slot import SlotRecord
from agent.daemon.agent import Agent
from agent.daemon.board import Board

CONFIG = Config(input_size=(8, 8), confidence_threshold=0.5)
WANTED = Ref(name="pose_ssd_coco_20250628", digest="d")


def device(slots, monkeypatch, cores=8):
    """A device of so many cores with a runner that has a CPU, and these slots."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    found = (Found(backend=Backend.CPU, present=True),)
    line = SimpleNamespace(value=SimpleNamespace(welcome=SimpleNamespace(found=found)))
    intake = SimpleNamespace(desired=Board(slots))
    return Agent.device(SimpleNamespace(runner=SimpleNamespace(line=line), intake=intake, _power_mode=""))


def wanting(*names):
    return {name: SlotRecord(slot=name, deployed=WANTED) for name in names}


@pytest.mark.parametrize(
    ("slots", "threads"),
    [((), 8), (("pose",), 8), (("pose", "tracking"), 4), (("a", "b", "c"), 2), (tuple("abcdefghijkl"), 1)],
)
def test_each_slot_has_its_share_of_the_cores(slots, threads, monkeypatch):
    """A model that is alone computes on all of them; none has less than one."""
    (candidate,) = device(wanting(*slots), monkeypatch).candidates(CONFIG)
    assert candidate.threads == threads


def test_a_slot_that_wants_nothing_takes_no_share(monkeypatch):
    """A slot that was taken out of the deployment gives its cores back, and what was too slow may be tried again."""
    both = wanting("pose", "tracking")
    alone = both | {"tracking": SlotRecord(slot="tracking")}
    (candidate,) = device(alone, monkeypatch).candidates(CONFIG)
    assert candidate.threads == 8
    assert device(alone, monkeypatch).state != device(both, monkeypatch).state
