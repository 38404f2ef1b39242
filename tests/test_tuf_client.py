"""The device's TUF client against a real HTTP server: what the public conformance suite looks at.

Seen are the exit status, the metadata that it shows, the targets that it leaves, and what it asked for. It runs as a
child process, but for the cases of a table, which call it: a start each would triple the time.
"""

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path
from urllib.parse import quote

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from tests.fakes.tuf_site import ALL, ONLINE, TufSite, days
from tests.fakes.waiting import until
from tests.tuf_client import main

ROOT = Path(__file__).parents[1]
TARGETS = ("targets", *ONLINE)


class Client:
    """One client with its folders, which trusts the site's first root."""

    def __init__(self, folder, site, root=None, *, called=False):
        self.site, self.folder, self.called = site, folder, called
        self.metadata, self.targets = folder / "metadata", folder / "targets"
        (folder / "trusted").write_bytes(root or site.content["metadata/1.root.json"])
        assert self.run("init", folder / "trusted") == 0
        assert site.asked == []

    def run(self, *words):
        """The exit status; what went wrong is told."""
        status, self.said = (called if self.called else child)(["--metadata-dir", str(self.metadata), *map(str, words)])
        assert "Traceback" not in self.said, self.said
        assert (status == 0) == (self.said == ""), self.said
        return status

    def refresh(self):
        self.site.asked.clear()
        return self.run("--metadata-url", f"{self.site.url}/metadata", "refresh")

    def download(self, *names):
        self.site.asked.clear()
        wanted = [word for name in names for word in ("--target-name", name)]
        return self.run(
            "--metadata-url", f"{self.site.url}/metadata/", *wanted, "--target-dir", self.targets,
            "--target-base-url", f"{self.site.url}/targets", "download",
        )  # fmt: skip

    @property
    def shown(self):
        """{role: version} of the metadata that is shown."""
        return {path.name.removesuffix(".json"): Metadata.from_file(str(path)).signed.version for path in self.files}

    @property
    def files(self):
        return sorted(self.metadata.glob("*.json"))

    @property
    def got(self):
        """Every file among the targets: {name: content}."""
        return {path.name: path.read_bytes() for path in self.targets.rglob("*") if path.is_file()}


def child(words):
    """(status, stderr) of the command."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.tuf_client", *words],
        capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def called(words):
    """As `child`, in this process."""
    said = io.StringIO()
    with redirect_stderr(said):
        status = main(words)
    return status, said.getvalue()


@pytest.fixture
def new_site():
    sites = []

    def make(**options):
        sites.append(TufSite(**options))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def site(new_site):
    return new_site()


@pytest.fixture
def client(tmp_path, site, request):
    return Client(tmp_path, site, called=hasattr(request.node, "callspec"))


# --- what it asks for and shows ------------------------------------------------------------------------------------


def test_a_refresh_asks_in_order_and_shows_what_came(site, client):
    """Root, timestamp, snapshot, targets; each shown un-versioned, byte for byte as it was received."""
    site.content["metadata/timestamp.json"] += b"\n "
    assert client.refresh() == 0
    wanted = ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
    assert site.asked == [f"metadata/{name}" for name in wanted]
    assert {path.stem: path.read_bytes() for path in client.files} == {role: site.current(role) for role in ALL}
    assert client.refresh() == 0
    assert site.asked == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_it_takes_nothing_heavy_along(tmp_path):
    """A suite starts it a thousand times: no SDK, no arrays, no broker."""
    words = ["-X", "importtime", "-m", "tests.tuf_client", "--metadata-dir", tmp_path, "refresh"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT, check=False)
    taken = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "tuf" in taken
    assert taken & {"botocore", "numpy", "onnx", "onnxruntime", "paho", "aiomqtt", "rich"} == set()


def unsigned(root):
    root["signatures"][0]["sig"] = "00" * 64


def without_version(root):
    del root["signed"]["version"]


@pytest.mark.parametrize("spoil", [unsigned, without_version])
def test_a_root_that_cannot_be_trusted_is_asked_nothing(tmp_path, site, spoil):
    """Whatever was pinned must be signed by itself."""
    root = json.loads(site.content["metadata/1.root.json"])
    spoil(root)
    client = Client(tmp_path, site, json.dumps(root).encode())
    assert client.refresh() == 1
    assert "pinned root" in client.said
    assert site.asked == []


def test_without_a_root_or_a_server_it_says_what_to_do(tmp_path, site, client):
    """Neither is a traceback."""
    site.close()
    assert client.refresh() == 1
    assert "check the URL and the network" in client.said
    client.metadata = tmp_path / "elsewhere"
    assert client.refresh() == 1
    assert "`init` it first" in client.said


# --- what it does not believe --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "at"),
    [(how, at) for how in ("unsigned", "expired") for at in range(4)]
    + [("of another version", at) for at in (0, 2, 3)],
)
def test_a_role_that_is_not_to_be_believed_ends_the_chain_there(site, client, how, at):
    """What was verified before it is shown at its new version, the rest as it was."""
    assert client.refresh() == 0
    order = ("root", "timestamp", "snapshot", "targets")
    role = order[at]
    if how == "unsigned":
        site.keys[role] = [CryptoSigner.generate_ed25519()]
    elif how == "expired":
        site.signed(role).expires = days(-1)
    site.publish(*ALL)
    if how == "of another version":
        name = f"metadata/2.{role}.json"
        site.publish(role, listed=False)
        site.content[name] = site.content.pop(f"metadata/3.{role}.json")
    assert client.refresh() == 1
    reached = at + ((role, how) == ("root", "expired"))  # a root that has expired leads to the next one all the same
    assert client.shown == {name: 2 if place < reached else 1 for place, name in enumerate(order)}


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
@pytest.mark.parametrize("hashed", [True, False])
def test_a_role_does_not_go_back(site, client, role, hashed):
    """An older version under a newer timestamp is refused, with and without hashes in the metadata."""
    site.hashed = hashed
    site.publish(*TARGETS)
    assert client.refresh() == 0
    site.signed(role).version = 0
    site.publish(role, *ONLINE[ONLINE.index(role) + 1 if role in ONLINE else 0 :])
    assert client.refresh() == 1
    assert "is older than" in client.said
    assert client.shown[role] == 2


def test_a_torn_state_does_not_open_the_way_back(site, client):
    """With its own metadata torn by a power cut, an older repository is refused by the floor."""
    old = dict(site.content)
    site.publish(*TARGETS)
    assert client.refresh() == 0
    for name in ("timestamp.json", "snapshot.json"):
        (client.metadata / "client" / "current" / name).write_bytes(b"")
    site.content = old
    assert client.refresh() == 1
    assert "which this device has seen" in client.said


def test_a_timestamp_of_the_same_version_is_not_news(site, client):
    """Other content under a version that is known is ignored."""
    assert client.refresh() == 0
    before = site.current("timestamp")
    site.signed("timestamp").snapshot_meta.version = 100
    site.signed("timestamp").version = 0
    site.publish("timestamp")
    assert client.refresh() == 0
    assert (client.metadata / "timestamp.json").read_bytes() == before
    assert site.asked[-1] == "metadata/timestamp.json"


@pytest.mark.parametrize(
    ("role", "rotated"),
    [("timestamp", ["timestamp"]), ("snapshot", ["snapshot", "timestamp"]), ("targets", ["snapshot"])],
)
def test_a_fast_forward_is_undone_by_new_keys(site, client, role, rotated):
    """A thief who published version 2^31 is forgotten with the key: the floor begins anew."""
    site.signed(role).version = 2**31 - 2
    site.publish(*dict.fromkeys([role, *TARGETS]))
    assert client.refresh() == 0
    assert client.shown[role] >= 2**31 - 1
    for name in rotated:
        site.rotate(name)
    site.signed(role).version = 3
    site.publish("root", *dict.fromkeys([*([] if role == "timestamp" else [role]), *ONLINE]))
    assert client.refresh() == 0, client.said
    assert 3 < client.shown[role] < 10


def test_hashes_of_metadata_count(site, client):
    """Metadata that is signed and is not the file that the snapshot names is refused."""
    assert client.refresh() == 0
    site.publish("targets")
    site.signed("snapshot").meta["targets.json"].hashes["sha256"] = "0" * 64
    site.publish(*ONLINE)
    assert client.refresh() == 1
    assert client.shown == {"root": 1, "timestamp": 2, "snapshot": 2, "targets": 1}


@pytest.mark.parametrize(
    ("role", "last"), [("snapshot", "2.snapshot"), ("targets", "2.targets"), ("timestamp", "timestamp")]
)
def test_metadata_that_is_missing_is_no_repository(site, client, role, last):
    """A promised version that is not there fails the refresh."""
    assert client.refresh() == 0
    site.publish(*TARGETS)
    del site.content[f"metadata/{last}.json"]
    assert client.refresh() == 1
    assert site.asked[-1] == f"metadata/{last}.json"
    assert client.shown[role] == 1


def test_a_snapshot_is_no_timestamp(site, client):
    """A document of another type is refused, signed by the right key or not."""
    site.give_key("snapshot", site.keys["timestamp"][0])
    site.publish("root", "snapshot")
    site.content["metadata/timestamp.json"] = site.current("snapshot")
    assert client.refresh() == 1
    assert client.shown == {"root": 2}


# --- keys ----------------------------------------------------------------------------------------------------------

ROTATIONS = {
    "to another key": ([([1], 1, [1]), ([2], 1, [1, 2]), ([2], 1, [2])], True),
    "with signatures of strangers": ([([1], 1, [3, 1]), ([2], 1, [4, 2, 1])], True),
    "of three in five, one by one": ([([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 4, 1])], True),
    "of three in five, all at once": ([([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([5, 6, 7, 8, 9], 3, [0, 2, 4, 5, 6, 7])], True),
    "to a higher threshold": ([([1, 2, 3], 1, [1]), ([1, 2, 3], 2, [1, 2])], True),
    "that the old key did not sign": ([([1], 1, [1]), ([2], 1, [2, 3])], False),
    "that the new key did not sign": ([([1], 1, [1]), ([2], 1, [1, 3])], False),
    "that misses the new threshold": ([([1, 2, 3], 1, [1]), ([1, 2, 3], 2, [2])], False),
    "that misses the old threshold": ([([1, 2, 3], 2, [1, 2]), ([1, 2, 3], 1, [1])], False),
}  # fmt: skip


@pytest.mark.parametrize("case", ROTATIONS)
def test_a_rotation_of_the_root(tmp_path, site, case):
    """Each root must be signed by its own threshold and by that of the one before."""
    versions, good = ROTATIONS[case]
    signers = [CryptoSigner.generate_ed25519() for _ in range(10)]
    site.root.version = 0
    for keys, threshold, signing in versions:
        site.root.roles["root"].threshold = threshold
        for keyid in list(site.root.roles["root"].keyids):
            site.root.revoke_key(keyid, "root")
        for number in keys:
            site.root.add_key(signers[number].public_key, "root")
        site.keys["root"] = [signers[number] for number in signing]
        site.publish("root")
    client = Client(tmp_path, site, called=True)
    assert client.refresh() == (0 if good else 1)
    last = len(versions) if good else len(versions) - 1
    assert (client.metadata / "root.json").read_bytes() == site.content[f"metadata/{last}.root.json"]


def test_a_threshold_is_of_different_keys_that_root_names(site, client):
    """Signed twice by one key, or by a key that root does not name, is signed once."""
    site.give_key("snapshot")
    site.root.roles["snapshot"].threshold = 2
    first, second = site.keys["snapshot"]
    site.keys["snapshot"] = [first, first, CryptoSigner.generate_ed25519()]
    site.publish("root", *ONLINE)
    assert client.refresh() == 1
    assert client.shown == {"root": 2, "timestamp": 2}
    site.keys["snapshot"] = [first, second]
    site.publish(*ONLINE)
    assert client.refresh() == 0


@pytest.mark.parametrize(
    "make",
    [
        CryptoSigner.generate_rsa,
        lambda: CryptoSigner.generate_rsa(scheme="rsa-pkcs1v15-sha256"),
        CryptoSigner.generate_ecdsa,
        CryptoSigner.generate_ed25519,
    ],
    ids=["rsa-pss", "rsa-pkcs1", "ecdsa", "ed25519"],
)
def test_keys_of_every_usual_type_are_believed(site, client, make):
    """Roles may be signed by any of them."""
    for role in ONLINE:
        site.rotate(role)
        site.keys[role] = []
        site.give_key(role, make())
    site.publish("root", *ONLINE)
    assert client.refresh() == 0
    assert client.shown["snapshot"] == 2


def test_fields_that_nobody_knows_are_signed_and_kept(site, client):
    """Metadata may hold more than this client reads."""
    site.root.unrecognized_fields["x-more"] = {"a": [1, "b"]}
    site.root.roles["root"].unrecognized_fields["x-more"] = "value"
    site.publish("root")
    assert client.refresh() == 0
    assert client.shown["root"] == 2


# --- time ----------------------------------------------------------------------------------------------------------


def test_kept_metadata_that_has_expired_is_a_step_to_newer(site, client):
    """The clock is the machine's: what expired since the last refresh is renewed, not an obstacle."""
    site.signed("timestamp").expires = ends = days(0)  # this very second, which is over soon
    site.publish("timestamp")
    client.refresh()
    until(lambda: days(0) > ends, 5, "it has expired")
    assert client.refresh() == 1
    assert "has expired" in client.said
    site.signed("timestamp").expires = days(1)
    site.publish(*TARGETS)
    assert client.refresh() == 0


# --- targets -------------------------------------------------------------------------------------------------------


def test_what_nobody_lists_is_not_downloaded(site, client):
    """The metadata is up to date all the same."""
    assert client.download("nothing of this name") == 1
    assert "nobody who may lists it" in client.said
    assert client.shown == dict.fromkeys(ALL, 1)
    assert client.got == {}


@pytest.mark.parametrize("consistent", [True, False])
def test_targets_are_downloaded_once(tmp_path, new_site, consistent):
    """Two in one call, with and without digests in their names; what is there is not fetched again."""
    site = new_site(consistent=consistent)
    names = ["plain.txt", "path/to/a nested Ünïcödé ☃?.bin"]
    for name in names:
        site.add(name, name.encode() * 100)
    site.publish(*TARGETS)
    client = Client(tmp_path, site, called=not consistent)
    assert client.download(*names) == 0
    assert client.got == {quote(name, ""): name.encode() * 100 for name in names}
    assert client.download(*names) == 0
    assert not [asked for asked in site.asked if asked.startswith("targets/")]


def test_a_target_that_changed_takes_its_place(site, client):
    """Same name, other bytes, as they are signed now."""
    for content in (b"first", b"second"):
        site.add("file", content)
        site.publish(*TARGETS)
        assert client.download("file") == 0
        assert client.got == {"file": content}


@pytest.mark.parametrize("served", [b"malicious", b"malice", b"", None, b"x" * 100_000])
def test_bytes_that_are_not_signed_leave_nothing(site, client, served):
    """Others of the same length, fewer, none, more: no file, not even a part of one."""
    site.add("file", b"something")
    site.publish(*TARGETS)
    for key in [key for key in site.content if key.startswith("targets/")]:
        site.content[key] = served
        if served is None:
            del site.content[key]
    assert client.download("file") == 1
    assert client.got == {}


@pytest.mark.parametrize("hashes", [["sha512"], ["sha512", "sha256"]])
def test_other_hashes_count_as_well(site, client, hashes):
    """What is listed by SHA-512 alone is verified by that."""
    site.add("file", b"something", hashes=hashes)
    site.publish(*TARGETS)
    assert client.download("file") == 0
    site.signed("targets").targets["file"].hashes["sha512" if len(hashes) == 1 else "sha256"] = "0" * 128
    site.publish(*TARGETS)
    client.targets = client.folder / "elsewhere"
    assert client.download("file") == 1
    assert client.got == {}


# --- delegations ---------------------------------------------------------------------------------------------------

GRAPHS = {
    "in order": ([("A", {}), ("B", {})], ["A", "B"]),
    "depth first": ([("A", {}), ("B", {}), ("C", {"by": "A"}), ("D", {"by": "A"})], ["A", "C", "D", "B"]),
    "terminating": ([("A", {}), ("B", {}), ("C", {"by": "A", "terminating": True}), ("D", {"by": "A"})], ["A", "C"]),
    "by paths": ([("A", {"paths": ["*.py"]}), ("B", {}), ("C", {"by": "A"})], ["B"]),
    "in a circle": ([("A", {}), ("B", {"by": "A"}), ("A", {"by": "B"})], ["A", "B"]),
}  # fmt: skip


@pytest.mark.parametrize("case", GRAPHS)
def test_delegations_are_searched_as_they_stand(site, client, case):
    """Roles are asked in the order of the delegations, each once, and shown."""
    delegations, order = GRAPHS[case]
    for name, about in delegations:
        site.delegate(name, **about)
    site.publish(*dict.fromkeys(name for name, _ in delegations), *TARGETS)
    assert client.download("missing") == 1
    assert site.asked[4:] == [f"metadata/1.{name}.json" for name in order]
    assert set(client.shown) == {*ALL, *order}


def test_a_role_lists_only_what_was_delegated_to_it(site, client):
    """What it lists inside its paths is found, and outside of them is not."""
    site.delegate("team", ["releases/*"])
    for path in ("releases/model", "policy/rules", "releases/deeper/model"):
        site.add(path, path.encode(), by="team")
    site.publish("team", *TARGETS)
    assert client.download("releases/model") == 0
    assert client.download("policy/rules") == 1
    assert client.download("releases/deeper/model") == 1
    assert list(client.got.values()) == [b"releases/model"]


def test_a_target_in_a_bin_costs_one_bin(site, client):
    """Succinct delegations: the one bin that may list it is fetched, and no other."""
    names = site.delegate_to_bins(3)
    bins = site.signed("targets").delegations.succinct_roles
    where = bins.get_role_for_target("some/file")
    site.add("some/file", b"content", by=where)
    site.publish(*names, *TARGETS)
    assert client.download("some/file") == 0
    assert site.asked[4] == f"metadata/1.{where}.json"
    assert set(client.shown) == {*ALL, where}


@pytest.mark.parametrize("role", ["?", "#", "/role", "../role"])
def test_a_role_of_any_name_stays_in_its_folder(site, client, role):
    """Its name is quoted, in URLs and in file names."""
    site.delegate(role)
    site.publish(role, *TARGETS)
    assert client.download("missing") == 1
    assert f"metadata/1.{quote(role, '')}.json" in site.asked
    assert [path.name for path in client.metadata.parent.rglob("*role.json")] == [
        f"{quote(role, '')}.json"
    ] * 2 * role.endswith("role")
    assert len(client.shown) == 5


@pytest.mark.parametrize("how", ["unsigned", "expired", "old"])
def test_a_delegated_role_that_is_not_to_be_believed(site, client, how):
    """Nothing that it lists is downloaded."""
    site.delegate("team")
    site.add("file", b"content", by="team")
    site.publish("team", "team", *TARGETS)
    assert client.download("file") == 0
    client.targets = client.folder / "elsewhere"
    if how == "unsigned":
        site.keys["team"] = [CryptoSigner.generate_ed25519()]
    elif how == "expired":
        site.signed("team").expires = days(-1)
    else:
        site.signed("team").version = 0
    site.publish("team", *ONLINE)
    assert client.download("file") == 1
    assert client.got == {}
    assert client.shown["team"] == 2
