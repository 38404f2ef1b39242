"""One set of keys and one verified targets metadata, in memory."""

from datetime import UTC, datetime, timedelta

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Targets

from agent.core.documents import to_json
from agent.core.intent import COMMAND_TYPE, ROLLOUT_TYPE, WAVE_TYPE, Command, Move, Rollout, Verb, Wave, WaveAction
from agent.core.release import Ref
from agent.trust.envelope import Opened
from agent.trust.grant import believe_grant, open_granted
from fleet.sealing import make_envelope, make_pair

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
NEW = Ref(name="face_detection_retinaface_widerface_20250628", digest="a" * 64)
OLD = Ref(name="face_detection_retinaface_widerface_20250101", digest="b" * 64)


class Desk:
    """Everybody who signs, and the targets metadata that names their keys."""

    def __init__(self):
        self.targets = Targets()
        self.targets.delegations = Delegations({}, roles={})
        self.keys = {}
        self.delegate("operators", 1, 3)
        self.delegate("operators-critical", 2, 3)
        self.delegate("controller", 1, 1)
        self.delegate("grants", 1, 1)

    def delegate(self, role, threshold, count):
        """Replaces all keys of a role."""
        self.targets.delegations.roles[role] = DelegatedRole(role, [], threshold, terminating=True, paths=[])
        self.keys[role] = []
        for _ in range(count):
            self.add_key(role)

    def add_key(self, role):
        signer = CryptoSigner.generate_ed25519()
        self.keys[role].append(signer)
        self.targets.add_key(signer.public_key, role)

    def revoke(self, role, index):
        self.targets.revoke_key(self.keys[role].pop(index).public_key.keyid, role)

    def sign(self, value, payload_type, role, signers=None):
        return make_envelope(to_json(value), payload_type, signers if signers is not None else self.keys[role][:1])

    def command(self, signers=None, **changes):
        fields = {
            "id": "0123456789ab",
            "scope": "device:cam-7",
            "counter": 5,
            "issued": NOW,
            "expires": NOW + 10 * MINUTE,
            "verb": Verb.SYNC,
        }
        return self.sign(Command(**fields | changes), COMMAND_TYPE, "operators", signers)

    def pair(self, counters=(1, 1), share=1.0, action=WaveAction.RUN, wave=None, signers=None, **changes):
        """A deployment; `wave` changes fields of the wave, `changes` of the rollout."""
        fields = {
            "group": "g1",
            "counter": counters[0],
            "issued": NOW,
            "slots": {"face": Move(goal=NEW, start=OLD)},
            "shares": (0.1, 1.0),
        }
        rollout = to_json(Rollout(**fields | changes))
        fields = {
            "group": "g1",
            "counter": counters[1],
            "issued": NOW,
            "rollout": Opened(payload=rollout, signers=()).digest,
            "share": share,
            "action": action,
        }
        signed = make_envelope(rollout, ROLLOUT_TYPE, signers if signers is not None else self.keys["operators"][:1])
        return make_pair(signed, self.sign(Wave(**fields | (wave or {})), WAVE_TYPE, "controller"))


def open_grant(raw, targets, device, group, private):
    """Epoch: private key, for every epoch that a device was granted."""
    grant = believe_grant(raw, targets, device, group)
    return {one.epoch: open_granted(one, device, group, private) for one in grant.keys}
