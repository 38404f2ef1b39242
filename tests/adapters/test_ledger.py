"""What the device knows of itself, after a damaged file, a full disk and a hand that deleted it."""

import resource
import shutil
import sqlite3
from contextlib import closing, contextmanager, suppress

import pytest

from agent.adapters import files
from agent.adapters.ledger import Ledger
from agent.core.documents import Document
from agent.core.errors import TransferError

NOISE = b"\xff\x00noise" * 2000


class Fact(Document):
    """What these tests remember."""

    says: str


class Other(Document):
    """What a later version of the agent may have written."""

    number: int


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "ledger.db"


@contextmanager
def opened(path):
    ledger = Ledger(path)
    try:
        yield ledger
    finally:
        ledger.close()


def remember(path, says="intent"):
    """A ledger with one precious fact, and its copy."""
    with opened(path) as ledger:
        ledger.put_all([("intent", "a", Fact(says=says))], precious=True)


def log_after_the_copy(path):
    """What SQLite's write-ahead log holds when more was recorded after the copy."""
    with opened(path) as ledger:
        ledger.put_all([("intent", "a", Fact(says="intent"))], precious=True)
        ledger.put("intent", "a", Fact(says="later"))
        return path.with_name("ledger.db-wal").read_bytes()


def recalled(path):
    """What a new start finds, and what it says of the opening."""
    with opened(path) as ledger:
        fact = ledger.get("intent", "a", Fact)
        return fact and fact.says, ledger.trouble


def spoil(path):
    path.write_bytes(NOISE)


@contextmanager
def disk_with_room_for(size):
    """A write beyond it fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_facts_come_back_by_kind_and_key(path):
    """What was put is there after a new start; what was removed, or of another form, is absent."""
    with opened(path) as ledger:
        ledger.put("slot", "b", Fact(says="two"))
        ledger.put("slot", "a", Fact(says="one"))
        ledger.put("slot", "a", Fact(says="three"))
        ledger.put("other", "a", Other(number=1))
        ledger.put("slot", "c", Fact(says="gone"))
        ledger.remove("slot", "c")
    with opened(path) as ledger:
        assert ledger.get("slot", "a", Fact) == Fact(says="three")
        assert ledger.get("slot", "c", Fact) is None
        assert ledger.get("other", "a", Fact) is None
        assert list(ledger.all("slot", Fact).items()) == [("a", Fact(says="three")), ("b", Fact(says="two"))]
        assert ledger.all("other", Fact) == {}
        assert ledger.trouble == ""


def test_facts_are_recorded_together_or_not_at_all(path):
    """One fact that cannot be written takes its transaction along."""
    with opened(path) as ledger:
        with pytest.raises(TypeError):
            ledger.put_all([("slot", "a", Fact(says="one")), ("slot", "b", object())])
        assert ledger.get("slot", "a", Fact) is None
        ledger.put("slot", "a", Fact(says="next"))
        assert ledger.get("slot", "a", Fact) == Fact(says="next")


@pytest.mark.parametrize("damage", [NOISE, b"SQLite format 3\x00" + NOISE, None], ids=["noise", "head", "page"])
def test_the_copy_takes_the_place_of_a_corrupt_ledger(path, damage):
    """What matters is there again, the damaged file is kept, and the trouble is told."""
    remember(path)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096) if damage is None else damage)
    spoilt = path.read_bytes()
    says, trouble = recalled(path)
    assert says == "intent"
    assert "corrupt" in trouble
    assert "copy took its place" in trouble
    assert path.with_name("ledger.db.corrupt").read_bytes() == spoilt
    assert recalled(path) == ("intent", "")


def test_without_any_whole_file_the_ledger_begins_anew(path):
    """Ledger and copy both damaged: the device starts empty, and says so."""
    remember(path)
    spoil(path)
    spoil(path.with_name("ledger.db.copy"))
    says, trouble = recalled(path)
    assert says is None
    assert "too" in trouble
    remember(path, "new")
    assert recalled(path) == ("new", "")


def test_a_corrupt_ledger_without_a_copy_begins_anew(path):
    """Nothing precious was ever recorded: nothing is lost but the damaged file, which is kept."""
    path.parent.mkdir()
    spoil(path)
    says, trouble = recalled(path)
    assert says is None
    assert "no copy" in trouble
    assert path.with_name("ledger.db.corrupt").read_bytes() == NOISE


@pytest.mark.parametrize("room", [0, 1000, 40_000])
def test_a_full_disk_says_nothing_against_the_ledger(path, room):
    """A whole ledger on a full disk stays where it is, and is read when there is room again."""
    remember(path)
    before = path.read_bytes()
    with disk_with_room_for(room), suppress(TransferError):
        recalled(path)
    assert path.read_bytes() == before
    assert not path.with_name("ledger.db.corrupt").exists()
    assert recalled(path) == ("intent", "")


def test_a_disk_too_full_for_the_ledger_is_waited_for(path):
    """SQLite cannot make its files: an error of the disk, with what to do."""
    remember(path)
    with disk_with_room_for(1000), pytest.raises(TransferError, match="check owner, mode and disk"):
        Ledger(path)


def test_a_recovery_that_finds_no_room_changes_nothing(path):
    """A corrupt ledger on a full disk stays in its place until the copy can be written beside it."""
    remember(path)
    spoil(path)
    with disk_with_room_for(1000), pytest.raises(TransferError):
        Ledger(path)
    assert path.read_bytes() == NOISE
    says, trouble = recalled(path)
    assert says == "intent"
    assert "corrupt" in trouble


@pytest.mark.parametrize("is_empty", [False, True])
def test_the_copy_takes_the_place_of_a_ledger_that_is_gone(path, is_empty):
    """A file that was deleted or emptied, or a recovery that the power cut short, is no new device."""
    log = log_after_the_copy(path)
    path.unlink()
    if is_empty:
        path.touch()
    path.with_name("ledger.db-wal").write_bytes(log)
    says, trouble = recalled(path)
    assert says == "intent"
    assert "gone" in trouble
    assert recalled(path) == ("intent", "")


def test_a_ledger_that_a_cut_left_unfinished_is_not_called_damaged(path):
    """What the next start finishes by itself is no damage: `edge-agent doctor` does not frighten."""
    path.parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as base:
        base.execute("PRAGMA cache_size = 1")
        base.execute("CREATE TABLE old (body)")
        base.execute("BEGIN")
        base.executemany("INSERT INTO old VALUES (?)", [(NOISE,)] * 100)
        cut = shutil.copytree(path.parent, path.parent.with_name("cut")) / path.name
    assert cut.with_name("ledger.db-journal").stat().st_size
    assert Ledger.examine(cut) == ""
    assert recalled(cut) == (None, "")


def test_a_disk_that_can_only_be_read_has_its_facts_read(path, monkeypatch):
    """The copy speaks for the ledger; nothing is changed, and the trouble is told."""
    remember(path)
    monkeypatch.setattr(files, "is_read_only", lambda folder: True)
    with opened(path) as ledger:
        assert ledger.get("intent", "a", Fact) == Fact(says="intent")
        with pytest.raises(TransferError, match="readonly"):
            ledger.put("intent", "a", Fact(says="new"))
        assert "can only be read" in ledger.trouble
    monkeypatch.undo()
    assert recalled(path) == ("intent", "")


def test_a_first_start_is_no_trouble(path):
    """No file and no copy is a new device."""
    assert recalled(path) == (None, "")


def test_a_folder_in_the_place_of_the_ledger_is_told(path):
    """What SQLite cannot open is not moved."""
    path.mkdir(parents=True)
    with pytest.raises(TransferError, match="cannot be opened"):
        Ledger(path)
    assert path.is_dir()


def test_the_newest_facts_come_in_order(tmp_path):
    """As many as are asked for, the last ones, oldest first."""
    ledger = Ledger(tmp_path / "ledger.db")
    for number in range(5):
        ledger.put("event", f"{number:03d}", number)
    assert ledger.newest("event", int, 2) == (3, 4)
