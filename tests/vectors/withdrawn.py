"""Vectors of withdrawals: lists of releases that nobody runs any more, signed by two of three."""

from tests.vectors.primitives import Signer, envelope
from tests.vectors.sealed import NAME, OTHER, refused
from tests.vectors.signers import (
    COMMAND,
    CONTROLLER,
    CRITICAL,
    GRANTS,
    NOW,
    OPERATORS,
    ROLLOUT,
    SOON,
    STRANGER,
    WITHDRAWN,
    role,
    roles,
)

ONE = {"release": {"name": NAME, "digest": "a" * 64}, "reason": "sees ghosts", "at": NOW}
TWO = {"release": {"name": OTHER, "digest": "b" * 64}, "reason": "sees nothing", "at": SOON}
FIRST, SECOND, THIRD = CRITICAL
LISTER = Signer("deployments")


def said(*signers, kind=WITHDRAWN, **about):
    return envelope({"counter": 2, "releases": [ONE, TWO], **about}, kind, *signers)


def signed(**about):
    return said(FIRST, SECOND, **about)


def of(**about):
    """A list of one release."""
    return signed(releases=[{**ONE, **about}])


def lacking(name, tree):
    return {key: word for key, word in tree.items() if key != name}


def withdrawals():
    """Lists of withdrawn releases: `listed` are their names and digests."""
    good, both = signed(), [[NAME, "a" * 64], [OTHER, "b" * 64]]
    first, second = good["signatures"]
    cases = {
        "two of three": {"raw": good, "listed": both},
        "two others": {"raw": said(THIRD, FIRST), "listed": both},
        "all three": {"raw": said(*CRITICAL), "listed": both},
        "with a stranger's beside": {"raw": said(STRANGER, SECOND, THIRD), "listed": both},
        "of nothing": {"raw": signed(releases=[]), "listed": []},
        "in another zone": {"raw": of(at="2026-11-01T14:00:00+02:00"), "listed": both[:1]},
        "for a reason of 200 characters": {"raw": of(reason="ß" * 200), "listed": both[:1]},
        "one release twice": {"raw": signed(releases=[ONE, ONE]), "listed": [both[0], both[0]]},
        "as long as one may be": {"raw": good, "listed": both, "pad": 524288},
        "too long": refused("length", raw=good, pad=524289),
        "that is not signed": refused("form", raw={"counter": 2, "releases": [ONE]}),
        "that is no JSON": refused("form", text="["),
        "with a key more in its envelope": refused("form", raw={**good, "more": 1}),
        "of another type": refused("type", raw=signed(kind=COMMAND)),
        "signed as another type": refused("signatures", raw={**signed(kind=ROLLOUT), "payloadType": WITHDRAWN}),
        "with a key twice": refused("twice", raw={**good, "signatures": [first, first]}),
        "one of three": refused("signatures", raw=said(FIRST)),
        "nobody": refused("signatures", raw=said()),
        "one of three and an operator": refused("signatures", raw=said(FIRST, OPERATORS[0])),
        "the operators": refused("signatures", raw=said(*OPERATORS)),
        "the controller and the grants' key": refused("signatures", raw=said(CONTROLLER, GRANTS)),
        "whoever lists it": refused("signatures", raw=said(LISTER)),
        "with a signature under another's name": refused(
            "signatures", raw={**good, "signatures": [first, {**first, "keyid": second["keyid"]}]}
        ),
        "of another payload": refused("signatures", raw={**good, "payload": signed(counter=3)["payload"]}),
        "that takes one back": refused("signatures", raw={**good, "payload": signed(releases=[ONE])["payload"]}),
    }
    given = {"roles": {**roles(), "operators-critical": role(2, *CRITICAL), "deployments": role(1, LISTER)}}
    return {"given": given, "cases": cases | malformed()}


def malformed():
    """Signed by enough, and no list of withdrawals."""
    payloads = {
        "that is a list": signed_octets(b"[]"),
        "of no JSON": signed_octets(b"{"),
        "of nothing at all": signed_octets(b""),
        "without a counter": signed_octets(b'{"releases": []}'),
        "without releases": signed_octets(b'{"counter": 2}'),
        "with a key more": signed(more=1),
        "with a counter of zero": signed(counter=0),
        "with a counter that is a text": signed(counter="2"),
        "with a counter that is a fraction": signed(counter=1.5),
        "with a counter above 2^53": signed(counter=2**53 + 1),
        "of a release alone": signed(releases=[ONE["release"]]),
        "of a release that has a key more": of(release={**ONE["release"], "size": 1}),
        "of a release without a digest": of(release=lacking("digest", ONE["release"])),
        "of a name that is a path": of(release={"name": "../passwd", "digest": "a" * 64}),
        "of no name": of(release={"name": "", "digest": "a" * 64}),
        "without a reason": signed(releases=[lacking("reason", ONE)]),
        "for no reason": of(reason=""),
        "for a reason of 201 characters": of(reason="ß" * 201),
        "without a time": signed(releases=[lacking("at", ONE)]),
        "at a time without a zone": of(at="2026-11-01T12:00:00"),
        "with a withdrawal that has a key more": of(until=SOON),
    }
    return {how: refused("payload", raw=raw) for how, raw in payloads.items()}


def signed_octets(payload):
    return envelope(payload, WITHDRAWN, FIRST, SECOND)
