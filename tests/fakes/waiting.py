"""Waiting for a fact, never for luck: the condition is asked until it holds, and a deadline fails the test.

A deadline ends a test that would hang; what has to be quick is measured where that is promised. So a machine that is
slow, or shared by several tests, is given PATIENCE times as long.
"""

import asyncio
import os
import time

STEP_S = 0.01
PATIENCE = float(os.environ.get("PATIENCE", "1"))


def until(condition, deadline_s=15.0, what=""):
    """The first true value of `condition()`."""
    end = time.monotonic() + PATIENCE * deadline_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(STEP_S)
    raise AssertionError(f"not within {PATIENCE * deadline_s} s: {what or condition}")


async def reached(condition, deadline_s=15.0, what=""):
    """As `until`, in an event loop."""
    end = time.monotonic() + PATIENCE * deadline_s
    while time.monotonic() < end:
        if value := condition():
            return value
        await asyncio.sleep(STEP_S)
    raise AssertionError(f"not within {PATIENCE * deadline_s} s: {what or condition}")
