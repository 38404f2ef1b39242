"""A real runner with real seats, as the runner's own tests have it."""

from tests.runner.conftest import agent, served, shared, slot, x

__all__ = ["agent", "served", "shared", "slot", "x"]
