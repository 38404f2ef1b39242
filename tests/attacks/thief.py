"""What two root keys are worth: everything."""

import copy
import shutil

from tuf.api.metadata import Metadata, Root, Snapshot, Targets

from fleet.repository import Repository
from fleet.roles import delegations
from tests.system.plant import now


def seize(plant, thief):
    """With two of the three root keys, every role becomes the thief's: from now on the plant is theirs."""
    root = copy.deepcopy(plant.repository.root.signed)
    root.version += 1
    for role in root.roles:
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        for signer in thief.signers(role):
            root.add_key(signer.public_key, role)
    signers = [*plant.keyring.signers("root")[:2], *thief.signers("root")]
    plant.store.write(f"metadata/{root.version}.root.json", signed_root(root, signers))
    thief.root_file.write_bytes(plant.keyring.root())
    shutil.copytree(plant.keyring.folder / "groups", thief.folder / "groups")  # of which only the public keys are used
    shutil.rmtree(plant.store.root / "grants")  # what a device has, stands; the thief cannot make others
    plant.repository, plant.keyring = begun_anew(plant.store, thief, root), thief


def begun_anew(store, keyring, root):
    """A repository of nothing in the place of one."""
    made = Repository(store, keyring, root, Targets(delegations=delegations(keyring)), Snapshot(meta={}))
    for first in (made.targets, made.snapshot, made.timestamp):
        first.signed.version = 0
    made._base = store.read("metadata/timestamp.json", 100_000)
    made.listings.begin()
    made.publish(now())
    return made


def signed_root(root, signers):
    """The root's bytes."""
    metadata = Metadata[Root](root)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()
