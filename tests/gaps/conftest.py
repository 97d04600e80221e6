"""A store, a fake gateway and a load manager between them."""

from tests.support.loading import bench, folders, world

__all__ = ["bench", "folders", "world"]
