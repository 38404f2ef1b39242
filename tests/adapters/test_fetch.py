"""A download under every fault that a network, a store or a disk has."""

import hashlib
import json
import resource

import pytest

from agent.adapters import answers, files
from agent.adapters import fetch as fetching
from agent.adapters.fetch import Mismatch, Stopped, TargetInfo, fetch
from agent.adapters.store import Download
from agent.core.errors import TransferError
from fleet.stores import DeskFolder, open_store
from tests.adapters.certificates import Authority
from tests.fakes.seaweed import EDGE
from tests.fakes.store import FakeStore
from tests.fakes.web import Web

CONTENT = hashlib.sha256(b"").digest() * 32 * 1024 * 6  # 6 MiB
KEY = "targets/model.cob"
SIZE = len(CONTENT)
HEADS_BYTES = 16_000  # of HTTP and TLS


class Site:
    """A device's folder, and what `fetch` did there."""

    def __init__(self, folder):
        self.path = folder / "model.cob"
        self.progress = []

    def fetch(self, store, content=CONTENT, size=None, stop_at=None, **options):
        length, sha256 = len(content) if size is None else size, hashlib.sha256(content).hexdigest()
        fetch(
            store, TargetInfo(path=KEY, key=KEY, length=length, sha256=sha256, custom={}), self.path,
            on_progress=self.progress.append,
            should_stop=lambda: stop_at is not None and bool(self.progress) and self.progress[-1] >= stop_at, **options,
        )  # fmt: skip

    @property
    def names(self):
        return sorted(path.name for path in self.path.parent.iterdir())

    def synced(self):
        return json.loads(self.path.with_name("model.cob.part.json").read_bytes())["synced"]


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "device"
    folder.mkdir()
    return Site(folder)


@pytest.fixture
def remote(seaweed):
    """The store with the content, and the same one through a proxy."""
    store = seaweed.store("fetch")
    store.write(KEY, CONTENT)
    return store


@pytest.fixture
def proxied(seaweed, remote, new_proxy):
    proxy = new_proxy(seaweed.port)
    return proxy, seaweed.store("fetch", endpoint=proxy.endpoint)


@pytest.fixture(params=["s3", "https"])
def lines(request, tmp_path, new_proxy):
    """As `proxied`, over each protocol: the proxy, and makes stores."""
    if request.param == "s3":
        proxy, _ = request.getfixturevalue("proxied")
        keys = {"endpoint": proxy.endpoint, "access_key": EDGE[0], "secret_key": EDGE[1]}
        yield proxy, lambda: open_store("s3://models/fetch", **keys)
        return
    web = Web(tmp_path / "web", Authority(tmp_path / "authority"))
    DeskFolder(web.folder).write(KEY, CONTENT)
    proxy = new_proxy(web.server_address[1])
    yield proxy, lambda: web.store(url=f"https://127.0.0.1:{proxy.port}")
    web.close()


class LyingStore(FakeStore):
    """Answers an offset as `answer(whole, start)` says."""

    def __init__(self, content, answer):
        super().__init__(content)
        self.answer = answer

    def stream(self, key, start=0, etag=None):
        return self.answer(super().stream(key, 0), start) if start else super().stream(key, 0)


def test_a_whole_file_gets_its_name_and_nothing_else_stays(site, remote):
    """After a good download the folder holds the file alone."""
    site.fetch(remote)
    assert site.path.read_bytes() == CONTENT
    assert site.names == ["model.cob"]


def test_an_empty_target_is_a_target(site):
    """Nothing is signed as nothing."""
    site.fetch(FakeStore({KEY: b""}), content=b"")
    assert site.path.read_bytes() == b""


def test_a_file_that_is_there_is_not_fetched_again(site):
    """A crash between the name and the ledger costs no second download."""
    site.path.write_bytes(CONTENT)
    site.fetch(FakeStore())
    assert site.progress == []


@pytest.mark.parametrize("fault", ["cut_after", "end_after"])
def test_a_cut_connection_is_continued(site, lines, fault):
    """After a reset or an early end only what is missing comes again."""
    proxy, new_store = lines
    store = new_store()
    setattr(proxy, fault, 4_000_000)
    with pytest.raises(TransferError):
        site.fetch(store)
    kept, before = site.synced(), proxy.down
    assert kept > 3_000_000
    assert site.names == ["model.cob.part", "model.cob.part.json"]
    site.fetch(store)
    assert site.path.read_bytes() == CONTENT
    assert proxy.down - before < SIZE - kept + HEADS_BYTES


def test_connections_that_end_early_each_bring_something(site, lines):
    """Where no connection lives for a whole step of the stream, every one still adds what it brought."""
    proxy, new_store = lines
    store = new_store()
    for number in range(1, 4):
        proxy.cut_after = proxy.down + 400_000
        with pytest.raises(TransferError):
            site.fetch(store)
        assert site.synced() > number * 370_000


def test_a_silent_connection_ends_and_is_continued(site, lines, monkeypatch):
    """A black hole is left after the read timeout, with what came before it."""
    monkeypatch.setattr(answers, "READ_S", 1.0)
    proxy, new_store = lines
    slow = new_store()
    proxy.rate = 20_000_000

    def fall_silent(done):
        proxy.blackhole = done > 2_000_000

    site.progress = _Calls(fall_silent)
    with pytest.raises(TransferError, match="no connection"):
        site.fetch(slow)
    proxy.blackhole, proxy.rate = False, None
    kept = site.synced()
    assert 2_000_000 < kept < SIZE
    site.progress = []
    site.fetch(slow)
    assert site.progress[0] > kept
    assert site.path.read_bytes() == CONTENT


def test_a_flipped_bit_is_never_named(site, proxied):
    """One bit changed on the way: nothing stays, and the next attempt is whole."""
    proxy, store = proxied
    proxy.corrupt_at = 5_000_000
    with pytest.raises(Mismatch, match="SHA-256"):
        site.fetch(store)
    assert site.names == []
    site.fetch(store)
    assert site.path.read_bytes() == CONTENT


@pytest.mark.parametrize("lying", [CONTENT + b"x", CONTENT[:-1], b"<html>captive portal</html>"])
def test_another_length_than_signed_is_not_even_read(site, lying):
    """More or fewer bytes than signed are refused before the first one."""
    with pytest.raises(Mismatch, match="are signed"):
        site.fetch(FakeStore({KEY: lying}))
    assert (site.names, site.progress) == ([], [])


def test_a_body_longer_than_announced_is_stopped(site):
    """A store that announces the signed length and sends more cannot fill the disk."""

    class Endless(FakeStore):
        def _pieces(self, key, content, start):
            while True:
                yield b"x" * 1_000_000

    with pytest.raises(Mismatch, match="more than"):
        site.fetch(Endless({KEY: CONTENT}))
    assert site.names == []
    assert max(site.progress) <= SIZE


def test_a_changed_object_is_fetched_from_its_beginning(site):
    """An object that was replaced meanwhile is never joined to the old half."""
    store = FakeStore({KEY: bytes(SIZE)})
    with pytest.raises(Stopped):
        site.fetch(store, stop_at=3_000_000)
    store.content[KEY] = CONTENT
    site.progress = []
    site.fetch(store)
    assert site.progress[0] <= 1024 * 1024
    assert site.path.read_bytes() == CONTENT


def test_a_server_without_ranges_costs_only_time(site):
    """The whole object in place of the rest is taken from its beginning."""
    store = LyingStore({KEY: CONTENT}, lambda whole, start: whole)
    with pytest.raises(Stopped):
        site.fetch(store, stop_at=3_000_000)
    site.progress = []
    site.fetch(store)
    assert site.progress[0] <= 1024 * 1024
    assert site.path.read_bytes() == CONTENT


def test_a_server_that_lies_about_the_offset_is_found_out(site):
    """Bytes from elsewhere under the right offset do not pass the digest."""
    store = LyingStore(
        {KEY: CONTENT[::-1]},
        lambda whole, start: Download(whole.etag, whole.size, start, iter([b"x" * (SIZE - start)]), whole.close, "x"),
    )
    store.content[KEY] = CONTENT
    with pytest.raises(Stopped):
        site.fetch(store, stop_at=3_000_000)
    with pytest.raises(Mismatch):
        site.fetch(store)
    assert site.names == []


def test_a_stop_keeps_what_came(site, remote):
    """A stop is answered within a piece, and the next call goes on from there."""
    with pytest.raises(Stopped):
        site.fetch(remote, stop_at=2_000_000)
    kept = site.synced()
    assert kept >= 2_000_000
    site.progress = []
    site.fetch(remote)
    assert site.progress[0] > kept


def test_bytes_that_were_not_synced_are_not_trusted(site):
    """After a power cut the tail of the part may be anything: only the synced bytes count."""
    store = FakeStore({KEY: CONTENT})
    with pytest.raises(Stopped):
        site.fetch(store, stop_at=3_000_000)
    kept = site.synced()
    with site.path.with_name("model.cob.part").open("ab") as part:
        part.write(b"garbage" * 1000)
    site.progress = []
    site.fetch(store)
    assert site.path.read_bytes() == CONTENT
    assert site.progress[0] == kept + 1024 * 1024


@pytest.mark.parametrize("note", [b"", b"{", b'{"synced": 5}', b'{"etag":"","sha256":"other","size":1,"synced":1}'])
def test_a_torn_note_means_the_beginning(site, note):
    """What says nothing certain about the part is not believed."""
    store = FakeStore({KEY: CONTENT})
    site.path.with_name("model.cob.part").write_bytes(b"x" * 5000)
    site.path.with_name("model.cob.part.json").write_bytes(note)
    site.fetch(store)
    assert site.path.read_bytes() == CONTENT


def test_a_part_damaged_on_the_disk_is_found(site):
    """A synced byte that the disk changed is hashed again, and found."""
    store = FakeStore({KEY: CONTENT})
    with pytest.raises(Stopped):
        site.fetch(store, stop_at=3_000_000)
    with site.path.with_name("model.cob.part").open("r+b") as part:
        part.write(b"\xff")
    with pytest.raises(Mismatch):
        site.fetch(store)
    site.fetch(store)
    assert site.path.read_bytes() == CONTENT


def test_too_little_room_is_said_before_the_first_byte(site, monkeypatch):
    """The refusal has the numbers: what is missing, what stays in reserve, what is free."""
    monkeypatch.setattr(files, "free_bytes", lambda path: 70_000_000)
    with pytest.raises(TransferError, match=r"6\.3 of 6\.3 MB are missing and 67 MB stay in reserve, but 70\.0 MB"):
        site.fetch(FakeStore({KEY: CONTENT}))
    assert site.progress == []


def test_a_disk_that_fills_up_is_given_its_room_back(site):
    """Nothing half done stays on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))  # a write beyond it fails as on a full disk
    try:
        with pytest.raises(TransferError, match="filled up"):
            site.fetch(FakeStore({KEY: CONTENT}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert site.names == []


def test_a_folder_in_the_place_of_the_file_is_the_disks_error(site):
    """What lies where the file belongs and cannot be read is told with its name, and waited for."""
    site.path.mkdir()
    with pytest.raises(TransferError, match=r"model\.cob: the disk refused"):
        site.fetch(FakeStore({KEY: CONTENT}))


def test_a_missing_object_keeps_the_part(site):
    """A store that has lost the object for a while costs nothing of what we have."""
    store = FakeStore({KEY: CONTENT})
    with pytest.raises(Stopped):
        site.fetch(store, stop_at=3_000_000)
    store.content.clear()
    with pytest.raises(TransferError):
        site.fetch(store)
    assert site.synced() >= 3_000_000


def test_a_store_that_drips_is_left(site, monkeypatch):
    """Too few bytes in a minute are a store that holds us back: said, and tried again later."""
    clock = iter(range(0, 100_000, 50))
    monkeypatch.setattr(fetching.time, "monotonic", lambda: float(next(clock)))

    class Dripping(FakeStore):
        def _pieces(self, key, content, start):
            for at in range(start, len(content)):
                yield content[at : at + 1]

    with pytest.raises(TransferError, match=r"only .* bytes in 60 s"):
        site.fetch(Dripping({KEY: CONTENT}))
    assert site.synced() >= 1


def test_a_rate_limit_holds(site, monkeypatch):
    """A limited download takes size / rate seconds of (here: pretended) time."""
    now = [0.0]
    monkeypatch.setattr(fetching.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(fetching.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    site.fetch(FakeStore({KEY: CONTENT}), rate_limit=1_000_000)
    assert now[0] == pytest.approx(SIZE / 1_000_000, rel=0.05)


class _Calls(list):
    """A list of progress that also calls."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def append(self, done):
        super().append(done)
        self.call(done)
