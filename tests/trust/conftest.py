"""What the tests of trust share."""

import pytest

from tests.trust.keys import Desk


@pytest.fixture
def desk():
    return Desk()
