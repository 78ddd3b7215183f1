"""The hub of the tests of weights, for backbones that are pulled."""

from tests.weights.conftest import hub

__all__ = ["hub"]
