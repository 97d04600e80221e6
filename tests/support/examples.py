"""The number of examples of a property test: few by default, many in ``.ci/run``.

``--hypothesis-profile=ci`` takes as many as each test names, and ``--hypothesis-profile=explore``
ten times as many, from a new seed each run. Without either, no test takes more than 15.
"""

from typing import Any

from hypothesis import HealthCheck, Phase, settings

DEFAULT = 15
"""The most examples of a test by default."""

EXPLORED = 10
"""How many times as many examples the profile ``explore`` takes."""


def register_profiles() -> None:
    """Register the three profiles, and load the default one."""
    shared = settings(
        deadline=None,  # speed is measured as ratios, by tests of its own
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    settings.register_profile("default", shared, derandomize=True, max_examples=DEFAULT)
    settings.register_profile("ci", shared, derandomize=True, max_examples=100)
    settings.register_profile("explore", shared, derandomize=False, max_examples=100 * EXPLORED)
    settings.load_profile("default")


def examples(count: int, **options: Any) -> settings:
    """Return the settings of a test that takes ``count`` examples in the profile ``ci``."""
    profile = settings.get_current_profile_name()
    counts = {"ci": count, "explore": count * EXPLORED}
    return settings(max_examples=counts.get(profile, min(count, DEFAULT)), **options)


UNSHRUNK = (Phase.explicit, Phase.generate)
"""Phases of a test whose examples are whole loads: shrinking one would take minutes."""
