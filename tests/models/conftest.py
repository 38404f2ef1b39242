import pytest

from tests.models.tree import plant


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The seed's tree, named by EDGE_MODELS."""
    planted = plant(tmp_path)
    monkeypatch.setenv("EDGE_MODELS", str(planted))
    return planted
