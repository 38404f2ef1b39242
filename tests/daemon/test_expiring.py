"""What the repository's roles have left to live is seen where people look at a device."""

import io
from datetime import UTC, datetime, timedelta

from rich.console import Console

from agent.adapters.ledger import Ledger
from agent.adapters.tuf_client import TufClient
from agent.daemon import show
from agent.daemon.intake import Intake
from agent.daemon.state import BrokerState, RunnerState, State
from tests.adapters.tuf_repository import TufRepository


async def test_what_expires_soon_is_told_by_the_device(tmp_path):
    """After each poll and after a start without a network; in `status`, and in health, which holds the same."""
    repository, now = TufRepository(), datetime.now(UTC)
    repository.add("deployments/g9.json", b"{}", "team")
    for role, days in (("root", 200), ("targets", 20), ("team", 6), ("snapshot", 13)):
        repository.metadata[role].signed.expires = now + timedelta(days=days)
    repository.metadata["team"].signed.version += 1
    repository.pinned = repository._write("root")
    repository.publish("targets", "team", now=now)

    def intake():
        ledger = Ledger(tmp_path / "ledger.db")
        made = Intake("cam-7", "g1", None, ledger, None, None, built=now - timedelta(days=30), poll_s=60.0)
        made.client = TufClient(tmp_path / "tuf", repository.store, repository.pinned, made.check)
        return made

    first = intake()
    await first.poll()
    assert [text.split(" (")[0] for text in first.store.expiring] == [
        "timestamp metadata expires within 1 d",
        "targets metadata expires within 30 d",
    ]
    repository.store.offline = True
    again = intake()
    again.load()
    assert again.store.expiring == first.store.expiring
    state = State(
        device="cam-7", group="g1", agent="1", pid=1, at=now, boot="b", store=again.store,
        broker=BrokerState(configured=False), runner=RunnerState(connected=True),
    )  # fmt: skip
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(show.status(state, now))
    assert "! targets metadata expires within 30 d" in console.export_text()
