"""Real servers on the loopback for every room's tests. Each ends with the test or session that asked for it."""

import pytest

from tests.fakes import mosquitto as broker_fake
from tests.fakes.fault_proxy import FaultProxy
from tests.fakes.seaweed import Seaweed


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory):
    """A running S3 server: `.store(prefix)`, `.endpoint`, `.port`."""
    server = Seaweed(tmp_path_factory.mktemp("seaweed"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def new_broker(tmp_path):
    """Makes running brokers: `new_broker(more="...", anonymous=False)`."""
    broker_fake.require()
    brokers = []

    def make(**options):
        folder = tmp_path / f"broker-{len(brokers)}"
        folder.mkdir()
        brokers.append(broker_fake.Mosquitto(folder, **options))
        brokers[-1].start()
        return brokers[-1]

    yield make
    for one in brokers:
        one.kill()


@pytest.fixture
def mosquitto(new_broker):
    """A running broker: `.host`, `.port`, `.kill()`, `.restart()`."""
    return new_broker()


@pytest.fixture
def new_proxy():
    """Makes fault proxies: `new_proxy(port)`."""
    proxies = []

    def make(upstream_port):
        proxies.append(FaultProxy(upstream_port))
        return proxies[-1]

    yield make
    for one in proxies:
        one.close()
