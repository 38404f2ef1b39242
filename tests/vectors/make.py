"""The test vectors of models/FORMAT.md: `python -m tests.vectors.make` writes them, the same octets each time.

Each document has `given`, what every case of it starts from, and `cases`. A case that is `refused` names the stage that
must refuse it; the others say what comes out. `of` and `cut` stand for octets: slices of another case's, one after
another; `flip` is the place of a turned bit; `pad` is a length that is reached with spaces.
"""

import hashlib
import json
from pathlib import Path

from tests.vectors.delta import deltas
from tests.vectors.policy import policies
from tests.vectors.primitives import base64, bind, compact, envelope, hpke, private, scalar
from tests.vectors.sealed import KEY, NAME, OTHER, PATH, refused, releases
from tests.vectors.signers import (
    COMMAND,
    CONTROLLER,
    GRANT,
    GRANTS,
    LATER,
    LONG_AGO,
    NOW,
    OPERATORS,
    ROLLOUT,
    SOON,
    STRANGER,
    WAVE,
    roles,
)
from tests.vectors.withdrawn import withdrawals

FOLDER = Path(__file__).parent
# --- sections 4 and 6 ----------------------------------------------------------------------------------------------

EPOCH, DEVICE, SENDER = private("epoch 1"), private("device"), private("ephemeral")
GROUP, NUMBER = "line-1", 12


def wrapped(*words, to=EPOCH, content=KEY):
    return hpke(content, to, bind("edge-model-agent/wrap/v1", *words), SENDER)


def wraps():
    """Wrapped content keys."""
    good = wrapped(PATH, GROUP, NUMBER)
    wrong = {
        "of another path": wrapped(PATH + "x", GROUP, NUMBER),
        "of another group": wrapped(PATH, "line-2", NUMBER),
        "of another epoch": wrapped(PATH, GROUP, 1),
        "of words that are bound otherwise": wrapped(PATH + GROUP, "", NUMBER),
        "for another key": wrapped(PATH, GROUP, NUMBER, to=DEVICE),
        "of a grant": hpke(KEY, EPOCH, bind("edge-model-agent/grant/v1", PATH, GROUP, NUMBER), SENDER),
        "with a bit turned": good[:-1] + bytes([good[-1] ^ 1]),
        "cut": good[:-1],
        "with a point that is not on the curve": good[:64] + bytes([good[64] ^ 1]) + good[65:],
        "with no point": b"\x04" + bytes(64) + good[65:],
        "of nothing": b"",
    }
    cases = {"a wrapped key": {"wrapped": base64(good), "key": KEY.hex()}}
    cases |= {f"a key {how}": refused("hpke", wrapped=base64(octets)) for how, octets in wrong.items()}
    given = {"private": scalar(EPOCH).hex(), "path": PATH, "group": GROUP, "epoch": NUMBER}
    return {"given": given, "cases": cases}


def granted(epoch, key=EPOCH, to=DEVICE, device="cam-7", group=GROUP, content=None):
    info = bind("edge-model-agent/grant/v1", device, group, epoch)
    return {"epoch": epoch, "key": base64(hpke(content or scalar(key), to, info, SENDER))}


def grants():
    """Grants of group keys to a device."""
    second = private("epoch 2")
    keys = [granted(1), granted(2, second)]

    def signed(*signers, kind=GRANT, **about):
        return envelope({"device": "cam-7", "group": GROUP, "keys": keys, **about}, kind, *signers)

    good = signed(GRANTS)
    cases = {
        "two epochs": {"raw": good, "keys": {"1": scalar(EPOCH).hex(), "2": scalar(second).hex()}},
        "with a counter": {
            "raw": signed(GRANTS, counter=1793534400000, keys=keys[:1]),
            "keys": {"1": scalar(EPOCH).hex()},
        },
        "no epoch": {"raw": signed(GRANTS, keys=[]), "keys": {}},
        "with a counter that is no number": refused("payload", raw=signed(GRANTS, counter="1")),
        "too long": refused("length", raw=good, pad=65537),
        "of another type": refused("type", raw=signed(GRANTS, kind=COMMAND)),
        "unsigned": refused("signatures", raw=signed()),
        "signed by a stranger": refused("signatures", raw=signed(STRANGER)),
        "signed by an operator": refused("signatures", raw=signed(OPERATORS[0])),
        "with a key more": refused("payload", raw=signed(GRANTS, more=1)),
        "with an epoch of zero": refused("payload", raw=signed(GRANTS, keys=[granted(0)])),
        "for another device": refused("device", raw=signed(GRANTS, device="cam-8")),
        "for another group": refused("device", raw=signed(GRANTS, group="line-2")),
        "of a key for another device": refused("hpke", raw=signed(GRANTS, keys=[granted(1, to=second)])),
        "of a key that was another device's": refused("hpke", raw=signed(GRANTS, keys=[granted(1, device="cam-8")])),
        "of a key of another group": refused("hpke", raw=signed(GRANTS, keys=[granted(1, group="line-2")])),
        "of a key of another epoch": refused("hpke", raw=signed(GRANTS, keys=[{**granted(1), "epoch": 2}])),
        "of a scalar that is none": refused("scalar", raw=signed(GRANTS, keys=[granted(1, content=b"\xff" * 32)])),
        "of a scalar of zero": refused("scalar", raw=signed(GRANTS, keys=[granted(1, content=bytes(32))])),
    }
    return {
        "given": {"roles": roles(), "private": scalar(DEVICE).hex(), "device": "cam-7", "group": GROUP},
        "cases": cases,
    }


# --- section 5 -----------------------------------------------------------------------------------------------------


def envelopes():
    """DSSE envelopes of a role of which two keys must sign."""
    payload, one, two = b'{"any": "payload"}', *OPERATORS
    good = envelope(payload, COMMAND, one, two)
    first, second = good["signatures"]
    other = envelope(b'{"any": "payloaD"}', COMMAND, one, two)

    def text(tree):
        return json.dumps(tree)

    cases = {
        "two of two": {"text": text(good), "payload": payload.hex()},
        "with a stranger's beside": {
            "text": text(envelope(payload, COMMAND, STRANGER, two, one)),
            "payload": payload.hex(),
        },
        "with bits behind the last octet": {
            "text": text(envelope(b"a", COMMAND, one, two)).replace("YQ==", "YR=="),
            "payload": "61",
        },
        "of nothing": {"text": text(envelope(b"", COMMAND, one, two)), "payload": ""},
        "of octets that are no text": {"text": text(envelope(b"\xff\0\xfe", COMMAND, one, two)), "payload": "ff00fe"},
        "too long": refused("length", text=text(good), pad=16385),
        "that is no JSON": refused("form", text="{"),
        "that is a list": refused("form", text="[]"),
        "with a key more": refused("form", text=text({**good, "more": 1})),
        "with a key in another case": refused("form", text=text(good).replace("payloadType", "payloadtype")),
        "without signatures": refused("form", text=text({name: good[name] for name in ("payload", "payloadType")})),
        "with a signature that has a key more": refused(
            "form", text=text({**good, "signatures": [{**first, "cert": ""}, second]})
        ),
        "in the URL's base64": refused(
            "form", text=text({**good, "payload": base64(b"\xff\xef\xbe").replace("/", "_").replace("+", "-")})
        ),
        "in base64 without its padding": refused(
            "form", text=text({**good, "payload": good["payload"].rstrip("=") + "A"})
        ),
        "in base64 with spaces": refused("form", text=text({**good, "payload": " " + good["payload"]})),
        "of another type": refused("type", text=text({**good, "payloadType": ROLLOUT})),
        "of another type, signed as such": refused("type", text=text(envelope(payload, ROLLOUT, one, two))),
        "with a key twice": refused("twice", text=text({**good, "signatures": [first, first]})),
        "one of two": refused("signatures", text=text({**good, "signatures": [first]})),
        "one of two and a stranger": refused("signatures", text=text(envelope(payload, COMMAND, one, STRANGER))),
        "with a signature under the other's name": refused(
            "signatures", text=text({**good, "signatures": [first, {**first, "keyid": second["keyid"]}]})
        ),
        "of another payload": refused("signatures", text=text({**good, "payload": other["payload"]})),
        "signed as another type": refused(
            "signatures", text=text({**envelope(payload, ROLLOUT, one, two), "payloadType": COMMAND})
        ),
    }
    return {
        "given": {"roles": roles(threshold=2), "role": "operators", "type": COMMAND, "limit": 16384},
        "cases": cases,
    }


# --- section 7 -----------------------------------------------------------------------------------------------------

GOAL, START = {"name": NAME, "digest": "a" * 64}, {"name": OTHER, "digest": "b" * 64}


def rollout(counter=10, **about):
    said = {
        "group": GROUP,
        "counter": counter,
        "issued": NOW,
        "slots": {"face_detection": {"goal": GOAL, "start": START}},
    }
    return compact({**said, "shares": [0.1, 1.0], "expires": None, "salt": "s", "soak_s": 600.0, **about})


def pair(of, counter=1, signers=(OPERATORS[0], CONTROLLER), kinds=(ROLLOUT, WAVE), **about):
    said = {"group": GROUP, "counter": counter, "issued": NOW, "rollout": hashlib.sha256(of).hexdigest(), "share": 0.1}
    return {
        "rollout": envelope(of, kinds[0], *filter(None, signers[:1])),
        "wave": envelope({**said, "action": "run", **about}, kinds[1], *filter(None, signers[1:])),
    }


def deployments():
    """Pairs of a rollout and a wave; `taken` are the cases that were believed before, in order."""
    plain, ending = rollout(), rollout(expires="2026-11-01T13:00:00Z")
    ended = {"issued": "2026-11-01T14:00:00Z"}
    bad = {"goal": {"name": "passwd", "digest": "0" * 64}}
    cases = {
        "the first": {"raw": pair(plain), "counters": [10, 1], "reach": 0.1},
        "a wider wave": {"raw": pair(plain, 2, share=1.0), "taken": ["the first"], "counters": [10, 2], "reach": 1.0},
        "the same again": {"raw": pair(plain), "taken": ["the first"], "counters": [10, 1], "reach": 0.1, "same": True},
        "a newer rollout": {"raw": pair(rollout(11)), "taken": ["a wider wave"], "counters": [11, 1], "reach": 0.1},
        "a revert": {"raw": pair(plain, 3, share=1.0, action="revert"), "taken": ["a wider wave"], "counters": [10, 3], "reach": 0.0},
        "keys that may be absent": {"raw": pair(compact({"group": GROUP, "counter": 1, "issued": NOW, "slots": {"a": {"goal": GOAL}}}), share=1.0), "counters": [1, 1], "reach": 1.0},
        "one that ends": {"raw": pair(ending), "counters": [10, 1], "reach": 0.1},
        "a halt after its end": {"raw": pair(ending, 2, action="halt", **ended), "taken": ["one that ends"], "now": LATER, "counters": [10, 2], "reach": 0.1},
        "too long": refused("length", raw=pair(plain), pad=196609),
        "one half": refused("form", raw={"rollout": pair(plain)["rollout"]}),
        "halves that changed places": refused("type", raw=dict(zip(("wave", "rollout"), pair(plain).values(), strict=True))),
        "a rollout that nobody signed": refused("signatures", raw=pair(plain, signers=(None, CONTROLLER))),
        "a rollout of the controller": refused("signatures", raw=pair(plain, signers=(CONTROLLER, CONTROLLER))),
        "a wave of an operator": refused("signatures", raw=pair(plain, signers=(OPERATORS[0], OPERATORS[1]))),
        "a key more": refused("payload", raw=pair(rollout(more=1))),
        "a share above one": refused("payload", raw=pair(rollout(shares=[1.5]))),
        "a counter of zero": refused("payload", raw=pair(rollout(0))),
        "a time without a zone": refused("payload", raw=pair(rollout(issued="2026-11-01T12:00:00"))),
        "another action": refused("payload", raw=pair(plain, action="widen")),
        "a rollout of another group": refused("group", raw=pair(rollout(group="line-2"))),
        "a wave of another group": refused("group", raw=pair(plain, group="line-2")),
        "a wave of another rollout": refused("match", raw={**pair(plain), "wave": pair(rollout(11))["wave"]}),
        "a share that is not the rollout's": refused("share", raw=pair(plain, share=0.5)),
        "a name that is none": refused("name", raw=pair(rollout(slots={"a": bad}))),
        "a rollout from the future": refused("issued", raw=pair(rollout(issued=LATER))),
        "a wave from the future": refused("issued", raw=pair(plain, issued=LATER)),
        "an older wave": refused("counter", raw=pair(plain), taken=["a wider wave"]),
        "an older rollout": refused("counter", raw=pair(plain, 9, share=1.0), taken=["a newer rollout"]),
        "another wave of the same counter": refused("counter", raw=pair(plain, share=1.0), taken=["the first"]),
        "another rollout of the same counter": refused("rollout counter", raw=pair(rollout(salt="t"), 2), taken=["the first"]),
        "a wider wave after the end": refused("expiry", raw=pair(ending, 2, share=1.0, **ended), taken=["one that ends"], now=LATER),
        "a first wave after the end": refused("expiry", raw=pair(ending, **ended), now=LATER),
    }  # fmt: skip
    return {"given": {"roles": roles(), "group": GROUP, "now": NOW}, "cases": cases, "points": points()}


def points():
    """Where devices stand in a group, between 0 and 1."""
    found = {}
    for salt in ("", "line-1-1793534400000", "größe"):
        for device in ("cam-7", "cam-8"):
            digest = hashlib.sha256(salt.encode() + b"\0" + device.encode()).digest()
            found[f"{salt}/{device}"] = int.from_bytes(digest[:8], "big") / 2**64
    return found


# --- section 8 -----------------------------------------------------------------------------------------------------


def commands():
    """Commands for a device that took 10 as its counter and 5 as its group's."""

    def said(*signers, kind=COMMAND, **about):
        whole = {
            "id": "0f3a5c7e9b1d4f6a",
            "scope": "device:cam-7",
            "counter": 11,
            "issued": NOW,
            "expires": SOON,
            "verb": "sync",
        }
        return envelope({**whole, **about}, kind, *signers)

    one = OPERATORS[0]
    cases = {
        "for the device": {"raw": said(one), "verb": "sync"},
        "for its group": {"raw": said(one, scope="group:line-1", counter=6), "verb": "sync"},
        "with a slot and a release": {"raw": said(one, verb="pin", slot="face_detection", release=NAME), "verb": "pin"},
        "by a clock that is a little ahead": {"raw": said(one, issued="2026-11-01T12:05:00Z"), "verb": "sync"},
        "too long": refused("length", raw=said(one), pad=16385),
        "of another type": refused("type", raw=said(one, kind=WAVE)),
        "unsigned": refused("signatures", raw=said()),
        "of the controller": refused("signatures", raw=said(CONTROLLER)),
        "with a key more": refused("payload", raw=said(one, bytes="")),
        "with an id that is too short": refused("payload", raw=said(one, id="0f3a5c7")),
        "with an id that is a path": refused("payload", raw=said(one, id="../../0f3a5c7e")),
        "of another verb": refused("payload", raw=said(one, verb="run")),
        "of a scope without a kind": refused("payload", raw=said(one, scope="cam-7")),
        "for another device": refused("scope", raw=said(one, scope="device:cam-8")),
        "for another group": refused("scope", raw=said(one, scope="group:line-2", counter=6)),
        "that was taken": refused("counter", raw=said(one, counter=10)),
        "that is older": refused("counter", raw=said(one, counter=9)),
        "that is older in its group": refused("counter", raw=said(one, scope="group:line-1", counter=5)),
        "from the future": refused("issued", raw=said(one, issued="2026-11-01T12:05:01Z")),
        "that is over": refused("expiry", raw=said(one, issued=LONG_AGO, expires="2026-11-01T11:54:59Z")),
    }
    given = {
        "roles": roles(),
        "device": "cam-7",
        "group": GROUP,
        "now": NOW,
        "taken": {"device:cam-7": 10, "group:line-1": 5},
    }
    return {"given": given, "cases": cases}


DOCUMENTS = {
    "sealed_release": releases,
    "wrapped_key": wraps,
    "grant": grants,
    "envelope": envelopes,
    "deployment": deployments,
    "command": commands,
    "policy": policies,
    "withdrawn": withdrawals,
    "delta": deltas,
}


def text(name):
    """A document as it lies here."""
    return json.dumps(DOCUMENTS[name](), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name in DOCUMENTS:
        (FOLDER / f"{name}.json").write_text(text(name))
