"""One contract for every store: S3, a web server, a folder, an exported file, and the fake."""

import io
import os
import uuid

import pytest

from agent.adapters.store import Changed, FileStore, Missing, StoreSettings
from agent.adapters.store import open_store as open_for_reading
from agent.core.errors import InputError, TransferError, TrustError
from fleet.stores import DeskFolder, Exists, open_store
from tests.adapters.certificates import Authority
from tests.adapters.zips import Carried
from tests.fakes.seaweed import BUCKET, EDGE
from tests.fakes.store import FakeStore
from tests.fakes.web import Published, Web

CONTENT = bytes(range(256)) * 12 * 1024  # three pieces


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates") / "web")


@pytest.fixture
def new_web(tmp_path, authority):
    """Makes web servers: `new_web(mutual=True)`."""
    webs = []

    def make(**options):
        folder = tmp_path / f"web-{len(webs)}"
        folder.mkdir()
        webs.append(Web(folder, authority, **options))
        return webs[-1]

    yield make
    for one in webs:
        one.close()


@pytest.fixture(params=["s3", "https", "archive", "file", "fake"])
def store(request, tmp_path):
    if request.param == "s3":
        return request.getfixturevalue("seaweed").store(f"contract/{uuid.uuid4().hex}")
    if request.param == "https":
        return Published(request.getfixturevalue("new_web")())
    if request.param == "archive":
        return Carried(tmp_path)
    return open_store(f"file://{tmp_path}/store") if request.param == "file" else FakeStore()


def whole(download):
    with download:
        return b"".join(download.pieces)


def test_what_was_written_is_read(store):
    """Bytes and files come back as they went in, and a new content replaces the old one."""
    store.write("a/b.json", b"first")
    store.write("a/b.json", io.BytesIO(b"second"))
    assert store.read("a/b.json", 100) == b"second"


def test_an_absent_key_is_missing(store):
    """Nothing under a key is told apart from a store that cannot be reached."""
    with pytest.raises(Missing):
        store.read("not/there", 100)
    with pytest.raises(Missing):
        store.stream("not/there")


def test_a_longer_object_than_allowed_is_not_read(store):
    """A store cannot fill our memory."""
    store.write("big", b"x" * 101)
    with pytest.raises(TrustError, match="101 bytes"):
        store.read("big", 100)


def test_a_stream_comes_in_small_pieces(store):
    """A stream says the whole size and never brings more than a megabyte at once."""
    store.write("model", CONTENT)
    with store.stream("model") as download:
        pieces = list(download.pieces)
    assert (download.size, download.start) == (len(CONTENT), 0)
    assert max(map(len, pieces)) <= 1024 * 1024
    assert b"".join(pieces) == CONTENT


def test_a_stream_goes_on_where_it_stopped(store):
    """From an offset come the bytes from there, and the size is still that of the whole."""
    store.write("model", CONTENT)
    first = store.stream("model")
    first.close()
    rest = store.stream("model", 1_000_001, first.etag)
    assert (rest.start, rest.size, whole(rest)) == (1_000_001, len(CONTENT), CONTENT[1_000_001:])


def test_another_object_is_not_continued(store):
    """Bytes of two objects are never put together."""
    store.write("model", CONTENT)
    first = store.stream("model")
    first.close()
    store.write("model", CONTENT[::-1])
    with pytest.raises(Changed):
        store.stream("model", 1000, first.etag)


def test_an_offset_beyond_the_end_is_another_object(store):
    """A store that has less than we already hold has something else."""
    store.write("model", b"short")
    with pytest.raises(Changed):
        store.stream("model", 1000)


def test_a_name_is_given_once(store):
    """What was published under a name is never replaced when the writer says so."""
    store.write("release", b"first", if_absent=True)
    with pytest.raises(Exists):
        store.write("release", b"second", if_absent=True)
    assert store.read("release", 10) == b"first"


def test_keys_are_listed_by_prefix(store):
    """A prefix is the beginning of keys, not a folder."""
    for key in ("a/1", "a/2", "ab", "b/1"):
        store.write(key, b"")
    assert list(store.keys("a")) == ["a/1", "a/2", "ab"]
    assert list(store.keys("a/")) == ["a/1", "a/2"]
    assert list(store.keys()) == ["a/1", "a/2", "ab", "b/1"]


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "a//b", "a\\b", "", "a/.", "x" * 1025, "a\0b"])
def test_a_key_cannot_leave_the_store(store, key):
    """A key is a path below the store, whatever metadata says."""
    with pytest.raises(InputError):
        store.read(key, 10)
    with pytest.raises(InputError):
        store.write(key, b"")


def test_a_link_on_a_stick_leads_nowhere(tmp_path):
    """A stick cannot make us read a file of this device, nor hang us on a pipe."""
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "stick"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")
    for key in ("link", "pipe"):
        with pytest.raises(Missing):
            FileStore(folder).read(key, 100)


def test_a_device_reads_and_cannot_write(seaweed):
    """The device's credentials read its bucket; a write is refused with what to do."""
    seaweed.store("rights").write("key", b"content")
    device = seaweed.store("rights", EDGE)
    assert device.read("key", 10) == b"content"
    with pytest.raises(TransferError, match="access denied"):
        device.write("key", b"other")


def test_wrong_credentials_say_so(seaweed):
    """A wrong secret key is named as what is wrong."""
    with pytest.raises(TransferError, match="secret key is wrong"):
        seaweed.store("rights", (EDGE[0], "wrong")).read("key", 10)


def test_a_server_that_is_away_is_a_matter_of_waiting(seaweed, new_proxy):
    """A refused connection names the network."""
    proxy = new_proxy(seaweed.port)
    proxy.refuse = True
    with pytest.raises(TransferError, match="no connection"):
        seaweed.store("rights", endpoint=proxy.endpoint).read("key", 10)


@pytest.mark.parametrize("url", ["models", "http://x/y", "s3:///x", "file://", "file://host/x"])
def test_a_url_that_is_no_store_is_refused(url):
    """The two forms of a store's URL are in the refusal."""
    with pytest.raises(InputError, match="s3://bucket/prefix"):
        open_store(url)
    with pytest.raises(InputError, match="s3://bucket/prefix"):
        open_for_reading(StoreSettings(url=url))


def test_a_bucket_without_a_prefix_is_a_store(seaweed):
    """The prefix is optional."""
    seaweed.store("rooted").write("key", b"1")
    settings = StoreSettings(url=f"s3://{BUCKET}", endpoint=seaweed.endpoint, access_key=EDGE[0], secret_key=EDGE[1])
    store = open_for_reading(settings)
    assert store.read("rooted/key", 1) == b"1"


def test_a_web_server_is_only_read():
    """A desk that wants to publish through it is told where to."""
    with pytest.raises(InputError, match="behind it"):
        open_store("https://cdn.example/models")


def test_a_bearer_token_opens_and_stays_at_its_host(new_web):
    """The token is asked for and sent; a redirect to another host goes there without it, with the range."""
    web, other = new_web(), new_web()
    web.bearer = "a-token"
    DeskFolder(web.folder).write("here", b"content")
    DeskFolder(other.folder).write("blobs/there", CONTENT)
    web.away = {"blobs/": other.url}
    with pytest.raises(TransferError, match="credentials"):
        web.store().read("here", 10)
    store = web.store(bearer="a-token")
    assert store.read("here", 10) == b"content"
    assert whole(store.stream("blobs/there", 1000)) == CONTENT[1000:]
    assert [one.get("Authorization") for one in other.asked] == [None]


def test_a_changed_object_is_told_by_the_server(new_web):
    """A rest is asked for under the condition that it is of the same object: not one byte of another travels as one."""
    web = new_web()
    DeskFolder(web.folder).write("key", CONTENT)
    first = web.store().stream("key")
    first.close()
    whole(web.store().stream("key", 1000, first.etag))
    assert (web.asked[-1]["Range"], web.asked[-1]["If-Range"]) == ("bytes=1000-", first.etag)


def test_a_certificate_opens_where_one_is_wanted(new_web, authority):
    """With mTLS the device's certificate is its credential; without it nothing is served."""
    web = new_web(mutual=True)
    DeskFolder(web.folder).write("key", b"content")
    cert, key = authority.issue("cam-7")
    assert web.store(cert=str(cert), key=str(key)).read("key", 10) == b"content"
    with pytest.raises(TransferError, match="no connection"):
        web.store().read("key", 10)


def test_a_server_of_another_authority_is_not_spoken_to(new_web):
    """The system's authorities do not vouch for it, and no `ca` was given."""
    with pytest.raises(TransferError, match="no connection"):
        new_web().store(ca=None).read("key", 10)


@pytest.mark.parametrize(
    "access", [{"ca": "/nowhere.pem"}, {"cert": "/nowhere.pem", "key": "/nowhere.key"}, {"key": "/k"}]
)
def test_files_that_are_not_there_are_named(access):
    """A wrong path in the settings is said at the start, not at the first download."""
    with pytest.raises(InputError, match=r"ca, cert or key cannot|go together"):
        open_for_reading(StoreSettings(url="https://cdn.example/models", **access))
