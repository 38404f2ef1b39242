"""What a slot promises while seats come, go, crash and hang."""

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest

from agent.core.messages import Done, Facts, Load, Look, Prove, Refused, Trial, Tried, Unload
from tests.runner.conftest import SHAPE, altered, eventually, release


@asynccontextmanager
async def load_on(shared, slot, x, cameras=4):
    """Cameras that ask without a pause; their answers, once it is over."""
    answers, stop = [], asyncio.Event()

    async def watch():
        camera = await shared.camera()
        while not stop.is_set():
            answers.append(await camera.infer(slot, x))
        camera.writer.close()

    async def enough(count):
        wanted = len(answers) + count
        await eventually(lambda: len(answers) >= wanted)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(cameras):
            tasks.create_task(watch())
        await enough(20)
        yield answers, enough
        await enough(20)
        stop.set()


async def test_swaps_under_load_lose_nothing(shared, agent, slot, x):
    """Releases swap back and forth under load: no request fails, each answer is of the version it names."""
    old, new = release(1, factor=2.0), release(2, factor=3.0)
    await agent.serve(slot, old)
    async with load_on(shared, slot, x) as (answers, enough):
        for one, other in ((new, old), (old, new)) * 3:
            await agent.serve(slot, one, fallback=other)
            await enough(20)
            assert await agent.ask(Unload(slot=slot, place=other.place)) == Done()
    assert {answer.status for answer in answers} == {200}
    for answer in answers:
        factor = {"20250601": 2.0, "20250602": 3.0}[answer.json["model_version"]]
        np.testing.assert_array_equal(answer.y(), x * np.float32(factor))
    assert {answer.json["model_version"] for answer in answers} == {"20250601", "20250602"}


async def test_the_fall_back_serves_when_the_serving_seat_is_killed(shared, agent, slot, x):
    """kill -9 under load: every request is answered, those inside by the warm fall-back."""
    old, new = release(1), release(2)
    await agent.serve(slot, old)
    loaded = await agent.serve(slot, new, fallback=old)
    async with load_on(shared, slot, x) as (answers, _):
        os.kill(loaded.pid, signal.SIGKILL)
        facts = await agent.until(slot, lambda facts: facts.serving == old.place)
    assert {answer.status for answer in answers} == {200}
    assert facts.incidents[-1].place == new.place
    assert "SIGKILL" in facts.incidents[-1].failure.reason
    assert facts.incidents[-1].action == f"fell back to {old.place}"
    assert facts.fallback is None


async def test_a_seat_without_fall_back_is_started_again(shared, agent, slot, x):
    """kill -9 under load: requests wait, and are answered by the same release from its sealed memory."""
    one = release(1)
    loaded = await agent.serve(slot, one)
    async with load_on(shared, slot, x) as (answers, _):
        os.kill(loaded.pid, signal.SIGKILL)
        await agent.until(slot, lambda facts: facts.serving is None and facts.incidents)
        facts = await agent.until(slot, lambda facts: facts.serving == one.place)
    assert {answer.status for answer in answers} == {200}
    assert facts.incidents[-1].action == "restarting"


async def test_a_seat_that_keeps_dying_is_given_up(agent, camera, slot, x):
    """Three restarts within a minute; then requests wait `hold_s` in all, then 503, until the agent loads something."""
    one = release(1)
    hold_s = 2.0
    loaded = await agent.serve(slot, one, hold_s=hold_s)
    pid = loaded.pid
    for _ in range(4):
        os.kill(pid, signal.SIGKILL)
        facts = await agent.until(
            slot,
            lambda facts, pid=pid: (
                any(seat.pid != pid and seat.state == "serving" for seat in facts.seats)
                or "gave up" in facts.incidents[-1].action
                if facts.incidents
                else False
            ),
        )
        pid = facts.seats[0].pid if facts.seats else 0
    assert "gave up" in facts.incidents[-1].action
    answer = await camera.infer(slot, x)
    assert (answer.status, "retry-after" in answer.headers) == (503, True)
    began = time.monotonic()
    assert (await camera.infer(slot, x)).status == 503
    assert time.monotonic() - began < hold_s, "the hold is over, and does not begin again"
    await agent.serve(slot, one)
    assert (await camera.infer(slot, x)).status == 200


async def test_a_hung_model_is_killed_at_its_deadline(shared, agent, slot):
    """A request that never ends costs its own answer and a restart, not the requests behind it."""
    one = release(1, kind="loop")
    await agent.serve(slot, one, hold_s=60.0)
    poison, harmless = np.full(SHAPE, 1e15, np.float32), np.zeros(SHAPE, np.float32)
    first, second = await shared.camera(), await shared.camera()
    hung = asyncio.create_task(first.infer(slot, poison))
    await agent.until(slot, lambda facts: facts.serving == one.place)
    behind = asyncio.create_task(second.infer(slot, harmless))
    assert (await behind).status == 200
    answer = await hung
    assert answer.status == 500
    assert "not tried again" in answer.json["error"]
    facts = await agent.until(slot, lambda facts: len(facts.incidents) == 2)
    assert "no answer within 3 s" in facts.incidents[0].failure.reason


async def test_a_model_that_answers_nan_is_replaced(agent, camera, slot):
    """The fall-back answers in its place; three in a row, and it serves."""
    old, new = release(1, factor=2.0), release(2, kind="root")
    await agent.serve(slot, old)
    await agent.serve(slot, new, fallback=old)
    negative = np.full(SHAPE, -1, np.float32)
    versions = [(await camera.infer(slot, negative)).json["model_version"] for _ in range(3)]
    assert versions == ["20250601"] * 3
    facts = await agent.until(slot, lambda facts: facts.serving == old.place)
    assert "NaN" in facts.incidents[-1].failure.reason
    assert new.place in {seat.place for seat in facts.seats}, "only the agent ends seats that live"


async def test_nan_is_told_where_nothing_better_is_there(agent, camera, slot):
    """Without a fall-back the client gets the answer, marked; NaN that came in is no fault of the model."""
    await agent.serve(slot, release(1, kind="root"))
    answer = await camera.infer(slot, np.full(SHAPE, -1, np.float32))
    assert answer.json["parameters"]["finite"] is False
    answer = await camera.infer(slot, np.full(SHAPE, np.nan, np.float32))
    assert "finite" not in answer.json["parameters"]
    facts = await agent.ask(Look())
    assert isinstance(facts, Facts)
    assert facts.slots[slot].counters.not_finite == 1


async def test_a_lost_fall_back_is_told(agent, slot):
    """The death of a warm seat is an incident; the serving one is not touched."""
    old, new = release(1), release(2)
    loaded = await agent.serve(slot, old)
    await agent.serve(slot, new, fallback=old)
    os.kill(loaded.pid, signal.SIGKILL)
    facts = await agent.until(slot, lambda facts: facts.incidents)
    assert (facts.serving, facts.fallback, facts.incidents[-1].action) == (new.place, None, "no fall-back left")


async def test_requests_wait_while_the_old_seat_leaves_first(agent, camera, slot, x):
    """`resource`: between unload and promotion a request waits, and is answered by the new release."""
    old, new = release(1, factor=2.0), release(2, factor=3.0)
    await agent.serve(slot, old)
    await agent.ask(Unload(slot=slot, place=old.place))
    waiting = asyncio.create_task(camera.infer(slot, x))
    await agent.serve(slot, new)
    np.testing.assert_allclose((await waiting).y(), x * 3, rtol=1e-6)


async def test_a_hold_that_is_over_is_told(agent, camera, slot, x):
    """Requests wait `hold_s` at most; then 503 with Retry-After, counted as refused."""
    one = release(1)
    await agent.serve(slot, one, hold_s=0.1)
    await agent.ask(Unload(slot=slot, place=one.place))
    before = (await agent.ask(Look())).refused
    answer = await camera.infer(slot, x)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert (await agent.ask(Look())).refused == before + 1


async def test_a_trial_measures(agent, slot):
    """A trial's evidence holds deviations, latency, speed and memory, under the key that was asked for."""
    one = release(1)
    await agent.load(slot, one)
    tried = await agent.ask(Trial(slot=slot, place=one.place, key="k", runs=10))
    assert isinstance(tried, Tried)
    evidence = tried.evidence
    assert (evidence.failure, evidence.key, evidence.candidate) == (None, "k", one.place.candidate)
    assert evidence.deviations[0].within
    assert min(evidence.fps, evidence.memory_mb, evidence.latency_ms.p95) > 0


async def test_a_release_that_computes_otherwise_than_published_is_not_proven(agent, slot):
    """Golden samples that do not come out are a refusal of the kind parity, with the deviation."""
    wrong = altered(release(1, factor=2.0), "model.onnx", release(1, factor=2.5).parts["model.onnx"])
    await agent.hand_over(wrong)
    await agent.ask(Load(slot=slot, place=wrong.place))
    refused = await agent.ask(Prove(slot=slot, place=wrong.place))
    assert isinstance(refused, Refused)
    assert refused.failure.kind == "parity"


@pytest.mark.parametrize(
    "content", [b"", b"not a model", release(1).parts["model.onnx"][:-40]], ids=["empty", "text", "cut"]
)
async def test_what_is_no_model_is_refused(agent, slot, content):
    """Bytes that no backend can load are a refusal with a reason; nothing of the seat is left."""
    broken = altered(release(1), "model.onnx", content)
    await agent.hand_over(broken)
    refused = await agent.ask(Load(slot=slot, place=broken.place))
    assert isinstance(refused, Refused)
    facts = await agent.ask(Look())
    assert facts.slots[slot].seats == ()


async def test_unload_while_loading_leaves_nothing(agent, slot):
    """A change of mind in the middle of a load ends the seat; loading it again works."""
    one = release(1)
    await agent.hand_over(one)
    loading = asyncio.create_task(agent.ask(Load(slot=slot, place=one.place)))
    await agent.until(slot, lambda facts: facts.seats)
    assert await agent.ask(Unload(slot=slot, place=one.place)) == Done()
    assert isinstance(await loading, Refused)
    assert slot not in (await agent.ask(Look())).slots
    await agent.serve(slot, one)


async def test_a_load_during_a_farewell_is_a_new_seat(agent, slot):
    """Unload and load of the same place, sent together, end with a loaded seat."""
    one = release(1)
    first = await agent.serve(slot, one)
    unloaded = asyncio.create_task(agent.ask(Unload(slot=slot, place=one.place)))
    await asyncio.sleep(0)
    second = await agent.ask(Load(slot=slot, place=one.place))
    assert await unloaded == Done()
    assert second.pid != first.pid


async def test_a_candidate_that_outgrows_its_gate_is_killed(agent, slot):
    """Memory beyond the release's own gate ends the load, as memory, before the device has none left."""
    greedy = release(1, gates={"max_memory_mb": 10.0})
    await agent.hand_over(greedy)
    refused = await agent.ask(Load(slot=slot, place=greedy.place))
    if not isinstance(refused, Refused):
        refused = await agent.ask(Trial(slot=slot, place=greedy.place, key="k", runs=10_000_000))
    assert isinstance(refused, Refused)
    assert refused.failure.kind == "memory"


async def test_a_request_that_no_release_can_answer_is_no_fault_of_the_new_one(agent, camera, slot):
    """A frame that overflows in both: the client gets what there is, and the soak does not judge it."""
    old, new = release(1, factor=2.0), release(2, factor=2.0)
    await agent.serve(slot, old)
    await agent.serve(slot, new, fallback=old)
    answer = await camera.infer(slot, np.full(SHAPE, 3e38, np.float32))
    assert (answer.status, answer.json["parameters"]["finite"]) == (200, False)
    facts = (await agent.ask(Look())).slots[slot]
    assert (facts.serving, facts.counters.not_finite, facts.counters.errors) == (new.place, 0, 0)
    stats = (await camera.ask("GET", f"/v2/models/{slot}/stats")).json["model_stats"]
    assert sum(one["inference_stats"]["success"]["count"] for one in stats) == 1
