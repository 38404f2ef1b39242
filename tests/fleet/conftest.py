"""What the tests of the desk share."""

import pytest

from tests.fleet.desk import Desk


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)
