"""What a device says of a model that heat has made slow in its soak."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from agent.adapters import host
from agent.adapters.ledger import Ledger
from agent.core.candidate import Backend, Evidence, Found, Latency
from agent.core.documents import from_json, from_yaml
from agent.core.messages import CONFIG, METADATA, Counters, Facts, SeatFacts, SlotFacts
from agent.core.plan import Swap
from agent.core.records import Device, ReleaseRecord, TrialRecord, trial_key
from agent.core.release import Config, Metadata
from agent.core.slot import SlotRecord
from agent.daemon import reconcile
from agent.daemon.board import Board
from tests.runner.conftest import release

SLOT, ONE = "defect_detection", release(1)
DEVICE = Device(found=(Found(backend=Backend.CPU, present=True, version="1"),), cores=1, power_mode="15W")
QUICK, SLOW = (Latency(mean=ms, std=1, p50=ms, p95=ms, p99=ms) for ms in (10.0, 20.0))
LOOKS = 5


@pytest.fixture
def ledger(tmp_path):
    """A device that soaks a release, whose trial took 10 ms a run when the processor had throttled three times."""
    ledger = Ledger(tmp_path / "ledger.db")
    config, metadata = from_yaml(Config, ONE.parts[CONFIG], CONFIG), from_json(Metadata, ONE.parts[METADATA], METADATA)
    record = ReleaseRecord(ref=ONE.ref, verified=True, metadata=metadata, config=config)
    ledger.put("release", ONE.ref.digest, record)
    ledger.put("slot", SLOT, SlotRecord(slot=SLOT, deployed=ONE.ref))
    evidence = Evidence(
        candidate=ONE.place.candidate, key="k", fps=100.0, latency_ms=QUICK, conditions={"throttled": 3.0}
    )
    trial = TrialRecord(place=ONE.place, key=DEVICE.key(ONE.place.candidate), evidence=evidence)
    ledger.put("trial", trial_key(ONE.place), trial)
    yield ledger
    ledger.close()


@pytest.mark.parametrize(
    ("newest", "cooled", "told"),
    [
        (SLOW, {"throttled": True, "throttle_count": 0}, 1),
        (SLOW, {"throttled": None, "throttle_count": 4}, 1),
        (SLOW, {"throttled": False, "throttle_count": 3}, 0),
        (QUICK, {"throttled": True, "throttle_count": 4}, 0),
    ],
    ids=["cooled now", "throttled since", "slow without heat", "hot, but quick"],
)
async def test_what_heat_costs_a_soak_is_told_once(ledger, tmp_path, monkeypatch, newest, cooled, told):
    """A model that lost its speed to heat is told with both figures, and goes on while its gates are kept."""
    monkeypatch.setattr(host, "readings", lambda _: SimpleNamespace(**cooled))
    monkeypatch.setattr(reconcile, "LOOK_S", 0.01)
    seat = SeatFacts(place=ONE.place, state="serving", pid=1)
    counters = Counters(requests=1000, busy_s=10.0, run_ms=newest)
    slot = SlotFacts(serving=ONE.place, serving_since=time.monotonic(), seats=(seat,), counters=counters)
    facts, looks, enough, said = Facts(slots={SLOT: slot}), [], asyncio.Event(), []

    async def look():
        looks.append(1)
        if len(looks) == LOOKS:
            enough.set()
        return facts

    runner = SimpleNamespace(facts=Board(facts), line=Board(None), look=look, last_error="")
    news = SimpleNamespace(tell=lambda kind, **words: said.append((kind, words["reason"])))
    steps = SimpleNamespace(copies=SimpleNamespace(folder=tmp_path), hold_s=lambda _: 1.0)
    one = reconcile.Reconciler(
        SLOT, Board({}), lambda _: Swap.AVAILABILITY, ledger, steps, runner, news, lambda: DEVICE, Board(None)
    )
    task = asyncio.create_task(one.run())
    await asyncio.wait({task, asyncio.create_task(enough.wait())}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    assert enough.is_set(), "the soak went on"
    task.cancel()
    assert [kind for kind, _ in said] == ["throttled"] * told
    assert all("took 20.0 ms or more, in its trial it was 10.0 ms" in reason for _, reason in said)
