"""``ktrdr probe``: where the questions to real gateways are now.

Not here: the questions (``tests/live``).
"""

from ktrdr_pipelines.errors import UsageError


def probe() -> None:
    """Say how to ask a gateway about what is believed of real ones and not certain.

    The questions are tests: a clone of the project runs them. Exit code: 2.
    """
    raise UsageError(
        "ktrdr probe",
        came="the questions to real gateways are tests now",
        remedy="In a clone of the project, with IB_HOST and IB_PORT naming the gateway: "
        "python -m pytest tests/live -m live -n 0",
    )
