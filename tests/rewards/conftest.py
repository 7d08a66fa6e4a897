"""Processes for tests that need several."""

from tests.strategies.conftest import world

__all__ = ["world"]
