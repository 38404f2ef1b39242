"""What the tests of provisioning share."""

import pytest

from tests.provisioning.estate import Estate


@pytest.fixture
def estate(tmp_path):
    return Estate(tmp_path)
