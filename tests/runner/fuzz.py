"""`make fuzz`: the door under requests that chance breaks, for FUZZ_S seconds.

1. With atheris it is led to what was not reached yet. Without, or with FUZZ_SEED, it goes by chance alone, and says so.
2. What it finds is written to .cache/ and ends it with status 1; `python -m tests.runner.fuzz FILE` tries that again.
"""

import asyncio
import hashlib
import importlib.util
import itertools
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

CACHE = Path(__file__).parents[2] / ".cache"
LONGEST = 64 * 1024  # bytes; more is more of the same


def main() -> None:
    """The command."""
    seconds = float(os.environ.get("FUZZ_S", "60"))
    seed = os.environ.get("FUZZ_SEED")
    CACHE.mkdir(exist_ok=True)
    if sys.argv[1:]:
        asyncio.run(again([Path(name).read_bytes() for name in sys.argv[1:]]))
        say("nothing found")
    elif seed is None and importlib.util.find_spec("atheris"):
        led(seconds)
    else:
        seed = seed or str(time.time_ns())
        say(f"by chance alone: FUZZ_SEED={seed} repeats it; atheris would lead it")
        tried, statuses = asyncio.run(by_chance(int(seed), until(time.monotonic() + seconds)))
        say(f"{tried} requests in {seconds:g} s, nothing found; answers by status: {statuses}")


def say(what: str) -> None:
    sys.stdout.write(what + "\n")


def until(deadline: float) -> Iterable[int]:
    return itertools.takewhile(lambda _: time.monotonic() < deadline, itertools.count())


def new_knocks(loop: asyncio.AbstractEventLoop):
    from tests.runner.knocks import Knocks

    return Knocks(Path(tempfile.mkdtemp(prefix="edge-fuzz-")), loop)


async def again(requests: list[bytes]) -> None:
    """Sends each request, as findings were written."""
    knocks = new_knocks(asyncio.get_running_loop())
    for request in requests:
        await knocks.knock(request)


async def by_chance(seed: int, turns: Iterable[int]) -> tuple[int, dict[int, int]]:
    """How many requests were tried, one in each turn, and what they got: always the same ones for a seed."""
    from tests.runner.knocks import mutated, recorded

    chance, requests, tried = random.Random(seed), recorded(), 0
    knocks = new_knocks(asyncio.get_running_loop())
    for _ in turns:
        request = mutated(chance, chance.choice(requests), requests)
        tried += 1
        try:
            await knocks.knock(request)
        except Exception as error:
            error.add_note(f"found by request {tried} of seed {seed}: {keep(request)}")
            raise
    knocks.close()
    return tried, dict(sorted(knocks.statuses.items()))


def keep(request: bytes) -> Path:
    """Writes a finding down."""
    path = CACHE / f"fuzz-{hashlib.sha256(request).hexdigest()[:16]}"
    path.write_bytes(request)
    return path


def led(seconds: float) -> None:
    """Leads the requests by the code that they reach; does not return."""
    import atheris

    with atheris.instrument_imports(include=["agent.runner", "h11"]):
        from tests.runner.knocks import mutated, recorded
    requests, corpus = recorded(), Path(tempfile.mkdtemp(prefix="edge-fuzz-"))
    for number, request in enumerate(requests):
        (corpus / str(number)).write_bytes(request)
    loop = asyncio.new_event_loop()
    knocks = new_knocks(loop)

    def once(request: bytes) -> None:
        loop.run_until_complete(knocks.knock(request))

    def another(request: bytes, longest: int, seed: int) -> bytes:
        return mutated(random.Random(seed), request, requests)[:longest]

    flags = (f"-max_total_time={seconds:.0f}", f"-max_len={LONGEST}", f"-artifact_prefix={CACHE}/fuzz-")
    atheris.Setup([sys.argv[0], *flags, "-print_final_stats=1", str(corpus)], once, custom_mutator=another)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
