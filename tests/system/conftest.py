"""A plant for every test that needs a whole one."""

import pytest

from tests.system.plant import Plant


@pytest.fixture
def new_plant(tmp_path):
    """Makes plants: `new_plant(broker=..., url=..., settings=...)`; all their processes end with the test."""
    plants = []

    def make(**options):
        folder = tmp_path / f"plant-{len(plants)}"
        folder.mkdir()
        plants.append(Plant(folder, **options))
        return plants[-1]

    yield make
    for plant in plants:
        plant.close()


@pytest.fixture
def plant(new_plant):
    """A plant with a folder as its store and no broker."""
    return new_plant()
