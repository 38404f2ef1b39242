"""Every command, used wrongly as people do: one useful sentence, the right exit code, never a trace.

Exit 2: whoever typed it must act. Exit 1: something is not there, or does not work, now. Exit 78: the agent's settings.
"""

import shutil
import sys
from pathlib import Path

import pytest

from agent.daemon import cli as agent
from fleet import cli as fleet
from provisioning import cli as provision
from tests.fakes.ports import free_ports
from tests.fleet.desk import NEW, checked


@pytest.fixture
def desk(desk_made_once, tmp_path, monkeypatch):
    """A folder with keys, a store with one release, and an enrolled device that was never started."""
    shutil.copytree(desk_made_once, tmp_path / "desk", dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path / "desk")
    config = Path("device/agent.yaml")
    config.write_text(config.read_text().replace(str(desk_made_once), str(Path.cwd())))
    return Path.cwd()


@pytest.fixture(scope="module")
def desk_made_once(tmp_path_factory):
    from fleet.keyring import Keyring
    from fleet.publish import newest_publics, publish
    from fleet.repository import Repository
    from fleet.stores import DeskFolder
    from fleet.terminal import now

    folder = tmp_path_factory.mktemp("desk")
    for name in ("store", "models"):
        (folder / name).mkdir()
    store, keys = ["--store", f"file://{folder}/store"], ["--keys", f"{folder}/keys"]
    for words in (["keys", "init", f"{folder}/keys"], ["group", "init", "g1", *keys], ["store", "init", *store, *keys]):
        assert provision.main(words) == 0
    enrol = ["device", "enrol", "cam-1", "--group", "g1", "--out", f"{folder}/device"]
    assert provision.main([*enrol, *store, *keys]) == 0
    keyring = Keyring(folder / "keys")
    repository = Repository.load(DeskFolder(folder / "store"), keyring)
    publish(repository, checked(), newest_publics(keyring, ["g1"]), now=now())
    return folder


def used(call, words, capsys):
    """(exit code, what was said on both streams)."""
    try:
        code = call(words)
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr()
    return code, said.out + said.err


def edge_agent(words):
    was, sys.argv = sys.argv, ["edge-agent", *words]
    try:
        return agent.main()
    finally:
        sys.argv = was


HERE = "--store file://{here}/store --keys keys"
NOBODY = "--broker mqtt://127.0.0.1:{port}"
CONFIG = "--config device/agent.yaml"

FLEET = [
    ("", 2, "usage: edge-fleet"),
    ("publsh x", 2, "invalid choice: 'publsh'"),
    # publish
    (f"publish {HERE}", 2, "required: name"),
    (f"publish face_detection {HERE}", 2, "not in _YYYYMMDD"),
    (f"publish {NEW} --folder nowhere {HERE}", 2, "nowhere"),
    (f"publish {NEW} --folder store {HERE}", 2, "cannot be published"),
    (f"publish {NEW} --group g9 {HERE}", 2, ""),
    (f"publish {NEW} --store file:///nowhere --keys keys", 1, "check the store's URL"),
    (f"publish {NEW} --store store --keys keys", 2, "write s3://bucket/prefix or file:///path/to/folder"),
    (f"publish {NEW} --store file://{{here}}/store --keys nowhere", 2, "root.json"),
    # list, refresh
    ("list --store file:///nowhere --keys keys", 1, "check the store's URL"),
    ("list --store ftp://x --keys keys", 2, "write s3://bucket/prefix"),
    ("list --store file://{here}/store --keys store", 2, "root.json"),
    ("list --store file://{here}/store --keys device/agent.yaml", 2, "root.json"),
    ("list --store file://{here}/store", 2, "required: --keys"),
    ("list --store s3://bucket --endpoint nonsense --keys keys", 2, "nonsense"),
    ("refresh --store file://{here}/device --keys keys", 1, "check the store's URL"),
    ("refresh --store file://{here}/store --keys device", 2, "no key of the role"),
    ("refresh", 2, "required: --store, --keys"),
    # export
    (f"export --group g1 {HERE}", 2, "required: --out"),
    (f"export --group g1 --out x.zip {HERE}", 2, "name a release with --release, or roll one out first"),
    (f"export --group g1 --out nowhere/x.zip --release {NEW} {HERE}", 2, "in one that is there"),
    (f"export --group g1 --out . --release {NEW} {HERE}", 2, "in one that is there"),
    (f"export --group g9 --out x.zip --release {NEW} {HERE}", 2, "sealed for g1 alone"),
    # rollout
    (f"rollout --group g1 --release {NEW.replace('0628', '0701')} {HERE}", 2, "`edge-fleet list` shows what is"),
    (f"rollout --group g1 --release ../../x {HERE}", 2, "cannot stand there"),
    (f"rollout --group g1 --release {NEW} --share 2 {HERE}", 2, "above 0 and up to 1"),
    (f"rollout --group g1 --release {NEW} --share nan {HERE}", 2, "above 0 and up to 1"),
    (f"rollout --group g1 --release {NEW} --share all {HERE}", 2, "invalid float value: 'all'"),
    (f"rollout --group g1 --release {NEW} --soak -1 {HERE}", 2, "seconds, 0 or more"),
    (f"rollout --group g1 --release {NEW} --soak nan {HERE}", 2, "seconds, 0 or more"),
    (f"rollout --group g/1 --release {NEW} {HERE}", 2, "group 'g/1'"),
    (f"rollout --group g1 --slot a/b --release {NEW} {HERE}", 2, "slot 'a/b'"),
    (f"rollout --group g9 --release {NEW} {HERE}", 2, "g9"),
    (f"rollout --group g1 --release {NEW} {HERE} --broker http://x", 2, "not a broker; write mqtt://"),
    (f"rollout --group g1 --release {NEW} {HERE} {NOBODY}", 1, "check its address, port and certificates"),
    (f"rollout --group g1 --release {NEW} {HERE} --broker tcp://x", 2, "write mqtt://host:port"),
    # wave
    (f"wave halt --group g1 {HERE}", 2, "begin with `edge-fleet rollout`"),
    (f"wave stop --group g1 {HERE}", 2, "invalid choice: 'stop'"),
    (f"wave halt --group .. {HERE}", 2, "group '..'"),
    (f"wave run --share nan --group g1 {HERE}", 2, "nothing is deployed"),
    # sign, withdraw, policy
    (f"rollout --release {NEW} {HERE}", 2, "--group"),
    (f"rollout --from nowhere {HERE}", 2, "nowhere: No such file"),
    (f"rollout --from root.json --release {NEW} {HERE}", 2, "not allowed with argument"),
    ("sign nowhere --keys keys", 2, "nowhere: No such file"),
    ("sign keys/root.json --keys keys", 2, "keys/root.json"),
    ("sign keys/root.json --role boss --keys keys", 2, "invalid choice: 'boss'"),
    (f"withdraw {NEW} {HERE}", 2, "say why with --reason"),
    (f"withdraw face --reason x {HERE}", 2, "not in _YYYYMMDD"),
    (f"withdraw --reason x {HERE}", 2, "required"),
    (f"policy set {HERE}", 2, "policy set FILE"),
    (f"policy set keys/root.json {HERE}", 2, "keys/root.json"),
    (f"policy drop {HERE}", 2, "invalid choice: 'drop'"),
    # command, rollback
    (f"command dance --device cam-1 --keys keys {NOBODY}", 2, "invalid choice: 'dance'"),
    (f"command sync --keys keys {NOBODY}", 2, "one of the arguments --device --group is required"),
    (f"command sync --device cam-1 --keys keys {NOBODY}", 1, "check its address, port and certificates"),
    (f"command sync --device a/b --keys keys {NOBODY}", 2, "device 'a/b'"),
    (f"command sync --device cam-1 --release {NEW} --keys keys {NOBODY}", 2, "only pin does"),
    (f"command sync --device cam-1 --keys device {NOBODY}", 2, "no key of the role operators"),
    ("command sync --device cam-1 --keys keys --broker mqtt://a..b", 2, "host"),
    ("command sync --device cam-1 --keys keys --broker mqtt://a:99999", 2, "write mqtt://host:port"),
    ("command sync --device cam-1 --keys keys --broker mqtts://127.0.0.1:{port} --ca nowhere.pem", 1, "nowhere.pem"),
    (f"rollback --device cam-1 --keys nowhere {NOBODY}", 2, "no key of the role operators"),
    (f"rollback --device cam-1 --group g1 --keys keys {NOBODY}", 2, "not allowed with argument"),
    ("rollback --device cam-1 --keys keys", 2, "required: --broker"),
    # watch
    (f"watch {NOBODY}", 1, "check its address, port and certificates"),
    (f"watch --for nan {NOBODY}", 2, "--for"),
    (f"watch --for -1 {NOBODY}", 2, "--for"),
    ("watch --broker nonsense", 2, "write mqtt://host:port"),
    ("watch", 2, "required: --broker"),
]


@pytest.mark.parametrize(("words", "code", "answer"), FLEET, ids=[one[0] or "nothing" for one in FLEET])
def test_edge_fleet_used_wrongly(desk, capsys, words, code, answer):
    """A sentence that says what to do, and nothing was published."""
    check(fleet.main, desk, capsys, words, code, answer)


PROVISION = [
    ("", 2, "usage: edge-provision"),
    ("keys", 2, "usage: edge-provision keys"),
    # keys
    ("keys init keys", 2, "never overwritten"),
    ("keys init device/agent.yaml/x", 2, "choose another folder"),
    ("keys init", 2, "required: folder"),
    ("keys show nowhere", 2, "make one with `edge-provision keys init`"),
    ("keys show device/agent.yaml", 2, "no such folder"),
    ("keys show store", 2, "holds no keys"),
    ("keys show", 2, "required: folder"),
    # store
    (f"store init {HERE}", 2, "holds a repository already"),
    ("store init --store file:///nowhere/at/all --keys nowhere", 2, "roles/"),
    ("store init --store nonsense --keys keys", 2, "write s3://bucket/prefix"),
    ("store init --store file://{here}/device/agent.yaml --keys keys", 1, "agent.yaml"),
    # group
    ("group init g1 --keys keys", 2, "has keys already"),
    ("group init ../g --keys keys", 2, "group '../g'"),
    ("group init groups --keys keys", 2, "group 'groups'"),
    ("group init g2 --keys device/agent.yaml", 2, "no such folder"),
    ("group init g2 --keys nowhere", 2, "make one with `edge-provision keys init`"),
    ("group init g2", 2, "required: --keys"),
    ("group init g2 --encrypt --keys keys", 2, "set EDGE_KEY_PASSPHRASE"),
    (f"group rotate g9 {HERE}", 2, "make it with `edge-provision group init`"),
    (f"group rotate ../g {HERE}", 2, "group '../g'"),
    ("group rotate g1 --store file://{here}/store --keys device", 2, "no keys of the group g1"),
    # device
    (f"device revoke cam-9 --group g1 {HERE}", 2, "not enrolled in g1 at this desk"),
    (f"device revoke ../x --group g1 {HERE}", 2, "device '../x'"),
    (f"device revoke cam-1 {HERE}", 2, "required: --group"),
    (f"device enrol --from nowhere --group g1 {HERE}", 2, "nowhere: No such file"),
    (f"device enrol --from keys/root.json --group g1 {HERE}", 2, "root.json, line 1"),
    (f"device enrol cam-2 --group g1 {HERE}", 2, "--out"),
    (f"device enrol cam-1 --group g1 --out device {HERE}", 2, "choose another folder"),
    (f"device enrol cam/1 --group g1 --out new {HERE}", 2, "device 'cam/1'"),
    (f"device enrol cam-2 --group g9 --out new {HERE}", 2, "make it with `edge-provision group init`"),
    (f"device enrol cam-2 --group g1 --out device/agent.yaml {HERE}", 2, "choose another folder"),
    (f"device enrol cam-2 --group g1 --out new --public-key keys/root.json {HERE}", 2, "`openssl pkey -pubout`"),
    (f"device enrol cam-2 --group g1 --out new --broker nonsense {HERE}", 2, "write mqtt://host:port"),
    ("device enrol cam-2 --group g1 --out new --store file://{here}/store --keys nowhere", 2, "root.json"),
    ("device enrol cam-2 --group g1 --out new --store file://{here}/keys/root.json --keys keys", 1, "root.json"),
    ("device enrol cam-2 --group g1 --out new --store file://{here}/nowhere --keys keys", 1, "check the store's URL"),
    (f"device enrol --group g1 --out new {HERE}", 2, "one of the arguments name --from is required"),
]


@pytest.mark.parametrize(("words", "code", "answer"), PROVISION, ids=[one[0] or "nothing" for one in PROVISION])
def test_edge_provision_used_wrongly(desk, capsys, words, code, answer):
    """A sentence that says what to do; no key and no enrolment was overwritten."""
    check(provision.main, desk, capsys, words, code, answer)


AGENT = [
    ("", 2, "usage: edge-agent"),
    ("dance", 2, "invalid choice: 'dance'"),
    ("run --config nowhere.yaml", 78, "`edge-provision device enrol` writes one"),
    ("run --config keys/root.json", 78, "docs/agent.example.yaml explains every key"),
    ("run --config keys", 78, "Is a directory"),
    *[
        case
        for name in ("status", "why", "bench", "sync", "pull", "retry", "doctor")
        for case in (
            (f"{name} --config nowhere.yaml", 2, "`edge-provision device enrol` writes one"),
            (f"{name} --config keys/root.json", 2, "docs/agent.example.yaml explains every key"),
            (f"{name} --speed 7 {CONFIG}", 2, "unrecognized arguments"),
        )
    ],
    ("status --config device", 2, "give the file agent.yaml"),
    (f"status {CONFIG}", 1, "start the agent"),
    (f"status --json {CONFIG}", 1, "start the agent"),
    (f"status --watch {CONFIG}", 1, "start the agent"),
    (f"why {CONFIG}", 1, "start the agent"),
    (f"why pose {CONFIG}", 1, "start the agent"),
    (f"bench {CONFIG}", 1, "is it running?"),
    (f"bench pose {CONFIG}", 1, "is it running?"),
    (f"sync {CONFIG}", 1, "is it running?"),
    (f"sync now {CONFIG}", 2, "unrecognized arguments"),
    (f"pull {CONFIG}", 1, "is it running?"),
    (f"pull face_detection {CONFIG}", 2, "unrecognized arguments"),
    (f"import {CONFIG}", 2, "required: file"),
    (f"import site.zip {CONFIG}", 1, "is it running?"),
    ("import site.zip --config nowhere.yaml", 2, "`edge-provision device enrol` writes one"),
    (f"retry {CONFIG}", 1, "is it running?"),
]


@pytest.mark.parametrize(("words", "code", "answer"), AGENT, ids=[one[0] or "nothing" for one in AGENT])
def test_edge_agent_used_wrongly(desk, capsys, words, code, answer):
    """A sentence that says what to do."""
    check(edge_agent, desk, capsys, words, code, answer)


def check(call, desk, capsys, words, code, answer):
    before = content(desk)
    (port,) = free_ports(1)
    given, said = used(call, words.format(here=desk, port=port).split(), capsys)
    assert (given, answer in said) == (code, True), said
    assert "Traceback" not in said
    if "rollout" not in words or code == 2:  # a deployment stands in the store also where no broker could be told
        assert content(desk) == before


def content(desk):
    """Every file but what a desk has seen, and its bytes; and every folder."""
    found = (path for path in desk.rglob("*") if not {"seen", "pending"} & set(path.parts))
    return {path: path.read_bytes() if path.is_file() else b"" for path in found}


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"device": "x"}', b"\xff\xfe"])
def test_a_state_file_that_is_none(desk, capsys, raw):
    """Somebody else's file, or one of another version: `status` and `why` say whose it is."""
    (desk / "device/run").mkdir()
    (desk / "device/run/state.json").write_bytes(raw)
    for name in ("status", "why"):
        code, said = used(edge_agent, [name, "--config", "device/agent.yaml"], capsys)
        assert code in {1, 2}
        assert "state.json" in said


def test_a_doctor_without_anything(desk, capsys):
    """It says what is missing for each thing that is needed, and what to do."""
    shutil.rmtree(desk / "store")
    (desk / "device/device.key").unlink()
    (desk / "device/root.json").write_bytes(b"none")
    code, said = used(edge_agent, ["doctor", "--config", "device/agent.yaml"], capsys)
    assert code == 1
    for words in ("enrol the device with", "copy it again from the provisioning desk", "check the store's URL"):
        assert words in " ".join(said.split()), said
