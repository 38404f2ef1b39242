"""What a trial's evidence comes to on the device."""

import threading
from types import SimpleNamespace

import pytest

from agent.adapters import memory_file
from agent.adapters.ledger import Ledger
from agent.core import plan
from agent.core.candidate import Backend, Deviation, Evidence, Found, Latency
from agent.core.documents import from_json, from_yaml
from agent.core.errors import Kind
from agent.core.messages import CONFIG, METADATA, Beside, Place, SlotFacts, Tried
from agent.core.records import Device, ReleaseRecord, TrialRecord, observe, trial_key
from agent.core.release import Config, Metadata
from agent.core.slot import SlotRecord
from agent.daemon.copies import Copies
from agent.daemon.engines import Engines
from agent.daemon.show import proof_of
from agent.daemon.steps import Later, Never, Steps, Success
from agent.trust.sealing import KEY_BYTES
from tests.daemon.test_engines import MINE, memory_files
from tests.runner.conftest import release

ONE = release(1, gates={"min_fps": 30.0})
DEVICE = Device(found=(Found(backend=Backend.CPU, present=True, version="1"),), cores=1, power_mode="15W")
STEADY = Latency(mean=10, std=1, p50=10, p95=12, p99=13)


@pytest.fixture
def tried(tmp_path):
    """Tries the release on a runner that measured this; the outcome, and what is written down."""
    ledger = Ledger(tmp_path / "ledger.db")
    config, metadata = from_yaml(Config, ONE.parts[CONFIG], CONFIG), from_json(Metadata, ONE.parts[METADATA], METADATA)
    record = ReleaseRecord(ref=ONE.ref, verified=True, size=1, listing={}, metadata=metadata, config=config)
    ledger.put("release", ONE.ref.digest, record)
    keyring = SimpleNamespace(engine_key=lambda: bytes(KEY_BYTES))

    async def try_it(fps, within=True, beside=None, **conditions):
        evidence = Evidence(
            candidate=ONE.place.candidate, key="k", fps=fps, latency_ms=STEADY, conditions=conditions,
            deviations=(Deviation(output="y", max_abs=1.0, within=within),),
        )  # fmt: skip

        async def ask(_):
            return Tried(evidence=evidence, beside=beside), [memory_file.reserve(MINE, 5)]

        runner = SimpleNamespace(ask=ask, facts=None)
        engines = Engines(tmp_path / "engines", keyring, runner)
        copies = Copies(tmp_path, None, ledger, keyring, engines, None)
        steps = Steps(copies, engines, ledger, runner, lambda _: 1.0, threading.Lock())
        outcome = await steps.act("defect_detection", plan.Trial(ONE.place), DEVICE)
        assert memory_files() == 0, "what a seat built is closed, whatever comes of the trial"
        return outcome, list(ledger.all("trial", TrialRecord).values())

    try_it.ledger = ledger
    yield try_it
    ledger.close()


async def test_a_slow_run_while_the_device_throttled_is_void(tried, tmp_path):
    """It says nothing against the release: nothing is written down, and it is measured again."""
    outcome, written = await tried(10.0, moved="throttled")
    assert isinstance(outcome, Later)
    assert "10.0 FPS; its gate asks for 30 FPS; but throttled changed meanwhile" in outcome.reason
    assert written == []
    assert len(list((tmp_path / "engines").iterdir())) == 1, "what was proven need not be built again for that"


async def test_a_slow_run_on_a_steady_device_counts(tried, caplog, tmp_path):
    """The release is too slow here; what was built for it is not kept, and the log blames no quota for that."""
    outcome, written = await tried(10.0, celsius=50.0)
    assert isinstance(outcome, Never)
    assert [one.failure.kind for one in written] == [Kind.SPEED]
    assert not (tmp_path / "engines").exists()
    assert "quota" not in caplog.text


@pytest.mark.parametrize(("known", "speed"), [(200.0, 300.0), (None, 40.0)])
async def test_speeds_of_different_minutes_are_compared_by_what_served(tried, known, speed):
    """A busy minute slows what serves, too: what counts is how far a candidate is ahead of it, where that is known."""
    old = Place(ref=release(2).ref, candidate=ONE.place.candidate)
    if known is not None:
        evidence = Evidence(candidate=old.candidate, key="k", fps=known)
        tried.ledger.put("trial", trial_key(old), TrialRecord(place=old, key="k", evidence=evidence))
    _, written = await tried(40.0, beside=Beside(place=old, ratio=1.5))
    (trial,) = [one for one in written if one.place == ONE.place]
    assert (trial.speed, trial.evidence.fps) == (speed, 40.0)
    seen = observe(SlotRecord(slot="defect_detection"), (), written, (), SlotFacts(), DEVICE, {})
    assert seen.passed[ONE.place] == speed


async def test_a_gate_is_of_what_was_measured(tried):
    """However much faster it is than what serves: the release asks for frames, not for an order."""
    outcome, _ = await tried(10.0, beside=Beside(place=release(2).place, ratio=100.0))
    assert isinstance(outcome, Never)


async def test_what_passes_while_the_device_throttled_has_passed(tried):
    """A device that throttles makes nothing faster."""
    outcome, written = await tried(40.0, moved="throttled")
    assert isinstance(outcome, Success)
    assert [one.failure for one in written] == [None]


async def test_wrong_outputs_are_wrong_however_hot_the_device_is(tried):
    """Parity does not wait for cooler days."""
    outcome, _ = await tried(10.0, within=False, moved="throttled")
    assert isinstance(outcome, Never)
    assert outcome.failure.kind is Kind.PARITY


def test_why_says_what_served_beside_a_trial():
    """In words, for each candidate of what serves."""
    evidence = Evidence(candidate=ONE.place.candidate, key="k", fps=1.0)
    beside = Beside(place=release(2).place, ratio=1.5)
    trial = TrialRecord(place=ONE.place, key="k", evidence=evidence, beside=beside)
    slot = SimpleNamespace(digest=ONE.ref.digest, candidate=str(ONE.place.candidate), trials=(trial,))
    told = f"{ONE.place.candidate} was 1.50 times as fast as {release(2).place} in the same seconds"
    assert told in proof_of(slot)
