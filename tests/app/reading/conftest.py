"""A store with a universe for the tests of reading bars."""

from tests.support.readable_fixtures import readable, settings

__all__ = ["readable", "settings"]
