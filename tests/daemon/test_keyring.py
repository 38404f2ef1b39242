"""What a device keeps of the grants that come."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.adapters.ledger import Ledger
from agent.core.errors import TrustError
from agent.daemon.keyring import Keyring
from agent.trust.grant import CURVE, Grant
from fleet.sealing import make_grant
from provisioning.keys import PRIVATE, private_pem, write_new
from tests.trust.keys import Desk

EPOCHS = {epoch: ec.generate_private_key(CURVE) for epoch in (1, 2)}


@pytest.fixture
def device(tmp_path):
    """A device's keyring, and a way to serve it grants."""
    desk, private = Desk(), ec.generate_private_key(CURVE)
    write_new(tmp_path / "device.key", private_pem(private), PRIVATE)
    ledger = Ledger(tmp_path / "ledger.db")
    keyring = Keyring(tmp_path / "device.key", "cam-7", "g1", ledger)

    def serve(counter, *epochs):
        keys = {epoch: EPOCHS[epoch] for epoch in epochs}
        keyring.take(make_grant("cam-7", "g1", keys, private.public_key(), desk.keys["grants"], counter), desk.targets)
        return [one.epoch for one in ledger.get("grant", "g1", Grant).keys]

    yield serve
    ledger.close()


def test_a_new_grant_adds_its_epochs(device):
    """What a device could open it can open still."""
    assert device(5, 1) == [1]
    assert device(6, 2) == [1, 2]
    assert device(6, 2) == [1, 2]


def test_an_old_grant_is_noticed(device):
    """Somebody who serves an old copy is named; what is known stands."""
    device(6, 1, 2)
    with pytest.raises(TrustError, match="grant 5: older than 6"):
        device(5, 1)
    assert device(7, 1) == [1, 2]


def test_a_grant_from_before_there_were_counters_counts_as_the_oldest(device):
    """It is taken where nothing newer was, and noticed where something was."""
    assert device(0, 1) == [1]
    assert device(5, 1) == [1]
    with pytest.raises(TrustError, match="grant 0: older"):
        device(0, 1)
