"""A store, a fake gateway and a load manager between them."""

from tests.support.loading import folders, harness, world

__all__ = ["folders", "harness", "world"]
