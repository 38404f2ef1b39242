"""Whoever owns the broker, has a device of the fleet, or a key that is not enough: what they say is answered, not obeyed."""

import json
import shutil
import uuid
from copy import copy
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.core.documents import from_json, to_json
from agent.core.intent import GRANT_TYPE, Verb
from agent.core.release import Ref
from agent.trust.envelope import Envelope
from agent.trust.grant import Grant
from fleet.sealing import make_envelope
from provisioning.keys import init_keys
from tests.attacks.hostile import serving
from tests.fakes.waiting import until
from tests.faults.test_bad_intent import ask, pair, request
from tests.system.plant import GROUP, ONE, now

MINUTE = timedelta(minutes=1)
GRANT = f"grants/{GROUP}/cam-1.json"


# --- commands ------------------------------------------------------------------------------------------------------


def reordered(besieged):
    """Of two commands that were signed one after the other, the first, when the second was obeyed before."""
    late = request(besieged)
    assert ask(besieged, *request(besieged, verb=Verb.REPORT, slot=None, release=None))["status"] == "done"
    return late


def replayed(besieged):
    """One that was obeyed, under an id of its own."""
    name, raw = request(besieged, verb=Verb.REPORT, slot=None, release=None)
    assert ask(besieged, name, raw)["status"] == "done"
    return uuid.uuid4().hex, raw


COMMANDS = {
    "replayed": (replayed, "counter", "rejected", "sign it anew"),
    "reordered": (reordered, "counter", "rejected", "sign it anew"),
    "expired": (
        lambda one: request(one, issued=now() - 20 * MINUTE, expires=now() - 10 * MINUTE),
        "expiry", "expired", "send it again",
    ),
    "of another device": (
        lambda one: request(one, scope="device:cam-2"),
        "scope", "rejected", "the command is for device:cam-2; this is device:cam-1",
    ),
    "of another group": (
        lambda one: request(one, scope="group:others"),
        "scope", "rejected", "the command is for group:others",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COMMANDS)
def test_commands(besieged, stopped, case):
    """Signed by an operator, and given at another time or place than it was meant for."""
    make, stage, status, words = COMMANDS[case]
    name, raw = make(besieged)
    with besieged.unharmed():
        said = ask(besieged, name, raw)
        assert (said["status"], words in said["reason"]) == (status, True)
        besieged.until_told(words)
    stopped(f"command {case}", stage, said["reason"])


def test_a_command_that_is_redelivered(besieged, stopped):
    """The same bytes under their own id have no second effect: the answer comes again, and nothing else."""
    name, raw = request(besieged, verb=Verb.REPORT, slot=None, release=None)
    topic = f"edge/v1/cam-1/cmd/{name}/res"
    first = ask(besieged, name, raw)
    with besieged.unharmed():
        answered = len(besieged.listener.said(topic))
        besieged.plant.say(f"edge/v1/cam-1/cmd/{name}/req", raw)
        until(lambda: len(besieged.listener.said(topic)) > answered, 20, "the answer comes again")
        assert besieged.listener.said(topic)[answered:] == [first]
    stopped("command redelivered", "id", f"answered again: {first['status']}")


def test_a_command_that_is_retained(besieged, stopped):
    """A broker would give it to the device at each new connection."""
    name, raw = request(besieged)
    with besieged.unharmed():
        said = ask(besieged, name, raw, retain=True)
        assert said["status"] == "rejected"
        besieged.until_told("send it without retain")
        besieged.plant.say(f"edge/v1/cam-1/cmd/{name}/req", b"", retain=True)
    stopped("command retained", "retain flag", said["reason"])


@pytest.mark.parametrize("name", ["../../../etc/passwd", "x/../../y_ssd_plates_20250101"])
def test_names_that_leave_their_folder_in_a_command(besieged, stopped, name):
    """An operator's pin to a path."""
    with besieged.unharmed(but={"counter"}):
        said = ask(besieged, *request(besieged, release=name))
        assert said["status"] == "failed"
        assert "name " in said["reason"]
    stopped(f"path traversal: pin to {name}", "name", said["reason"])


def test_names_that_leave_their_folder_in_a_deployment(besieged, stopped):
    """Operators' and controller's signatures on a path."""
    raw = pair(besieged, release=Ref(name="../../etc/passwd", digest="0" * 64))
    with besieged.unharmed():
        besieged.say(raw)
        said = besieged.told("matching regex '^[a-z0-9]")
    stopped("path traversal: deployment", "form", said)


# --- keys and grants -----------------------------------------------------------------------------------------------


def test_a_rollout_without_its_controller(besieged, stopped, tmp_path):
    """Stolen operators' keys sign rollouts; without the controller's wave no device moves."""
    thief = init_keys(tmp_path / "thief")
    with besieged.unharmed():
        besieged.say(pair(besieged, controller=thief.signers("controller")))
        said = besieged.told("signed by 0 of the 1 keys of controller")
    stopped("operators' key stolen: a rollout", "signature threshold", said)


@pytest.fixture(scope="module")
def neighbour(besieged):
    """Another device of the group, which was enrolled and never started."""
    return besieged.plant.device("cam-2")


def test_a_grant_that_is_swapped(besieged, stopped, neighbour):
    """The grant of a device, given to another."""
    other = besieged.bucket.read(f"grants/{GROUP}/{neighbour.name}.json")
    with besieged.unharmed(), besieged.bucket.playing(GRANT, serving(other)):
        said = besieged.told("it is for cam-2 of plant; this is cam-1 of plant")
    stopped("grant swapped between devices", "grant's device", said)


def test_keys_of_a_grant_that_are_lifted_into_another(besieged, stopped, neighbour):
    """With the key of `grants` stolen, the name on a grant can be changed; its keys are sealed to another device."""
    other = besieged.bucket.read(f"grants/{GROUP}/{neighbour.name}.json")
    grant = from_json(Grant, from_json(Envelope, other, "envelope").payload, "grant")
    lifted = to_json(replace(grant, device="cam-1", counter=grant.counter + 10**9))
    forged = make_envelope(lifted, GRANT_TYPE, besieged.plant.keyring.signers("grants"))
    with besieged.unharmed(), besieged.bucket.playing(GRANT, serving(forged)):
        said = besieged.told("does not open with this key")
    stopped("grants' key stolen: keys lifted into another grant", "HPKE", said)


# --- places --------------------------------------------------------------------------------------------------------


def test_a_stick_with_links(new_plant, stopped):
    """A store in a folder may hold links to anywhere: a link out of it is no object."""
    plant = new_plant()
    release = plant.publish(ONE)
    secret = plant.folder / "secret"
    place = Path(plant.url.removeprefix("file://")) / "targets" / "releases" / f"{release.digest}.{ONE}.sealed"
    place.rename(secret)
    place.symlink_to(secret)
    plant.rollout(ONE)
    device = plant.device(store={"poll_s": 1.0}).start()
    device.until(lambda: "it is a link out of" in device.slot().get("reason", ""), "the link is not followed")
    stopped("symlink in a store", "store", device.slot()["reason"])
    assert device.slot()["serving"] == ""


def test_a_cloned_device(besieged, stopped):
    """A copy of a device at its broker: both say so, each serves on, and they do not fight for ever."""
    device = besieged.device
    clone = copy_of(device)
    with besieged.unharmed():
        clone.start()
        try:
            words = "another agent is at the broker as cam-1"
            said = besieged.told(words, 60)
            clone.until(lambda: words in json.dumps(clone.state()), "the copy says it too", 60)
            assert besieged.listener.until("edge/v1/cam-1/evt/refused", lambda one: words in one["reason"], 60)
        finally:
            clone.close()
        device.until(lambda: device.state()["broker"]["connected"], "the link is back", 120)
    stopped("device cloned", "state at the broker", said)


def copy_of(device):
    """The same identity in other folders."""
    folder = device.folder.with_name("clone")
    shutil.copytree(device.folder, folder, symlinks=True, ignore=lambda *_: ["run", "runner", "agent.log"])
    clone = copy(device)
    clone.folder, clone.config, clone.log = folder, folder / "agent.yaml", folder / "agent.log"
    clone.agent, clone.read = None, (None, None)
    clone.write(json.loads(json.dumps(device.tree).replace(str(device.folder), str(folder))))
    return clone
