"""Operators who may not, stores that withhold, releases that were withdrawn: what a device makes of them."""

import pytest

from agent.core.documents import to_json
from agent.core.intent import WITHDRAWN_TYPE, Operator, Policy, Withdrawn
from agent.trust.policy import POLICY_PATH, WITHDRAWN_PATH
from fleet.policy import current_policy, propose_withdrawal, put_withdrawal, set_policy
from fleet.repository import key_of, listed_bytes
from fleet.sealing import make_envelope
from fleet.signing import signed
from tests.faults.standing import facts_of
from tests.faults.test_bad_intent import ask, pair, request
from tests.system.plant import ONE, SLOT, TWO, now
from tests.system.steady import until_settled


def allow(standing, *verbs):
    """A policy under which the operator may do this, and the device knows it."""
    (signer,) = standing.plant.keyring.signers("operators")
    operator = Operator(key=signer.public_key.keyid, name="anna", verbs=("rollout", "sync", *verbs), groups=("*",))
    set_policy(standing.plant.repository, to_json(Policy(operators=(operator,))), "policy", now())
    synced = standing.plant.command(standing.device, "sync")
    assert standing.answer(synced)["status"] == "done"


@pytest.fixture
def allowed(standing):
    """A policy is in force; afterwards the operator may do everything again."""
    allow(standing, "report")
    yield standing
    allow(standing, "*")


def test_a_command_that_the_operator_may_not_give_is_not_obeyed(allowed):
    """The key is an operator's, and the signature is good: the policy is what says no."""
    with allowed.unharmed():
        said = ask(allowed, *request(allowed))
        assert said["status"] == "rejected"
        assert "anna may not pin" in said["reason"]
        allowed.until_told("anna may not pin")
    assert allowed.answer(allowed.plant.command(allowed.device, "report"))["status"] == "done"


def test_a_policy_that_the_store_withholds_is_nobodys_leave(allowed):
    """A device that knows there is a newer one believes no operator until it has it, and says so."""
    repository = allowed.plant.repository
    with allowed.asleep():
        wider = current_policy(repository)
        set_policy(repository, to_json(wider).replace(b'"anna"', b'"anne"'), "policy", now())
        blob = allowed.store / key_of(repository.find(POLICY_PATH))
        blob.rename(blob.with_suffix(".hidden"))
    try:
        allowed.until_told("nobody is believed before the policy is here")
        said = ask(allowed, *request(allowed))
        assert said["status"] == "rejected"
        assert "no policy is known yet" in said["reason"]
    finally:
        blob.with_suffix(".hidden").rename(blob)
    allowed.device.until(lambda: not allowed.device.state()["store"]["error"], "the store is whole again")


def test_a_store_that_lists_less_than_the_broker_brought_is_named(standing):
    """Somebody withholds, or shows an old copy: not in the first moment, for a desk writes to one after the other."""
    standing.say(pair(standing, release=standing.good))
    standing.device.until(
        lambda: "the store still lists what is older" in standing.device.state()["store"]["error"], "the device notices"
    )
    standing.until_told("came by message")
    standing.until_told("not seen whole since 20")
    standing.deploy(ONE)
    standing.device.until(lambda: not standing.device.state()["store"]["error"], "the store has what is newest")


def withdraw(standing, release, *, reason="sees ghosts"):
    repository = standing.plant.repository
    listed = propose_withdrawal(repository, release, reason, now())
    put_withdrawal(repository, signed(listed, standing.plant.keyring, "operators-critical"), now())


def test_a_withdrawn_release_is_never_chosen_again(standing):
    """Though it serves and is confirmed; not by deployment or pin, and not when the list is shorter later."""
    standing.deploy(TWO)
    until_settled(standing.device, standing.other)
    withdraw(standing, TWO)
    until_settled(standing.device, standing.good)
    why = f"{TWO} is wanted and was rejected (withdrawn)"
    standing.until_told("sees ghosts")
    assert why in standing.device.slot()["reason"]
    assert standing.camera.failures == []

    critical = standing.plant.keyring.signers("operators-critical")
    raw = make_envelope(to_json(Withdrawn(counter=99, releases=())), WITHDRAWN_TYPE, critical)
    standing.plant.repository.add(listed_bytes(WITHDRAWN_PATH, raw), raw)
    standing.deploy(ONE)
    standing.device.until(lambda: standing.device.slot()["record"]["deployed"]["name"] == ONE, "ONE is deployed")
    assert standing.answer(standing.plant.command(standing.device, "sync"))["status"] == "done"
    with standing.unharmed(but={"counter"}):
        said = ask(standing, *request(standing, release=TWO))
        assert said["status"] == "failed"
        assert "withdrawn" in said["reason"]
    with standing.unharmed():
        standing.say(pair(standing, release=standing.other))
        standing.until_told(f"{SLOT}: {TWO} cannot be chosen (withdrawn")
    assert facts_of(standing.device)["slot", SLOT]["deployed"]["name"] == ONE
