"""Who may do what, as the owners of targets say it; signatures of several desks; what is taken back for ever."""

import shutil

import pytest
import yaml

from agent.core.documents import to_json
from agent.core.errors import InputError, TrustError
from agent.core.intent import WITHDRAWN_TYPE, WaveAction, Withdrawn
from agent.trust.deployment import Taken, believe_deployment
from agent.trust.listing import target_path
from agent.trust.policy import POLICY_BYTES, WITHDRAWN_BYTES, believe_withdrawn, read_policy
from fleet import cli
from fleet.deploy import deploy, propose, put_out, steer, users_of
from fleet.intent_cli import show_policy
from fleet.keyring import Keyring
from fleet.pending import Pending
from fleet.policy import current_policy, current_withdrawn, propose_withdrawal, put_withdrawal, set_policy
from fleet.signing import signed, words
from tests.fleet.desk import MINUTE, NEW, NOW, OLD, OTHER, Desk

OLDEST = "face_detection_retinaface_widerface_20240101"
TWO_SIGN = [{"count": 2, "verbs": ["rollout"]}]


LATER = NOW + MINUTE


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """What the desk's clock says."""
    monkeypatch.setattr("fleet.terminal.now", lambda: LATER)


@pytest.fixture
def desk(tmp_path):
    """A desk with the keys of two operators, and a release."""
    desk = Desk(tmp_path, operators=2)
    desk.publish(NEW)
    return desk


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """The same for tests that change nothing."""
    desk = Desk(tmp_path_factory.mktemp("still"), operators=2)
    desk.publish(NEW)
    return desk


@pytest.fixture
def desks(desk):
    """Anna's desk and Ben's: each has one operator's key, Ben no other; both must sign a rollout."""
    set_policy(desk.repository, team(desk, signatures=TWO_SIGN), "team.yaml", NOW)
    shutil.copytree(desk.keyring.folder, desk.folder / "ben", ignore=shutil.ignore_patterns("*-[13].pem", "groups"))
    (desk.folder / "ben/roles/operators-critical-2.pem").unlink()
    (desk.keyring.folder / "roles/operators-2.pem").unlink()
    desk.ben = Keyring(desk.folder / "ben")
    return desk


def team(desk, **more):
    """Anna may do everything; Ben rolls out and syncs, in some groups, until the year is over."""
    anna, ben = (signer.public_key.keyid for signer in desk.keyring.signers("operators"))
    tree = {
        "operators": [
            {"key": anna[:16], "name": "anna", "verbs": ["*"], "groups": ["*"]},
            {"key": ben, "name": "ben", "verbs": ["rollout", "sync"], "groups": ["g*"], "expires": "2026-12-31T00:00:00Z"},
        ],
        **more,
    }  # fmt: skip
    return yaml.safe_dump(tree).encode()


def moved(desk, release, share=1.0, **more):
    if desk.repository.find(target_path(release)) is None:
        desk.publish(release)
    return deploy(desk.repository, desk.keyring, "g1", "face", release, share, now=NOW, **more)


def fleet(desk, *words, keys=None):
    folder = keys or desk.keyring.folder
    store = [] if words[0] == "sign" else ["--store", f"file://{desk.store.root}"]
    return cli.main([*words, *store, "--keys", str(folder)])


# --- the policy ------------------------------------------------------------------------------------------------------


def test_a_policy_is_what_devices_read(desk):
    """Listed by targets itself, with whole key ids."""
    assert current_policy(desk.repository) is None
    set_policy(desk.repository, team(desk), "team.yaml", NOW)
    trusted = desk.device()
    assert "policy/operators.json" in trusted.targets.targets
    policy = read_policy(trusted.read("policy/operators.json", POLICY_BYTES))
    assert policy == current_policy(desk.load())
    assert [len(one.key) for one in policy.operators] == [64, 64]


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (
            {"operators": [{"key": "0" * 16, "name": "x", "verbs": ["*"], "groups": ["*"]}]},
            "no key of the role operators",
        ),
        ({"operators": []}, "rollout takes 1 operators, and 0 may"),
        ({"signatures": [{"count": 3}]}, "rollout takes 3 operators, and 2 may"),
        ({"signatures": [{"count": 2, "verbs": ["pin"]}]}, "pin takes 2 operators, and 1 may"),
        ({"signatures": [{"count": 1, "verbs": ["dance"]}]}, "'dance' is no verb"),
        ({"signatures": [{"count": 0}]}, "count"),
        ({"operator": []}, "operator"),
    ],
)
def test_a_policy_that_would_lock_people_out_is_refused(still, change, answer):
    """A slip is answered before it is signed; the old state stands."""
    content = yaml.safe_dump(yaml.safe_load(team(still)) | change).encode()
    with pytest.raises(InputError, match=answer):
        set_policy(still.repository, content, "team.yaml", NOW)
    assert current_policy(still.load()) is None


def test_an_operator_whose_time_is_over_counts_for_nobody(desk):
    """A quorum of two is out of reach when one of two has left."""
    set_policy(desk.repository, team(desk, signatures=TWO_SIGN), "team.yaml", NOW)
    with pytest.raises(InputError, match="rollout takes 2 operators, and 1 may"):
        set_policy(desk.repository, team(desk, signatures=TWO_SIGN), "team.yaml", NOW + 90 * 1440 * MINUTE)


def test_a_policy_is_shown_in_words(desk, capsys, tmp_path):
    """`policy set` shows what it put in force; `policy show` says the same."""
    assert fleet(desk, "policy", "show") == 0
    assert "every key of operators may do everything" in capsys.readouterr().out
    (tmp_path / "team.yaml").write_bytes(team(desk, signatures=TWO_SIGN))
    assert fleet(desk, "policy", "set", str(tmp_path / "team.yaml")) == 0
    told = capsys.readouterr().out
    assert "rollout on *: 2 must sign" in told
    assert fleet(desk, "policy", "show") == 0
    assert capsys.readouterr().out == told


def test_a_policy_that_does_not_fit_the_keys_is_told(desk, capsys):
    """A key that was replaced, and one that nobody named yet."""
    set_policy(desk.repository, team(desk), "team.yaml", NOW)
    anna, ben = (signer.public_key.keyid for signer in desk.keyring.signers("operators"))
    only = [one for one in yaml.safe_load(team(desk))["operators"] if one["name"] == "anna"]
    set_policy(desk.repository, yaml.safe_dump({"operators": only}).encode(), "team.yaml", NOW)
    assert fleet(desk, "policy", "show") == 0
    said = capsys.readouterr().out
    assert f"{ben[:16]} is a key of operators, and may do nothing here" in said
    show_policy(current_policy(desk.repository), [ben])
    assert f"{anna[:16]} is no key of operators any more" in capsys.readouterr().out


# --- signatures of several desks -------------------------------------------------------------------------------------


def test_a_rollout_waits_until_enough_have_signed(desks, capsys, tmp_path):
    """One desk leaves it pending, the other reads what it signs; only then it is published, and a device takes it."""
    file = str(tmp_path / "rollout.json")
    assert fleet(desks, "rollout", "--group", "g1", "--release", NEW, "--share", "0.1", "--pending", file) == 0
    assert "nothing is published" in capsys.readouterr().out
    assert fleet(desks, "rollout", "--from", file) == 2
    assert "needs signatures of 2 operators who may; 1 missing" in capsys.readouterr().err
    assert desks.device().find("deployments/g1.json") is None
    assert fleet(desks, "sign", file, keys=desks.ben.folder) == 0
    told = capsys.readouterr().out
    assert f"face_detection: moves from nothing to {NEW}" in told
    assert "in waves of 10%, 100% of the group" in told
    assert fleet(desks, "rollout", "--from", file) == 0
    trusted = desks.device()
    policy = read_policy(trusted.read("policy/operators.json", POLICY_BYTES))
    pair = trusted.read("deployments/g1.json", 1 << 20)
    assert believe_deployment(pair, trusted.targets, "g1", Taken(), LATER, policy).wave.share == 0.1


def test_a_signature_twice_is_one(desks):
    """Signing again adds nothing."""
    rollout = propose(desks.repository, "g1", "face", NEW, 1.0, soak_s=1, now=NOW)
    for _ in range(2):
        rollout = signed(rollout, desks.keyring, "operators")
    with pytest.raises(TrustError, match="1 missing"):
        put_out(desks.repository, desks.keyring, rollout, NOW)


def test_what_was_overtaken_is_not_published(desk):
    """A rollout that lay in a drawer takes nobody back."""
    rollout = signed(propose(desk.repository, "g1", "face", NEW, 1.0, soak_s=1, now=NOW), desk.keyring, "operators")
    moved(desk, NEW)
    with pytest.raises(InputError, match="make it anew"):
        put_out(desk.repository, desk.keyring, rollout, NOW)


def test_a_wave_in_between_makes_a_pending_rollout_stale(desk):
    """It names where devices came from, and that is another release now."""
    moved(desk, OLD)
    moved(desk, NEW, share=0.1)
    rollout = signed(propose(desk.repository, "g1", "face", NEW, 1.0, soak_s=1, now=NOW), desk.keyring, "operators")
    steer(desk.repository, desk.keyring, "g1", WaveAction.RUN, 1.0, now=NOW)
    with pytest.raises(InputError, match="make it anew"):
        put_out(desk.repository, desk.keyring, rollout, NOW)


def test_what_was_withdrawn_in_between_is_not_published(desk):
    """A rollout that lay in a drawer does not bring a bad release back."""
    rollout = signed(propose(desk.repository, "g1", "face", NEW, 1.0, soak_s=1, now=NOW), desk.keyring, "operators")
    withdraw(desk, NEW)
    with pytest.raises(InputError, match=f"{NEW} was withdrawn"):
        put_out(desk.repository, desk.keyring, rollout, NOW)


def test_a_role_signs_its_own_documents_alone(desk):
    """An operator withdraws nothing."""
    listed = propose_withdrawal(desk.repository, NEW, "sees ghosts", NOW)
    with pytest.raises(InputError, match="is not signed by operators"):
        signed(listed, desk.keyring, "operators")


# --- an older release ------------------------------------------------------------------------------------------------


def test_further_back_needs_the_critical_keys(desk, capsys):
    """The way back of the last rollout needs none; a release from before it does, and the answer says how."""
    moved(desk, OLD)
    moved(desk, NEW)
    moved(desk, OLD)
    moved(desk, NEW)
    with pytest.raises(TrustError, match=f"{OLDEST} is older than {NEW}"):
        moved(desk, OLDEST)
    words_typed = ["rollout", "--group", "g1", "--slot", "face", "--release", OLDEST]
    assert fleet(desk, *words_typed) == 2
    assert "edge-fleet sign FILE --role operators-critical" in capsys.readouterr().err
    assert fleet(desk, *words_typed, "--critical") == 0
    trusted = desk.device()
    pair = trusted.read("deployments/g1.json", 1 << 20)
    assert believe_deployment(pair, trusted.targets, "g1", Taken(), NOW).rollout.slots["face"].goal.name == OLDEST


def test_the_controller_reverts_alone(desk):
    """Back to the rollout's own start takes no operator."""
    moved(desk, OLD)
    moved(desk, NEW)
    steer(desk.repository, desk.keyring, "g1", WaveAction.REVERT, now=NOW)
    assert users_of(desk.repository, desk.repository.ref(OLD), NOW) == ("group g1 in face",)


# --- withdrawing -----------------------------------------------------------------------------------------------------


def withdraw(desk, release, reason="sees ghosts"):
    if desk.repository.find(target_path(release)) is None:
        desk.publish(release)
    listed = propose_withdrawal(desk.repository, release, reason, NOW)
    return put_withdrawal(desk.repository, signed(listed, desk.keyring, "operators-critical"), NOW)


def test_a_withdrawal_is_what_devices_read(desk):
    """The list grows, with its reasons."""
    withdraw(desk, OLD)
    withdraw(desk, NEW, "worse")
    trusted = desk.device()
    listed = believe_withdrawn(trusted.read("policy/withdrawn.json", WITHDRAWN_BYTES), trusted.targets)
    assert [(one.release.name, one.reason) for one in listed.releases] == [(OLD, "sees ghosts"), (NEW, "worse")]
    with pytest.raises(InputError, match="was withdrawn already"):
        withdraw(desk, NEW)


def test_what_was_withdrawn_is_marked_where_it_is_named(desk, capsys, tmp_path):
    """Whoever lists or exports sees it, with the reason, in rows that a narrow terminal leaves whole."""
    moved(desk, NEW)
    desk.publish(OLD)
    withdraw(desk, OLD)
    assert fleet(desk, "list") == 0
    rows = {line.split()[0]: line.rstrip() for line in capsys.readouterr().out.splitlines()}
    assert f"{OLD}: withdrawn 2026-11-01: sees ghosts" in rows[f"{OLD}:"]
    assert rows[OLD].endswith("withdrawn")
    assert not rows[NEW].endswith("withdrawn")
    assert fleet(desk, "export", "--group", "g1", "--out", str(tmp_path / "x.zip"), "--release", OLD) == 0
    assert f"{OLD}: was withdrawn" in capsys.readouterr().out


def test_one_critical_key_withdraws_nothing(desk):
    """The threshold of the role holds at the desk, too."""
    (desk.keyring.folder / "roles/operators-critical-2.pem").unlink()
    with pytest.raises(TrustError, match="signed by 1 of the 2 keys of operators-critical"):
        withdraw(desk, NEW)
    assert desk.device().find("policy/withdrawn.json") is None


def test_two_lists_at_one_time_lose_nothing(desk):
    """The slower one is told to make its list anew."""
    desk.publish(OLD)
    slow = signed(propose_withdrawal(desk.repository, OLD, "x", NOW), desk.keyring, "operators-critical")
    withdraw(desk, NEW)
    shorter = Pending(kind=WITHDRAWN_TYPE, payload=to_json(Withdrawn(counter=99, releases=())))
    for other in (slow, signed(shorter, desk.keyring, "operators-critical")):
        with pytest.raises(InputError, match="make it anew"):
            put_withdrawal(desk.repository, other, NOW)
    assert {ref.name for ref in current_withdrawn(desk.load())} == {NEW}


def test_what_a_group_is_to_run_is_not_withdrawn_by_mistake(desk, capsys):
    """The answer names the group; `--force` does it all the same."""
    moved(desk, NEW)
    words_typed = ["withdraw", NEW, "--reason", "sees ghosts"]
    assert fleet(desk, *words_typed) == 2
    assert "group g1 in face is to run it" in capsys.readouterr().err
    assert fleet(desk, *words_typed, "--force") == 0
    assert [ref.name for ref in current_withdrawn(desk.load())] == [NEW]


def test_a_withdrawn_release_is_rolled_out_nowhere(desk):
    """Neither as a goal, nor as the way back, nor by a wave."""
    moved(desk, OLD)
    moved(desk, NEW, share=0.5)
    withdraw(desk, OLD)
    with pytest.raises(InputError, match=f"{OLD} was withdrawn"):
        moved(desk, OLD)
    with pytest.raises(InputError, match=f"{OLD} was withdrawn"):
        steer(desk.repository, desk.keyring, "g1", WaveAction.REVERT, now=NOW)
    steer(desk.repository, desk.keyring, "g1", WaveAction.RUN, 1.0, now=NOW)
    trusted = desk.device()
    pair = moved(desk, NEW)
    assert believe_deployment(pair, trusted.targets, "g1", Taken(), NOW).rollout.slots["face"].start.name == NEW


def test_a_withdrawn_goal_is_in_the_way_of_other_slots(desk):
    """A rollout holds every slot: the desk says which one to move first."""
    desk.publish(OTHER)
    moved(desk, NEW)
    withdraw(desk, NEW)
    with pytest.raises(InputError, match=f"slot face: {NEW} was withdrawn"):
        deploy(desk.repository, desk.keyring, "g1", "fire", OTHER, now=NOW)
    moved(desk, OLD, roles=("operators", "operators-critical"))


def test_a_withdrawal_is_signed_at_other_desks(desks, capsys, tmp_path):
    """The online desk publishes what two holders have read and signed."""
    file = str(tmp_path / "withdrawal.json")
    (desks.keyring.folder / "roles/operators-critical-1.pem").rename(
        desks.ben.folder / "roles/operators-critical-1.pem"
    )
    assert fleet(desks, "withdraw", NEW, "--reason", "sees ghosts", "--pending", file) == 0
    assert fleet(desks, "withdraw", "--from", file) == 2
    assert "--role operators-critical" in capsys.readouterr().err
    assert fleet(desks, "sign", file, "--role", "operators-critical", keys=desks.ben.folder) == 0
    assert f"{NEW} (" in (told := capsys.readouterr().out)
    assert "sees ghosts" in told
    assert fleet(desks, "withdraw", "--from", file) == 0
    assert [ref.name for ref in current_withdrawn(desks.load())] == [NEW]


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["policy", "set"], "policy set FILE"),
        (["policy", "show", "x.yaml"], "policy set FILE"),
        (["policy", "set", "/nowhere.yaml"], "/nowhere.yaml"),
        (["withdraw", NEW], "--reason"),
        (["withdraw", "nope", "--reason", "x"], "date"),
        (["withdraw", NEW, "--reason", "x" * 201], "reason"),
        (["withdraw", "--from", "/nowhere"], "/nowhere"),
        (["rollout", "--release", NEW], "--group"),
        (["rollout", "--from", "/nowhere", "--pending", "x"], "choose one"),
        (["sign", "/nowhere"], "/nowhere"),
    ],
)
def test_a_users_mistake_is_one_sentence(still, capsys, typed, answer):
    """Exit 2, one line on standard error, no trace."""
    assert fleet(still, *typed) == 2
    said = capsys.readouterr().err.strip()
    assert answer in said
    assert "\n" not in said


def test_words_are_read_from_what_is_signed(still):
    """Whatever a file claims beside it, the reader sees the payload."""
    rollout = propose(still.repository, "g1", "face", NEW, 1.0, soak_s=1, now=NOW)
    assert any(NEW in line for line in words(rollout))
    with pytest.raises(InputError, match="neither a rollout nor a withdrawal"):
        list(words(type(rollout)(kind="targets", payload=rollout.payload)))
