"""How often a candidate is tried that fails, and what costs it nothing."""

import asyncio
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from msgspec import structs

from agent.adapters import backoff
from agent.adapters.ledger import Ledger
from agent.core.candidate import Backend, Evidence, Failure, Found, Latency
from agent.core.documents import from_json, from_yaml
from agent.core.errors import BackendError, Kind, TransferError
from agent.core.messages import CONFIG, METADATA, Facts, Incident, Prove, SeatFacts, SlotFacts
from agent.core.messages import Load as LoadOrder
from agent.core.plan import Fetch, Load, Swap, Unload
from agent.core.records import Device, Rejection, ReleaseRecord, TrialRecord, trial_key
from agent.core.release import Config, Metadata
from agent.core.slot import SlotRecord
from agent.daemon import reconcile
from agent.daemon.board import Board
from agent.daemon.copies import Copies
from agent.daemon.engines import Engines
from agent.daemon.steps import Steps
from tests.fakes.waiting import reached
from tests.runner.conftest import release

SLOT, ONE = "defect_detection", release(1)
DEVICE = Device(found=(Found(backend=Backend.CPU, present=True, version="1"),), cores=1, power_mode="15W")


@pytest.fixture
def device(tmp_path, monkeypatch):
    """Starts a device that wants a release, on a runner that holds it, has these incidents and says this to a load."""
    monkeypatch.setattr(reconcile, "BACK_OFF_S", (0.0, 0.0))
    ledger = Ledger(tmp_path / "ledger.db")
    config, metadata = from_yaml(Config, ONE.parts[CONFIG], CONFIG), from_json(Metadata, ONE.parts[METADATA], METADATA)
    record = ReleaseRecord(ref=ONE.ref, verified=True, size=1, metadata=metadata, config=config)
    ledger.put("release", ONE.ref.digest, record)
    ledger.put("slot", SLOT, SlotRecord(slot=SLOT, deployed=ONE.ref))
    tasks = []

    def start(error, incidents=(), **serves):
        facts, asked = Facts(slots={SLOT: SlotFacts(incidents=incidents, **serves)}, held=(ONE.ref,)), []

        async def look():
            return facts

        async def ask(order):
            asked.append(order)
            raise error

        runner = SimpleNamespace(facts=Board(facts), line=Board(None), look=look, ask=ask, last_error="")
        engines = Engines(tmp_path / "engines", None, runner)
        copies = Copies(tmp_path, None, ledger, None, engines, None)
        steps = Steps(copies, engines, ledger, runner, lambda _: 1.0, threading.Lock())
        news = SimpleNamespace(tell=lambda *_, **__: None)
        one = reconcile.Reconciler(
            SLOT, Board({}), lambda _: Swap.AVAILABILITY, ledger, steps, runner, news, lambda: DEVICE, Board(None)
        )
        tasks.append(asyncio.create_task(one.run()))
        return asked, ledger

    yield start
    for task in tasks:
        task.cancel()
    ledger.close()


@pytest.mark.parametrize(("kind", "chances"), [(Kind.BACKEND, 3), (Kind.UNSUPPORTED, 1), (Kind.STRUCTURE, 1)])
async def test_what_never_works_is_not_tried_again(device, kind, chances):
    """A driver may hiccup; what a runtime does not support it does not support in a second either."""
    asked, ledger = device(BackendError("cpu/fp16: it computes in fp32", kind))
    rejection = await reached(lambda: ledger.get("rejection", ONE.ref.digest, Rejection))
    assert [type(one) for one in asked] == [LoadOrder] * chances
    assert rejection.failure.kind is kind


async def test_a_runner_that_must_be_restarted_costs_no_chance(device):
    """What it could not start again, because its seats are of a newer version, is not the fault of the release."""
    failure = Failure(kind=Kind.STALE, reason="edge-runner is still 0.0.7")
    stale = [Incident(number=n, at=0.0, place=ONE.place, failure=failure, action="restarting") for n in range(1, 9)]
    asked, ledger = device(TransferError("restart edge-runner"), tuple(stale))
    await reached(lambda: asked)
    assert ledger.get("trial", trial_key(ONE.place), TrialRecord) is None


async def test_a_probe_that_cannot_be_made_waits_before_it_is_made_again(device, monkeypatch):
    """A soak without requests, on a runner that must be restarted first: asked now and then."""
    monkeypatch.setattr(backoff, "wait_s", lambda *_: 0.2)
    evidence = Evidence(
        candidate=ONE.place.candidate, key="k", fps=100.0, latency_ms=Latency(mean=1, std=0, p50=1, p95=1, p99=1)
    )
    trial = TrialRecord(place=ONE.place, key=DEVICE.key(ONE.place.candidate), evidence=evidence)
    seat = SeatFacts(place=ONE.place, state="serving", pid=1)
    asked, ledger = device(TransferError("restart edge-runner"), serving=ONE.place, seats=(seat,))
    ledger.put("trial", trial_key(ONE.place), trial)
    ledger.put("slot", SLOT, SlotRecord(slot=SLOT, deployed=ONE.ref, soak_s=0.0))
    await reached(lambda: len(asked) > 1)
    assert {type(one) for one in asked} == {Prove}
    began, before = time.monotonic(), len(asked)
    await reached(lambda: len(asked) > before + 1)
    assert time.monotonic() - began > 0.2


@pytest.fixture
async def watched(tmp_path):
    """Starts a reconciler of a device whose fetches and loads never end by themselves; all that happens, in order."""
    ledger, desired, order, tasks = Ledger(tmp_path / "ledger.db"), Board({}), [], []

    async def look():
        return Facts()

    async def act(_slot, step, _device):
        order.append(step)
        try:
            await asyncio.Event().wait() if isinstance(step, Fetch | Load) else None
        finally:
            order.append("ended")

    def wish(ref):
        ledger.put("slot", SLOT, SlotRecord(slot=SLOT, deployed=ref))
        desired.post({})

    def start(device):
        runner = SimpleNamespace(facts=Board(Facts()), line=Board(None), look=look, last_error="")
        steps, news = SimpleNamespace(act=act, hold_s=lambda _: 1.0), SimpleNamespace(tell=lambda *_, **__: None)
        one = reconcile.Reconciler(
            SLOT, desired, lambda _: Swap.AVAILABILITY, ledger, steps, runner, news, lambda: device, Board(None)
        )
        seen = one._observe
        one._observe = lambda *facts: order.append("seen") or seen(*facts)
        tasks.append(asyncio.create_task(one.run()))
        return order

    start.ledger, start.wish = ledger, wish
    yield start
    for task in tasks:
        task.cancel()
    ledger.close()


async def test_a_fetch_of_what_is_wanted_no_more_has_ended_before_the_next_look(watched):
    """Else what it recorded last would be seen by nobody until something else happens."""
    watched.wish(ONE.ref)
    order = watched(DEVICE)
    await reached(lambda: Fetch(ONE.ref) in order)
    watched.wish(release(2).ref)
    await reached(lambda: Fetch(release(2).ref) in order)
    assert order[:5] == ["seen", Fetch(ONE.ref), "ended", "seen", Fetch(release(2).ref)]


async def test_an_engine_is_not_built_to_its_end_for_what_is_wanted_no_more(watched):
    """It takes minutes, and a halt or rollback may not wait for them: the seat that builds is ended."""
    config, metadata = from_yaml(Config, ONE.parts[CONFIG], CONFIG), from_json(Metadata, ONE.parts[METADATA], METADATA)
    config = structs.replace(config, backends=(Backend.TENSORRT,))
    record = ReleaseRecord(ref=ONE.ref, verified=True, size=1, metadata=metadata, config=config)
    watched.ledger.put("release", ONE.ref.digest, record)
    watched.wish(ONE.ref)
    order = watched(replace(DEVICE, found=(Found(backend=Backend.TENSORRT, present=True, version="10"),)))
    await reached(lambda: any(isinstance(step, Load) for step in order))
    watched.wish(release(2).ref)
    await reached(lambda: len(order) > 4)
    assert order[2:5] == ["ended", Unload(order[1].place), "ended"]
