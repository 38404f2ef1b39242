"""How long whatever failed waits before it is tried again."""

import random

DOUBLINGS = 16


def wait_s(failures: int, first_s: float, longest_s: float) -> float:
    """Seconds after so many failures, at least 1: anything up to a doubling bound.

    Full jitter: a fleet that lost its store or broker at one moment comes back spread out.
    """
    return random.uniform(0, min(longest_s, first_s * 2 ** min(failures - 1, DOUBLINGS)))  # noqa: S311  no secret
