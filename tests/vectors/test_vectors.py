"""The product is held to vectors that other code made: what must open opens, and each fault is refused by its stage."""

import ast
import hashlib
import json
import re
from base64 import b64decode
from datetime import datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import SSlibKey
from tuf.api.metadata import DelegatedRole, Delegations, Targets

from agent.core.errors import TrustError
from agent.core.intent import Command, in_wave
from agent.trust.command import believe_command, floor_key
from agent.trust.delta import rebuild
from agent.trust.deployment import Taken, believe_deployment
from agent.trust.envelope import Opened, open_envelope
from agent.trust.grant import CURVE, believe_grant, open_granted, unwrap_key
from agent.trust.policy import believe_withdrawn, check_act, matches, read_policy
from agent.trust.sealing import Opener
from tests.vectors import make
from tests.vectors.primitives import Signer, scalar

FOLDER = Path(__file__).parent
STAGES = {  # of a refusal, and what it says
    "seal": "does not open under its content key",
    "header length": r"its header has \d+ bytes; at most",
    "header end": "holds less than a header",
    "header": "^header of ",
    "names": "two parts have one name",
    "sizes": r"holds \d+ bytes; its signed listing says",
    "stream": "the compressed stream is damaged",
    "part end": "ends early",
    "digest": "has another digest than its header says",
    "end": "goes on behind its last part",
    "hpke": "does not open with this key",
    "scalar": "is not a P-256 key",
    "length": r"\d+ bytes; at most \d+ are read",
    "form": r"^([\w-]+ envelope|deployment|policy/operators\.json): (this is not valid JSON|Expected|Object|Invalid)",
    "type": "its type is",
    "twice": "one key id signs twice",
    "signatures": "signed by",
    "payload": r"^(grant|rollout|wave|command|policy/withdrawn\.json): (this is not valid JSON|Expected|Object|Invalid)",
    "device": "it is for",
    "group": "somebody serves it another's deployment",
    "match": "names the rollout",
    "share": "is not one of the rollout's",
    "name": "not in _YYYYMMDD",
    "issued": "check both clocks",
    "counter": r"not newer than|is not above",
    "rollout counter": "another rollout with this counter",
    "expiry": r"widens a rollout that expired|^expired",
    "scope": "the command is for",
    "recipe length": r"its recipe has \d+ bytes; at most",
    "recipe": r"^delta: delta\.json: (this is not valid JSON|Expected|Object|Invalid)",
    "delta sizes": r"^delta: \d+ bytes give \d+; the signed listing says",
    "segments": "its segments give another size than it declares",
    "words": "a segment is not of whole words",
    "base": "was made from another base",
    "range end": "a range ends behind its base",
    "range order": "a range goes back in its base",
    "result part": "what it gives is not what it declares",
    "result": "what it gives is not the release that was signed",
    "policy key": "is not in the policy$",
    "policy verb": r"; \w+ may not (pin|Sync)$",
    "policy group": r"; \w+ may not act on \S+$",
    "policy expiry": r"; what \w+ may do ended \S+$",
    "policy count": r"needs signatures of \d operators who may; \d missing$",
}
EARLY = {"recipe length", "recipe", "delta sizes", "segments", "words", "base", "range end"}  # before the first octet


def document(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


def cases(name):
    found = document(name)
    return [pytest.param(found["given"], case, found["cases"], id=title) for title, case in found["cases"].items()]


def of(name):
    return pytest.mark.parametrize(("given", "case", "others"), cases(name))


def check(case, read):
    """Read it: what comes out, or None when it was refused by the stage that is named."""
    if "refused" not in case:
        return read()
    with pytest.raises(TrustError, match=STAGES[case["refused"]]):
        read()
    return None


def targets(given):
    """The targets metadata that delegates to the roles of a document."""
    made = Targets()
    made.delegations = Delegations({}, roles={})
    for role, about in given["roles"].items():
        made.delegations.roles[role] = DelegatedRole(role, [], about["threshold"], terminating=True, paths=[])
        for public in about["ed25519"]:
            keyid = Signer.keyid_of(public)
            made.add_key(SSlibKey(keyid, "ed25519", "ed25519", {"public": public}), role)
    return made


def raw(case):
    """An envelope or pair as it is sent."""
    return (case["text"] if "text" in case else json.dumps(case["raw"])).ljust(case.get("pad", 0)).encode()


def private(text):
    return ec.derive_private_key(int(text, 16), CURVE)


def moment(text):
    return datetime.fromisoformat(text)


# --- the vectors ---------------------------------------------------------------------------------------------------


@of("sealed_release")
def test_a_sealed_release(given, case, others):
    """Sections 1 and 3."""

    def read():
        opener = Opener(bytes.fromhex(given["key"]), given["path"], [octets(case, others)], case["size"])
        found = [bytearray() for _ in opener.parts]
        for index, piece in opener.pieces():
            found[index] += piece
        return [
            {
                "name": part.name,
                "size": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "group": part.group,
            }
            for part, content in zip(opener.parts, found, strict=True)
        ]

    assert check(case, read) == case.get("parts")


def octets(case, others):
    """The sealed octets of a case: its own, or slices of another's."""
    if "sealed" in case:
        return b64decode(case["sealed"])
    whole = b64decode(others[case["of"]]["sealed"])
    made = bytearray(b"".join(whole[begin:end] for begin, end in case["cut"]))
    if "flip" in case:
        made[case["flip"]] ^= 1
    return bytes(made)


@of("wrapped_key")
def test_a_wrapped_key(given, case, others):
    """Section 4."""
    words = given["path"], given["group"], given["epoch"]
    found = check(case, lambda: unwrap_key(b64decode(case["wrapped"]), private(given["private"]), *words).hex())
    assert found == case.get("key")


@of("grant")
def test_a_grant(given, case, others):
    """Section 6."""

    def read():
        to = given["device"], given["group"]
        found = believe_grant(raw(case), targets(given), *to)
        return {str(one.epoch): scalar(open_granted(one, *to, private(given["private"]))).hex() for one in found.keys}

    assert check(case, read) == case.get("keys")


@of("envelope")
def test_an_envelope(given, case, others):
    """Section 5."""

    def read():
        about = given["type"], given["role"], targets(given), given["limit"]
        return open_envelope(raw(case), *about).payload.hex()

    assert check(case, read) == case.get("payload")


@of("deployment")
def test_a_deployment(given, case, others):
    """Section 7."""
    floor, listed = Taken(), targets(given)
    now = moment(case.get("now", given["now"]))
    for name in history(case, others):
        floor = believe_deployment(raw(others[name]), listed, given["group"], floor, now).taken

    def read():
        found = believe_deployment(raw(case), listed, given["group"], floor, now)
        return {"counters": [found.rollout.counter, found.wave.counter], "reach": found.taken.reach, "same": found.same}

    wanted = {"counters": case.get("counters"), "reach": case.get("reach"), "same": case.get("same", False)}
    assert check(case, read) == (None if "refused" in case else wanted)


def history(case, others):
    """The cases that were taken before, oldest first."""
    return [one for name in case.get("taken", ()) for one in (*history(others[name], others), name)]


def test_where_devices_stand():
    """Section 7: a device is in a wave when its point is below the share."""
    for where, point in document("deployment")["points"].items():
        salt, _, device = where.partition("/")
        assert in_wave(device, salt, point + 1e-9)
        assert not in_wave(device, salt, point)


@of("command")
def test_a_command(given, case, others):
    """Section 8; a refusal is an answer, not an error."""
    listed = targets(given)
    floors = {floor_key(scope, listed): counter for scope, counter in given["taken"].items()}
    found = believe_command(raw(case), listed, given["device"], given["group"], floors, moment(given["now"]))
    if "refused" in case:
        assert re.search(STAGES[case["refused"]], found.reason)
        assert found.status == ("expired" if case["refused"] == "expiry" else "rejected")
    else:
        assert isinstance(found, Command)
        assert found.verb == case["verb"]


@of("policy")
def test_an_act(given, case, others):
    """Section 10: a policy that cannot be read allows nothing; another one is asked about an act."""

    def read():
        policy = read_policy(raw(case)) if "raw" in case or "text" in case else None
        if "act" in case:
            opened = Opened(payload=b"", signers=tuple(case["signers"]), threshold=case["threshold"])
            check_act(policy, opened, case["act"], case["group"], moment(case["now"]))

    check(case, read)
    if "act" in case:
        assert ("refused" in case) == (case["may"] < case["needed"])
    if "act" in case and "refused" in case:
        needed, missing = case["needed"], case["needed"] - case["may"]
        with pytest.raises(
            TrustError, match=f"{case['act']} on group {case['group']} needs .* {needed} .*; {missing} missing"
        ):
            read()


@pytest.mark.parametrize(("pattern", "word", "like"), document("policy")["patterns"])
def test_a_pattern(pattern, word, like):
    """Section 10: of the whole word, and case counts."""
    assert matches([pattern], word) is like


@of("withdrawn")
def test_withdrawals(given, case, others):
    """Section 11: two of operators-critical must sign, whoever lists it."""

    def read():
        found = believe_withdrawn(raw(case), targets(given))
        return [[one.release.name, one.release.digest] for one in found.releases]

    assert check(case, read) == case.get("listed")


@of("delta")
def test_a_delta(given, case, others):
    """Section 12: out comes the release that was signed, or nothing that counts."""
    came, wanted = [], case["result"]

    def opened(key, path, sealed, size):
        return Opener(bytes.fromhex(key), path, [sealed], size)

    def read():
        old = case.get("base", given["base"])
        base = opened(old["key"], old["path"], b64decode(old["sealed"]), old["size"])
        delta = opened(given["key"], case.get("delta", given["delta"]), octets(case, others), case["size"])
        about = bytes.fromhex(given["key"]), given["path"], wanted["parts"], wanted["sha256"]
        came.extend(rebuild(delta, base, *about))
        whole = b"".join(came)
        return {**wanted, "octets": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}

    assert check(case, read) == (None if "refused" in case else wanted)
    assert not (came and case.get("refused") in EARLY)


# --- the code that made them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", make.DOCUMENTS)
def test_the_vectors_are_made_again_octet_by_octet(name):
    """What lies here is what the other code makes, today as when it was written."""
    assert make.text(name) == (FOLDER / f"{name}.json").read_text()


@pytest.mark.parametrize("name", sorted({one.name for one in FOLDER.glob("*.py")} - {"test_vectors.py", "__init__.py"}))
def test_the_other_code_is_other_code(name):
    """It takes nothing from the product, nor from what the product leans on for these formats."""
    nodes = ast.walk(ast.parse((FOLDER / name).read_text()))
    modules = {one.module if isinstance(one, ast.ImportFrom) else one.names[0].name for one in nodes if isinstance(one, ast.Import | ast.ImportFrom)}  # fmt: skip
    allowed = (
        "base64",
        "datetime",
        "hashlib",
        "hmac",
        "json",
        "pathlib",
        "struct",
        "tests.vectors.",
        "zstandard",
        "cryptography.hazmat.primitives.",
    )
    assert [module for module in modules if not module.startswith(allowed)] == []
    assert not {module for module in modules if "hpke" in module or "cobblestone" in module}


def test_every_stage_is_tried():
    """No sentence of a refusal is without a vector."""
    tried = {
        case["refused"] for name in make.DOCUMENTS for case in document(name)["cases"].values() if "refused" in case
    }
    assert tried == set(STAGES)
