"""Faults are tried on whole plants."""

from tests.faults.standing import standing
from tests.system.conftest import new_plant, plant

__all__ = ["new_plant", "plant", "standing"]
