"""What waits in the outbox: in order, bounded, counted, and still there after a crash."""

import itertools
import resource
import subprocess
import sys

import pytest

from agent.adapters.outbox import ROW_BYTES, Item, Outbox, Rank
from agent.core.errors import TransferError

NOW = 1_772_000_000.0


def item(name, rank=Rank.TELEMETRY, expiry_s=3600.0, size=0):
    return Item(topic="t", payload=name.encode().ljust(size), rank=rank, expiry_s=expiry_s)


def names(outbox, count=100, now=NOW):
    return [row.payload.decode().strip() for row in outbox.head(count, now)]


@pytest.fixture
def outbox(tmp_path):
    made = Outbox(tmp_path / "outbox.db")
    yield made
    made.close()


def test_what_matters_more_goes_first_and_order_stays(outbox):
    """Events before replies before telemetry; inside each, first in is first out."""
    outbox.put([item("t1"), item("t2")], NOW)
    outbox.put([item("r1", Rank.REPLY)], NOW)
    outbox.put([item("e1", Rank.EVENT)], NOW)
    outbox.put([item("e2", Rank.EVENT), item("t3")], NOW)
    assert names(outbox) == ["e1", "e2", "r1", "t1", "t2", "t3"]
    assert names(outbox, 2) == ["e1", "e2"]


def test_what_the_broker_has_is_forgotten(outbox):
    """Rows leave by their numbers, others stay."""
    outbox.put([item("a"), item("b"), item("c")], NOW)
    rows = outbox.head(3, NOW)
    outbox.done([rows[0].id, rows[2].id])
    assert names(outbox) == ["b"]
    assert outbox.waiting == 1


def test_the_bound_holds_and_telemetry_goes_first(tmp_path):
    """Too many bytes cost the oldest telemetry, then replies, then events; each drop is counted."""
    row = 100 + ROW_BYTES + 1
    outbox = Outbox(tmp_path / "outbox.db", max_bytes=6 * row)
    outbox.put([item("e1", Rank.EVENT, size=100), item("r1", Rank.REPLY, size=100)], NOW)
    outbox.put([item(f"t{n}", size=100) for n in range(6)], NOW)
    assert names(outbox) == ["e1", "r1", "t2", "t3", "t4", "t5"]
    outbox.put([item(f"e{n}", Rank.EVENT, size=100) for n in range(2, 7)], NOW)
    assert names(outbox) == ["e1", "e2", "e3", "e4", "e5", "e6"]
    outbox.put([item("e7", Rank.EVENT, size=100)], NOW)
    assert names(outbox) == ["e2", "e3", "e4", "e5", "e6", "e7"]
    assert outbox.dropped == {Rank.EVENT: 1, Rank.REPLY: 1, Rank.TELEMETRY: 6}


def test_old_rows_are_dropped_and_counted(outbox):
    """A row that is past its age is never said, and the rest knows what is left of its own."""
    outbox.put([item("old", expiry_s=10), item("new", expiry_s=100)], NOW)
    (row,) = outbox.head(10, NOW + 40)
    assert (row.payload, row.expiry_s) == (b"new", 60)
    assert outbox.dropped[Rank.TELEMETRY] == 1


def test_rows_from_before_the_clock_was_set_do_not_age(outbox):
    """A device that boots in 1970 does not lose its first minutes when the clock jumps."""
    outbox.put([item("early", Rank.EVENT, expiry_s=60)], 100.0)
    (row,) = outbox.head(10, NOW)
    assert row.expiry_s == 60


def test_rows_and_counts_survive_a_new_start(tmp_path):
    """The bytes that were there count against the bound after a start."""
    first = Outbox(tmp_path / "outbox.db", max_bytes=1000)
    first.put([item(f"t{n}", size=300) for n in range(4)], NOW)
    first.close()
    second = Outbox(tmp_path / "outbox.db", max_bytes=1000)
    assert names(second) == ["t2", "t3"]
    second.put([item("t4", size=300)], NOW)
    assert names(second) == ["t3", "t4"]
    assert second.dropped[Rank.TELEMETRY] == 3


def test_a_put_of_an_event_is_on_the_disk_when_it_returns(tmp_path):
    """A process that is killed right after `put` has said it."""
    program = (
        "import os, sys; from agent.adapters.outbox import *\n"
        f"Outbox(__import__('pathlib').Path(sys.argv[1])).put([Item(topic='t', payload=b'e', rank=Rank.EVENT)], {NOW})\n"
        "os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "outbox.db"
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False, timeout=30).returncode == -9
    assert names(Outbox(path)) == ["e"]


def test_a_file_that_is_no_outbox_is_put_aside(tmp_path):
    """A torn file costs what was in it, not the device."""
    path = tmp_path / "outbox.db"
    path.write_bytes(b"torn" * 1000)
    outbox = Outbox(path)
    outbox.put([item("a")], NOW)
    assert names(outbox) == ["a"]
    assert (tmp_path / "outbox.db.broken").exists()


def test_a_damage_behind_a_sound_beginning_is_found(tmp_path):
    """Pages deep in the file are looked at before anything rests on them; a WAL of the broken file is not played on."""
    path = tmp_path / "outbox.db"
    first = Outbox(path)
    for number in range(50):
        first.put([item(str(number))], NOW)
    first.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))
    (tmp_path / "outbox.db-wal").write_bytes(b"\xa5" * 9000)
    outbox = Outbox(path)
    outbox.put([item("a")], NOW)
    assert names(outbox) == ["a"]


def test_a_full_disk_says_nothing_against_the_outbox(tmp_path):
    """What waits stays where it is, and is said when there is room again."""
    path = tmp_path / "outbox.db"
    first = Outbox(path)
    first.put([item("e", Rank.EVENT)], NOW)
    first.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(TransferError, match="the disk refuses"):
            Outbox(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(Outbox(path)) == ["e"]


@pytest.mark.parametrize("look", ["waiting", "dropped"])
def test_an_outbox_that_cannot_be_read_is_the_disks_error(outbox, look):
    """Counting fails as everything else does: wait and retry."""
    outbox._base.execute("DROP TABLE outbox")
    outbox._base.execute("DROP TABLE outbox_dropped")
    with pytest.raises(TransferError, match="the disk refuses"):
        getattr(outbox, look)


def test_a_put_wakes_whoever_sends(outbox):
    """The sender sleeps until there is something to say."""
    woken = itertools.count()
    outbox.watch(lambda: next(woken))
    outbox.put([item("a")], NOW)
    assert next(woken) == 1
