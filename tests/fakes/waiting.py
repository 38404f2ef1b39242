"""Waiting for a fact, never for luck: the condition is asked until it holds, and a deadline fails the test."""

import asyncio
import time

STEP_S = 0.01


def until(condition, deadline_s=15.0, what=""):
    """The first true value of `condition()`."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(STEP_S)
    raise AssertionError(f"not within {deadline_s} s: {what or condition}")


async def reached(condition, deadline_s=15.0, what=""):
    """As `until`, in an event loop."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if value := condition():
            return value
        await asyncio.sleep(STEP_S)
    raise AssertionError(f"not within {deadline_s} s: {what or condition}")
