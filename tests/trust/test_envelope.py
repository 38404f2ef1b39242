"""Attacks on the envelope that everything signed comes in."""

import json

import pytest
from securesystemslib.signer import CryptoSigner

from agent.core.errors import TrustError
from agent.trust.envelope import keyset, open_envelope, still_believed
from fleet.sealing import make_envelope

TYPE = "application/vnd.example+json"


def opened(raw, desk, role="operators", payload_type=TYPE, limit=4096):
    return open_envelope(raw, payload_type, role, desk.targets, limit).payload


def signed(desk, role="operators", count=1, payload=b'{"a": 1}'):
    return make_envelope(payload, TYPE, desk.keys[role][:count])


def test_a_signed_payload_comes_out_as_it_was_signed(desk):
    """The payload is the exact bytes that were signed."""
    assert opened(signed(desk), desk) == b'{"a": 1}'


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\xff", b"null", b"[]", b"{}", b'{"payload": 1}', b'{"payload":"e30=","payloadType":"x"}',
        b'{"payload":"!!","payloadType":"x","signatures":[]}', b'{"payload":"e30=","payloadType":"x","signatures":[{"keyid":"a"}]}',
        b'{"payload":"e30=","payloadType":"x","signatures":[{"keyid":"a","sig":"***"}]}',
        b'{"payload":"e30=","payloadType":"x","signatures":{}}', b"[" * 4000, b'{"signatures":' + b"[" * 4000,
        b'{"payload":"e30=","payloadType":"x","signatures":[],"more":1}',
    ],
)  # fmt: skip
def test_garbage_is_refused_as_garbage(desk, raw):
    """Whatever bytes come, the answer is a TrustError and never a crash."""
    with pytest.raises(TrustError):
        opened(raw, desk)


def test_an_oversized_envelope_is_not_parsed(desk):
    """The length limit comes before everything else."""
    with pytest.raises(TrustError, match="at most 100"):
        opened(signed(desk), desk, limit=100)


def test_a_signature_over_one_type_says_nothing_about_another(desk):
    """A grant cannot be replayed as a command."""
    with pytest.raises(TrustError, match="its type is"):
        opened(signed(desk), desk, payload_type="application/vnd.other+json")


def test_a_renamed_type_breaks_the_signature(desk):
    """The type is part of what is signed."""
    tree = json.loads(signed(desk)) | {"payloadType": "application/vnd.other+json"}
    with pytest.raises(TrustError, match="signed by 0"):
        opened(json.dumps(tree).encode(), desk, payload_type="application/vnd.other+json")


def test_a_tampered_payload_is_refused(desk):
    """One changed byte and the signature counts no more."""
    tree = json.loads(signed(desk)) | {"payload": "eyJhIjogMn0="}
    with pytest.raises(TrustError, match="signed by 0 of the 1"):
        opened(json.dumps(tree).encode(), desk)


def test_an_unknown_key_does_not_count(desk):
    """An attacker's own key is nobody's."""
    with pytest.raises(TrustError, match="signed by 0"):
        opened(make_envelope(b"{}", TYPE, [CryptoSigner.generate_ed25519()]), desk)


def test_another_roles_key_does_not_count(desk):
    """The controller cannot sign what operators must."""
    with pytest.raises(TrustError, match="signed by 0"):
        opened(signed(desk, "controller"), desk)


def test_one_signature_of_two_is_not_enough(desk):
    """The threshold of a role is kept."""
    with pytest.raises(TrustError, match="signed by 1 of the 2"):
        opened(signed(desk, "operators-critical"), desk, "operators-critical")
    assert opened(signed(desk, "operators-critical", 2), desk, "operators-critical")


def test_one_key_twice_is_not_two_keys(desk):
    """A repeated signature does not reach a threshold."""
    tree = json.loads(signed(desk, "operators-critical"))
    tree["signatures"] *= 2
    with pytest.raises(TrustError, match="one key id signs twice"):
        opened(json.dumps(tree).encode(), desk, "operators-critical")


def test_a_key_under_another_ones_id_does_not_count(desk):
    """A key id is a name, not a proof."""
    tree = json.loads(signed(desk, "operators-critical"))
    forged = dict(tree["signatures"][0], keyid=desk.keys["operators-critical"][1].public_key.keyid)
    tree["signatures"].append(forged)
    with pytest.raises(TrustError, match="signed by 1 of the 2"):
        opened(json.dumps(tree).encode(), desk, "operators-critical")


def test_a_revoked_key_counts_no_more(desk):
    """Revoking a key in targets metadata is all it takes."""
    raw = signed(desk)
    desk.revoke("operators", 0)
    with pytest.raises(TrustError, match="signed by 0"):
        opened(raw, desk)


def test_a_role_that_nobody_delegated_is_refused(desk):
    """Without a delegation nothing is signed."""
    with pytest.raises(TrustError, match="delegate to painters"):
        opened(signed(desk), desk, "painters")
    with pytest.raises(TrustError, match="painters"):
        keyset(desk.targets, "painters")
    assert not still_believed(["x"], "painters", desk.targets)


def test_a_key_set_changes_with_keys_and_threshold(desk):
    """Floors are bound to who may sign and how many must."""
    seen = {keyset(desk.targets, "operators")}
    desk.add_key("operators")
    seen.add(keyset(desk.targets, "operators"))
    desk.targets.delegations.roles["operators"].threshold = 2
    seen.add(keyset(desk.targets, "operators"))
    assert len(seen) == 3
