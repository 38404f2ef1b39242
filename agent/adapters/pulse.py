"""How late an event loop is: whatever holds it up makes everybody wait.

A tick sleeps for TICK_S and looks how much later than that it woke. A stall that begins between two ticks is seen
shorter than it was, by TICK_S at most.
"""

import asyncio

TICK_S = 0.02  # fifty wake-ups a second cost 0.3 % of a core


class Pulse:
    """The longest wait of one loop, since its start, in milliseconds."""

    def __init__(self) -> None:
        self.lag_ms = 0.0

    async def run(self) -> None:
        """Tick until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK_S
            await asyncio.sleep(TICK_S)
            self.lag_ms = max(self.lag_ms, round(1000 * (loop.time() - due), 1))
