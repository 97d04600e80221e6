"""A store and a fake gateway for tests of what loads through a workspace."""

from tests.support.loading import folders, harness, world

__all__ = ["folders", "harness", "world"]
