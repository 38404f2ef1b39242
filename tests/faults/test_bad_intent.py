"""Deployments and commands that nobody may give: refused with a reason, answered where they ask for an answer."""

import hashlib
import json
import uuid
from base64 import b64decode
from datetime import timedelta

import pytest

from agent.core.documents import to_json
from agent.core.intent import COMMAND_TYPE, ROLLOUT_TYPE, WAVE_TYPE, Command, Move, Rollout, Verb, Wave
from agent.core.release import Ref
from fleet.deploy import next_counter
from fleet.sealing import make_envelope, make_pair
from provisioning.keys import init_keys
from tests.faults.standing import facts_of
from tests.system.plant import GROUP, ONE, SLOT, now

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)


@pytest.fixture(scope="module")
def strange_keys(tmp_path_factory):
    """A keyring as good as ours, and not ours."""
    return init_keys(tmp_path_factory.mktemp("strange") / "keys")


def pair(standing, *, operators=None, controller=None, release=None, about=None, wave=None):
    """A pair that would move the device to another release, if it were believed."""
    keyring, counter = standing.plant.keyring, next_counter(0, now())
    said = {"group": GROUP, "counter": counter, "issued": now(), **(about or {})}
    payload = to_json(Rollout(slots={SLOT: Move(goal=release or standing.other)}, **said))
    says = {"rollout": hashlib.sha256(payload).hexdigest(), "share": 1.0, "issued": now(), "counter": counter}
    says |= {"group": said["group"], **(wave or {})}
    signers = keyring.signers("operators") if operators is None else operators
    steerers = keyring.signers("controller") if controller is None else controller
    return make_pair(
        make_envelope(payload, ROLLOUT_TYPE, signers), make_envelope(to_json(Wave(**says)), WAVE_TYPE, steerers)
    )


DEPLOYMENTS = {
    "unsigned": (lambda s, _: pair(s, operators=[], controller=[]), "signed by 0 of the 1 keys of operators"),
    "signed by unknown keys": (
        lambda s, strange: pair(s, operators=strange.signers("operators"), controller=strange.signers("controller")),
        "signed by 0 of the 1 keys of operators",
    ),
    "signed by a key of another role": (
        lambda s, _: pair(s, operators=s.plant.keyring.signers("releases")),
        "signed by 0 of the 1 keys of operators",
    ),
    "expired": (
        lambda s, _: pair(s, about={"issued": now() - 2 * DAY, "expires": now() - DAY}),
        "widens a rollout that expired",
    ),
    "from the future": (lambda s, _: pair(s, about={"issued": now() + 2 * DAY}), "check both clocks"),
    "replayed": (lambda s, _: s.older, "somebody replays it"),
    "with an older counter": (lambda s, _: pair(s, about={"counter": 7}), "not newer than"),
    "of another group": (lambda s, _: pair(s, about={"group": "others"}), "this device is of group plant"),
    "with another rollout's wave": (lambda s, _: pair(s, wave={"rollout": "0" * 64}), "must sign a wave for this rollout"),
    "with a share that was not allowed": (lambda s, _: pair(s, wave={"share": 0.5}), "share 0.5 is not one of"),
    "of bytes that are no JSON": (lambda *_: b"\x00\xffgarbage", "is not valid JSON"),
    "of another document": (lambda *_: b"[]", "Expected `object`"),
    "that is far too long": (lambda *_: b"x" * 200_000, "at most"),
    "of a name that breaks the rules": (
        lambda s, _: pair(s, release=Ref(name="passwd", digest="0" * 64)),
        "not in _YYYYMMDD",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DEPLOYMENTS)
def test_a_deployment_that_nobody_may_give_changes_nothing(standing, strange_keys, case):
    """It is refused with its reason; the intent that stands, stands."""
    make, words = DEPLOYMENTS[case]
    standing.older = standing.pair
    standing.deploy(ONE)
    standing.device.until(lambda: taken(standing) == rollout(standing)[1], "the newer one is taken")
    with standing.unharmed():
        standing.say(make(standing, strange_keys))
        standing.until_told(words)


def taken(standing):
    """The counter of the rollout that the device took last."""
    return facts_of(standing.device)["deployment", GROUP]["rollout"]


def rollout(standing):
    """The rollout that stands: its envelope and its counter."""
    half = json.loads(standing.pair)["rollout"]
    return json.dumps(half).encode(), json.loads(b64decode(half["payload"]))["counter"]


# --- commands ----------------------------------------------------------------------------------------------------


def request(standing, *, signers=None, name=None, **about):
    """A signed command for the device, which would move it if it were obeyed: (its id, the envelope)."""
    name = name or uuid.uuid4().hex
    said = {
        "id": name, "scope": "device:cam-1", "counter": next_counter(0, now()), "issued": now(),
        "expires": now() + 10 * MINUTE, "verb": Verb.PIN, "slot": SLOT, "release": standing.other.name, **about,
    }  # fmt: skip
    signers = standing.plant.keyring.signers("operators") if signers is None else signers
    return name, make_envelope(to_json(Command(**said)), COMMAND_TYPE, signers)


COMMANDS = {
    "unsigned": (lambda s, _: request(s, signers=[]), "rejected", "signed by 0 of the 1 keys of operators"),
    "signed by an unknown key": (
        lambda s, strange: request(s, signers=strange.signers("operators")), "rejected", "signed by 0 of the 1",
    ),
    "from the future": (lambda s, _: request(s, issued=now() + DAY, expires=now() + 2 * DAY), "rejected", "check both clocks"),
    "under another id": (lambda s, _: (uuid.uuid4().hex, request(s)[1]), "rejected", "send it anew"),
    "that is a deployment": (lambda s, _: (uuid.uuid4().hex, s.pair), "rejected", "operators envelope"),
    "that is a rollout": (lambda s, _: (uuid.uuid4().hex, rollout(s)[0]), "rejected", "was expected here"),
    "of bytes that are no JSON": (lambda *_: (uuid.uuid4().hex, b"\x00\xffgarbage"), "rejected", "is not valid JSON"),
    "that is far too long": (lambda *_: (uuid.uuid4().hex, b"x" * 20_000), "rejected", "at most"),
    "that pins what is not listed": (lambda s, _: request(s, release=ONE.replace("0628", "0101")), "failed", "is not listed"),
    "for a slot that is not there": (lambda s, _: request(s, slot="pose"), "failed", "no slot 'pose'"),
}  # fmt: skip


def ask(standing, name, raw, *, retain=False):
    standing.plant.say(f"edge/v1/cam-1/cmd/{name}/req", raw, retain=retain)
    return standing.answer(name)


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command_that_nobody_may_give_is_answered_and_not_obeyed(standing, strange_keys, case):
    """Whoever sent it reads why; `status` and `why` say so; the device stays as it was."""
    make, status, words = COMMANDS[case]
    report = standing.plant.command(standing.device, "report")
    assert standing.answer(report)["status"] == "done"
    name, raw = make(standing, strange_keys)
    with standing.unharmed(but={"counter"} if status == "failed" else ()):
        said = ask(standing, name, raw)
        assert said["status"] == status
        assert words in said["reason"]
        if status != "failed":
            standing.until_told(words)


def test_a_command_without_an_id_is_told(standing):
    """There is no topic to answer it on: `status` says so."""
    with standing.unharmed():
        standing.plant.say("edge/v1/cam-1/cmd/x/req", request(standing)[1])
        standing.until_told("names no command id")
