"""What the bucket may do: objects that are tampered with, cut, exchanged, lost or old, and a bucket that is away."""

import json
import shutil
from contextlib import ExitStack, contextmanager

import pytest

from tests.fakes.seaweed import ADMIN, BUCKET
from tests.faults.standing import POLL_S
from tests.system.client import command
from tests.system.plant import GROUP, ONE, TWO
from tests.system.steady import until_settled


def target(standing, release):
    """Where a release's sealed bytes lie in the bucket."""
    return standing.store / "targets" / "releases" / f"{release.digest}.{release.name}.sealed"


@contextmanager
def spoilt(path, content):
    """A file with other bytes for a while; None: no file."""
    was = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(was)


def flipped(content):
    """The content with one bit in its middle turned."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


OBJECTS = {
    "swapped for another release": (lambda _, others: others, "are signed: publish it again"),
    "missing": (lambda *_: None, "no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", OBJECTS)
def test_an_object_that_is_not_what_was_signed_is_not_served(standing, case):
    """Nothing of it stays, the reason is told, and the good release serves on."""
    spoil, words = OBJECTS[case]
    release = standing.another(f"202402{list(OBJECTS).index(case) + 1:02}")
    path, others = target(standing, release), target(standing, standing.good).read_bytes()
    with standing.unharmed(but={"deployment"}), spoilt(path, spoil(path.read_bytes(), others)):
        standing.deploy(release.name)
        standing.until_told(words)
        assert standing.device.slot()["serving"] == ONE


def test_an_object_that_was_put_right_is_fetched_again(standing):
    """Wrong bytes say nothing against a release: as soon as the right ones lie there, it comes."""
    release = standing.another("20240220")
    path = target(standing, release)
    with spoilt(path, flipped(path.read_bytes())):
        standing.deploy(release.name)
        standing.until_told("is signed: look at the store")
    assert until_settled(standing.device, release)
    assert [file.name for file in standing.device.models.rglob("*.part*")] == []
    standing.deploy(ONE)
    assert until_settled(standing.device, standing.good)
    assert standing.camera.failures == []


def timestamp(standing):
    return standing.store / "metadata" / "timestamp.json"


def newest(standing, role):
    """The newest metadata of a role."""
    found = (standing.store / "metadata").glob(f"*.{role}.json")
    return max(found, key=lambda path: int(path.name.split(".")[0]))


METADATA = {
    "a timestamp that is garbage": (timestamp, lambda _: b"\x00garbage", "cannot be parsed: look at the store"),
    "a timestamp that is JSON of something else": (timestamp, lambda _: b"[1, 2]", "look at the store"),
    "a timestamp of no bytes": (timestamp, lambda _: b"", "look at the store"),
    "a timestamp that nobody signed": (timestamp, lambda old: resigned(old, []), "not signed by enough of the keys"),
    "a timestamp that is missing": (timestamp, lambda _: None, "check the store's URL and the network"),
    "a snapshot that is tampered": (lambda s: newest(s, "snapshot"), flipped, "look at the store"),
    "a snapshot that is missing": (lambda s: newest(s, "snapshot"), lambda _: None, "check the store's URL"),
    "a deployment that is tampered": (lambda s: newest(s, "deployments"), flipped, "look at the store"),
    "a grant that is garbage": (lambda s: s.store / "grants" / GROUP / "cam-1.json", lambda _: b"{", "grants envelope"),
}  # fmt: skip


def resigned(content, signatures):
    return json.dumps({**json.loads(content), "signatures": signatures}).encode()


@pytest.mark.parametrize("case", METADATA)
def test_metadata_that_is_not_what_was_signed_is_not_believed(standing, case):
    """`sync` says what is wrong; what was verified before stands."""
    find, spoil, words = METADATA[case]
    with standing.unharmed(but={"deployment"}), ExitStack() as until_here:
        with standing.asleep():
            standing.another(f"202403{list(METADATA).index(case) + 1:02}")
            standing.plant.rollout(ONE, broker=False)  # something new in every role
            path = find(standing)
            until_here.enter_context(spoilt(path, spoil(path.read_bytes())))
        done = command(standing.device, "sync")
        assert done.returncode != 0
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        standing.until_told(words)
        until_here.close()
        standing.device.until(lambda: standing.device.state()["store"]["error"] == "", "it heals by itself", 15)


def test_a_listing_that_is_tampered_says_nothing_against_a_release(standing):
    """What the bucket serves today is not the release's fault: as soon as the right listing lies there, it comes."""
    with ExitStack() as until_here:
        with standing.asleep():
            release = standing.another("20240321")
            path = newest(standing, "releases")
            until_here.enter_context(spoilt(path, flipped(path.read_bytes())))
        standing.deploy(release.name)
        standing.until_told("is not the file that the signed metadata names: look at the store")
    assert until_settled(standing.device, release)
    standing.deploy(ONE)
    assert until_settled(standing.device, standing.good)
    assert standing.camera.failures == []


def test_a_bucket_that_is_away(standing):
    """It is told with what to do; it heals by itself when it is back."""
    away = standing.store.with_name("away")
    with standing.unharmed(but={"deployment"}):
        standing.store.rename(away)
        try:
            done = command(standing.device, "sync")
            assert done.returncode != 0
            assert "check the store's URL and the network" in done.stderr
            standing.until_told("check the store's URL and the network")
        finally:
            shutil.move(away, standing.store)
        standing.device.until(lambda: standing.device.state()["store"]["error"] == "", "it heals by itself", 15)


def test_a_bucket_whose_port_is_closed(new_plant, seaweed, new_proxy):
    """As above, over S3, in the middle of a rollout: the release comes when the port is open again."""
    proxy = new_proxy(seaweed.port)
    keys = {"endpoint": proxy.endpoint, "region": "us-east-1", "access_key": ADMIN[0], "secret_key": ADMIN[1]}
    plant = new_plant(url=f"s3://{BUCKET}/closed", settings={**keys, "poll_s": POLL_S})
    one, two = plant.publish(ONE), plant.publish(TWO)
    plant.rollout(ONE)
    device = plant.device().start()
    until_settled(device, one)
    proxy.refuse = True
    proxy.reset_all()
    done = command(device, "sync")
    assert done.returncode != 0
    assert "no connection" in done.stderr
    assert "check the network; it is tried again" in done.stderr
    assert device.slot()["serving"] == ONE
    proxy.refuse = False
    plant.rollout(TWO)
    assert until_settled(device, two)


def test_a_broker_that_is_away(standing):
    """It is told with what to do; deployments come by the store meanwhile, and the link heals by itself."""
    standing.broker.kill()
    standing.until_told("check the network and `broker:` in agent.yaml")
    standing.plant.rollout(TWO, broker=False)
    assert until_settled(standing.device, standing.other)
    standing.broker.start()
    standing.device.until(lambda: standing.device.state()["broker"]["connected"], "the link is back", 90)
    standing.deploy(ONE)
    assert until_settled(standing.device, standing.good)
    assert standing.camera.failures == []
