"""What can be done with keys: by their owners after a theft, and by the thief."""

import shutil

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from fleet.repository import LISTING_ROLES, delegations
from tests.system.plant import now


def replace_keys(plant, *roles):
    """A new root in which other keys answer for roles; the desk has them."""
    root = plant.repository.root
    root.version += 1
    for role in roles:
        signer = CryptoSigner.generate_ed25519()
        give(root, role, [signer])
        (plant.keyring.folder / "roles" / f"{role}-1.pem").write_bytes(signer.private_bytes)
    plant.store.write(f"metadata/{root.version}.root.json", signed_root(root, plant.keyring.signers("root")))


def seize(plant, thief):
    """With two of the three root keys, everything becomes the thief's: from now on the plant is theirs."""
    root = plant.repository.root
    root.version += 1
    for role in root.roles:
        give(root, role, thief.signers(role))
    signers = [*plant.keyring.signers("root")[:2], *thief.signers("root")]
    plant.store.write(f"metadata/{root.version}.root.json", signed_root(root, signers))
    thief.root_file.write_bytes(plant.keyring.root())
    shutil.copytree(plant.keyring.folder / "groups", thief.folder / "groups")  # of which only the public keys are used
    shutil.rmtree(
        plant.store.root / "grants"
    )  # nobody can make them without the devices' keys; what a device has, stands
    plant.keyring = plant.repository.keyring = thief
    plant.repository.targets.signed.delegations = delegations(thief)
    plant.repository.roles["deployments"].signed.targets.clear()  # the thief's desk believes the old keys no more
    plant.repository._changed = {"targets", *LISTING_ROLES}
    plant.repository.publish(now())


def give(root, role, signers):
    """These keys alone answer for a role."""
    for keyid in list(root.roles[role].keyids):
        root.revoke_key(keyid, role)
    for signer in signers:
        root.add_key(signer.public_key, role)


def signed_root(root, signers):
    """The root's bytes."""
    metadata = Metadata[Root](root)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()
