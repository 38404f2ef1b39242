"""Vectors of the policy: who may do what, worked out after section 10 alone."""

import json
from datetime import datetime

from tests.vectors.primitives import Signer
from tests.vectors.sealed import refused
from tests.vectors.signers import LATER, LONG_AGO, NOW, OPERATORS, SOON, STRANGER

ANNA, BEN, CARL = *OPERATORS, Signer("operator 3")
MAY_ALL = {"key": ANNA.keyid, "name": "anna", "verbs": ["*"], "groups": ["*"], "expires": None}
MAY_SOME = {
    "key": BEN.keyid,
    "name": "ben",
    "verbs": ["rollout", "sync"],
    "groups": ["line-*"],
    "expires": "2026-11-02T00:00:00Z",
}
TEAM = [MAY_ALL, MAY_SOME]
PATTERNS = [  # what matches a pattern, and what does not
    ("*", ["line-1", ".line", "a"], []),
    ("line-*", ["line-1", "line-", "line-1.b"], ["line", "a-line-1", "LINE-1"]),
    ("*-1", ["line-1", "-1"], ["line-12", "line-1x"]),
    ("l*e-*", ["line-1", "le-"], ["ine-1", "line"]),
    ("line-?", ["line-1", "line-x"], ["line-", "line-12"]),
    ("line-[123]", ["line-1", "line-3"], ["line-4", "line-", "line-11"]),
    ("line-[1-3]", ["line-1", "line-2", "line-3"], ["line-0", "line-4", "line--"]),
    ("line-[!1-3]", ["line-4", "line-x"], ["line-1", "line-", "line-44"]),
    ("line-[1-3x]?", ["line-1a", "line-xx"], ["line-1", "line-4a"]),
    ("line-1", ["line-1"], ["line-10", "line-", "Line-1"]),
    ("line.1", ["line.1"], ["line-1"]),
    ("sync", ["sync"], ["Sync", "syn", "async"]),
]


def like(pattern, word):
    """Whether a pattern is of the whole word."""
    if not pattern or not word:
        return not word and not pattern.strip("*")
    if pattern[0] == "*":
        return like(pattern[1:], word) or like(pattern, word[1:])
    if pattern[0] == "[":
        inside, _, rest = pattern[1:].partition("]")
        return in_set(inside, word[0]) and like(rest, word[1:])
    return pattern[0] in {"?", word[0]} and like(pattern[1:], word[1:])


def in_set(inside, octet):
    """Whether an octet is one of a set."""
    left, excluded, found = inside.removeprefix("!"), inside.startswith("!"), False
    while left:
        first, last = left[0], left[2] if left[1:2] == "-" else left[0]
        found |= first <= octet <= last
        left = left[3 if left[1:2] == "-" else 1 :]
    return found != excluded


def counted(policy, signers, threshold, act, group, now):
    """How many keys of those who signed may do it, and how many it takes."""

    def meant(one):
        verbs, groups = one.get("verbs", ["*"]), one.get("groups", ["*"])
        return any(like(verb, act) for verb in verbs) and any(like(name, group) for name in groups)

    def may(key):
        mine = [one for one in policy["operators"] if one["key"] == key and meant(one)]
        return any(not one.get("expires") or moment(now) <= moment(one["expires"]) for one in mine)

    counts = [one["count"] for one in policy.get("signatures", []) if meant(one)]
    return {"may": sum(may(key) for key in set(signers)), "needed": max([threshold, *counts])}


def moment(text):
    return datetime.fromisoformat(text)


def policy(*operators, **about):
    return {"operators": list(operators), **about}


def act(raw, *signers, threshold=1, act="sync", group="line-1", now=NOW):
    """An act that these keys signed, and what the policy says of it."""
    asked = {"signers": [key.keyid for key in signers], "threshold": threshold, "act": act, "group": group, "now": now}
    if raw is None:
        return {**asked, "may": len(signers), "needed": threshold}
    return {"raw": raw, **asked, **counted(raw, *asked.values())}


def policies():
    """Acts under a policy: how many of the keys may, and how many are needed."""
    one, two = policy(*TEAM), policy(*TEAM, signatures=[{"count": 2, "verbs": ["rollout"], "groups": ["line-[12]"]}])
    ends = policy({**MAY_ALL, "expires": "2026-11-01T13:10:00+01:00"})
    bare = {name: MAY_ALL[name] for name in ("key", "name", "verbs", "groups")}
    twice = policy({**MAY_SOME, "verbs": ["pin"], "groups": ["hall"]}, MAY_SOME)
    many = policy(*TEAM, {**MAY_ALL, "key": CARL.keyid, "name": "carl"}, signatures=[{"count": 3}, {"count": 1}])
    cases = {
        "whoever may do everything": act(one, ANNA, act="pin", group="hall"),
        "whoever may do this": act(one, BEN),
        "a rollout": act(one, BEN, act="rollout"),
        "a stranger's beside": act(one, BEN, STRANGER),
        "one who may not beside": act(one, BEN, ANNA, act="pin"),
        "two of two": act(one, ANNA, BEN, threshold=2),
        "two where two are needed": act(two, ANNA, BEN, act="rollout"),
        "one for another act": act(two, ANNA),
        "one on another group": act(two, ANNA, act="rollout", group="line-3"),
        "three where three are needed": act(many, ANNA, BEN, CARL),
        "an operator without an end": act(policy(bare), ANNA, now=LATER),
        "the last moment": act(ends, ANNA, now=SOON),
        "a key of two entries": act(twice, BEN),
        "a key of two entries, by the other": act(twice, BEN, act="pin", group="hall"),
        "no policy": act(None, STRANGER, act="rollout"),
        "as long as one may be": {**act(one, BEN), "pad": 262144},
        "a key that is not named": refused("policy key", **act(one, STRANGER)),
        "a policy of nobody": refused("policy key", **act(policy(), ANNA)),
        "another act": refused("policy verb", **act(one, BEN, act="pin")),
        "another act, but for its case": refused("policy verb", **act(one, BEN, act="Sync")),
        "another group": refused("policy group", **act(one, BEN, group="hall")),
        "a group that the pattern ends in": refused("policy group", **act(one, BEN, group="a-line-1")),
        "an end that is over": refused("policy expiry", **act(one, BEN, now=LATER)),
        "an end that is over by a second": refused("policy expiry", **act(ends, ANNA, now="2026-11-01T12:10:01Z")),
        "an end that was over when it was written": refused(
            "policy expiry", **act(policy({**MAY_ALL, "expires": LONG_AGO}), ANNA)
        ),
        "two entries, each with a half": refused("policy group", **act(twice, BEN, act="pin")),
        "one where two are needed": refused("policy count", **act(two, ANNA, act="rollout")),
        "one where two are needed for all": refused(
            "policy count", **act(policy(bare, MAY_SOME, signatures=[{"count": 2}]), BEN)
        ),
        "one of two": refused("policy count", **act(one, ANNA, threshold=2)),
        "a threshold that the policy lowers": refused(
            "policy count", **act(policy(*TEAM, signatures=[{"count": 1}]), ANNA, threshold=2)
        ),
        "two where the greatest count is three": refused("policy count", **act(many, ANNA, CARL)),
        "nobody": refused("policy count", **act(one)),
        "two of two, of whom one is not named": refused("policy key", **act(one, ANNA, STRANGER, threshold=2)),
        "two of two, of whom one may not": refused("policy verb", **act(one, ANNA, BEN, threshold=2, act="pin")),
        "two where two are needed, of whom one's end is over": refused(
            "policy expiry", **act(two, ANNA, BEN, act="rollout", now=LATER)
        ),
    }
    patterns = [[pattern, word, like(pattern, word)] for pattern, yes, no in PATTERNS for word in yes + no]
    assert patterns == [[pattern, word, word in yes] for pattern, yes, no in PATTERNS for word in yes + no]
    return {"given": {}, "cases": {**cases, **unreadable()}, "patterns": patterns}


def unreadable():
    """What is no policy."""

    def without(name):
        return {key: word for key, word in MAY_ALL.items() if key != name}

    trees = {
        "a list": [],
        "nothing": None,
        "without operators": {},
        "with a key more": policy(MAY_ALL, more=1),
        "with operators as an object": {"operators": MAY_ALL},
        "with signatures as a number": policy(MAY_ALL, signatures=2),
        "with a count of zero": policy(MAY_ALL, signatures=[{"count": 0}]),
        "with a count that is a fraction": policy(MAY_ALL, signatures=[{"count": 1.5}]),
        "with a count that is a text": policy(MAY_ALL, signatures=[{"count": "2"}]),
        "without a count": policy(MAY_ALL, signatures=[{"verbs": ["*"]}]),
        "with a key more in its signatures": policy(MAY_ALL, signatures=[{"count": 2, "more": 1}]),
        "of an operator with a key more": policy({**MAY_ALL, "role": "chief"}),
        "of an operator without a key": policy(without("key")),
        "of an operator without a name": policy(without("name")),
        "of an operator without acts": policy(without("verbs")),
        "of an operator without groups": policy(without("groups")),
        "with acts as a text": policy({**MAY_ALL, "verbs": "*"}),
        "with no acts at all": policy({**MAY_ALL, "verbs": None}),
        "with a pattern of nothing": policy({**MAY_ALL, "groups": [""]}),
        "with a pattern that is too long": policy({**MAY_ALL, "groups": ["a" * 65]}),
        "with a time without a zone": policy({**MAY_ALL, "expires": "2026-11-02T00:00:00"}),
        "with a day as a time": policy({**MAY_ALL, "expires": "2026-11-02"}),
    }
    cases = {f"a policy {how}": refused("form", text=json.dumps(tree)) for how, tree in trees.items()}
    return cases | {
        "a policy that is no JSON": refused("form", text="{"),
        "a policy of no octets": refused("form", text=""),
        "a policy that goes on behind its end": refused("form", text=json.dumps(policy(MAY_ALL)) + "{}"),
        "a policy that is too long": refused("length", text=json.dumps(policy(*TEAM)), pad=262145),
    }
