"""An exported file holds what a group's devices need, and nothing of others; what no device would take is not written."""

from datetime import timedelta

import numpy as np
import pytest

from agent.adapters.archive import ArchiveStore
from agent.adapters.tuf_client import TufClient
from agent.core.documents import to_json
from agent.core.errors import InputError, TrustError
from agent.trust.listing import delta_path
from agent.trust.policy import POLICY_PATH, WITHDRAWN_PATH
from fleet.deploy import deploy
from fleet.export import export
from fleet.policy import propose_withdrawal, put_withdrawal, set_policy
from fleet.publish import newest_publics, publish
from fleet.repository import key_of
from fleet.signing import signed
from provisioning.keys import init_group
from tests.fleet.desk import NEW, NOW, OLD, OTHER, checked
from tests.fleet.test_delta import model


@pytest.fixture
def site(desk, tmp_path):
    """A desk with three releases, two groups, and the first release deployed to the first group."""
    init_group(desk.keyring, "g2")
    for name in (NEW, OLD, OTHER):
        desk.publish(name)
    deploy(desk.repository, desk.keyring, "g1", "face_detection", NEW, now=NOW)
    deploy(desk.repository, desk.keyring, "g2", "fire_detection", OTHER, now=NOW)
    for group in ("g1", "g2"):
        desk.store.write(f"grants/{group}/cam-7.json", b"{}")
    return desk


def made(site, tmp_path, group="g1", releases=(), now=NOW):
    told = []
    out = tmp_path / "site.zip"
    names = export(site.load(), group, releases, out, now=now, tell=lambda *said: told.append(said))
    return names, ArchiveStore(out), told


def test_a_device_believes_it_and_finds_all_it_needs(site, tmp_path):
    """Metadata from the pinned root on, the deployment, the grant, and the release's bytes."""
    names, archive, told = made(site, tmp_path)
    trusted = TufClient(tmp_path / "device", archive, site.keyring.root(), lambda _: None).refresh(NOW)
    assert names == (NEW,)
    assert trusted.read("deployments/g1.json", 1 << 20)
    info = trusted.find(f"releases/{NEW}.sealed")
    assert len(archive.read(info.key, info.length)) == info.length
    assert archive.read("grants/g1/cam-7.json", 10) == b"{}"
    assert (f"{NEW}.sealed", info.length, info.length) in told


def test_what_is_not_the_groups_stays_out(site, tmp_path):
    """Another group's grants, deployment and releases, and releases that nobody deployed there."""
    _, archive, _ = made(site, tmp_path)
    keys = sorted(archive._entries)
    assert not [key for key in keys if "g2" in key or OTHER in key or OLD in key]


def test_policy_and_withdrawals_go_along(site, tmp_path):
    """What operators may do, and what nobody may run any more, holds at a site without a network, too."""
    (operator,) = site.keyring.signers("operators")
    may = [{"key": operator.public_key.keyid, "name": "anna", "verbs": ["*"], "groups": ["*"]}]
    set_policy(site.repository, to_json({"operators": may}), "team.yaml", NOW)
    withdrawn = propose_withdrawal(site.repository, OLD, "sees ghosts", NOW)
    put_withdrawal(site.repository, signed(withdrawn, site.keyring, "operators-critical"), NOW)
    _, archive, _ = made(site, tmp_path)
    trusted = TufClient(tmp_path / "device", archive, site.keyring.root(), lambda _: None).refresh(NOW)
    for path in (POLICY_PATH, WITHDRAWN_PATH):
        assert trusted.read(path, 1 << 20)


def test_a_release_can_be_added(site, tmp_path):
    """One that will be deployed later travels with the file."""
    names, archive, _ = made(site, tmp_path, releases=[OLD])
    assert names == tuple(sorted((NEW, OLD)))
    assert any(OLD in key for key in archive._entries)


def test_the_deltas_to_a_release_go_along(desk, tmp_path):
    """A device that holds the release before takes fewer bytes from a stick, too; a delta to another release stays out."""
    older = [
        checked(f"face_detection_retinaface_widerface_2025010{day}", weights=model(tensors(day))) for day in (1, 2)
    ]
    newer = checked(NEW, weights=model(tensors(1) | tensors(2)))
    publics = newest_publics(desk.keyring, ["g1"])
    first = publish(desk.repository, older[0], publics, now=NOW)
    second = publish(desk.repository, older[1], publics, bases=older[:1], now=NOW)
    publish(desk.repository, newer, publics, bases=older, now=NOW)
    deploy(desk.repository, desk.keyring, "g1", "face_detection", NEW, now=NOW)
    _, archive, _ = made(desk, tmp_path)
    trusted = TufClient(tmp_path / "device", archive, desk.keyring.root(), lambda _: None).refresh(NOW)
    for base in (first, second):
        delta = trusted.find(delta_path(NEW, base.digest))
        assert len(archive.read(delta.key, delta.length)) == delta.length
    other = trusted.find(delta_path(older[1].name, first.digest))
    assert other is not None
    assert other.key not in archive._entries


def tensors(seed):
    """Weights that are the same wherever the seed is the same, beside some that always are."""
    return {
        f"layer{number}": np.random.default_rng(number).normal(size=20_000).astype("<f4") for number in (0, 10 * seed)
    }


@pytest.mark.parametrize(
    ("group", "releases", "words"),
    [
        ("g1", ["face_detection_retinaface_widerface_20240101"], "not published here"),
        ("g3", [], "nothing is deployed there"),
        ("g3", [NEW], "sealed for"),
        ("g/1", [], "group 'g/1'"),
    ],
)
def test_a_wrong_wish_is_answered(site, tmp_path, group, releases, words):
    """In a sentence, and no file is there afterwards."""
    with pytest.raises(InputError, match=words):
        made(site, tmp_path, group, releases)
    assert not list(tmp_path.glob("*.zip"))


def test_metadata_that_no_device_would_take_is_not_written(site, tmp_path):
    """After the timestamp's expiry the store must be refreshed first; the file of last time stays."""
    made(site, tmp_path)
    before = (tmp_path / "site.zip").read_bytes()
    with pytest.raises(TrustError, match="has expired"):
        made(site, tmp_path, now=NOW + timedelta(days=4))
    assert (tmp_path / "site.zip").read_bytes() == before


def test_bytes_that_are_not_signed_are_not_carried_on(site, tmp_path):
    """A bucket that was changed is noticed at the desk, not at the site."""
    path = site.store.root / key_of(site.repository.find(f"releases/{NEW}.sealed"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(TrustError, match="not what was signed"):
        made(site, tmp_path)
    assert not list(tmp_path.glob("*.zip"))
