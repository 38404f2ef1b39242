"""Which signed metadata runs out, told in time and in the same words until the next stage.

Warned is 30, 7 and 1 days before. What lives days and is renewed every few hours is warned of when renewing must have
stopped long ago: snapshot at 7 days, timestamp at 1.
"""

from collections.abc import Mapping
from datetime import datetime

DAYS = (1, 7, 30)
SHORT: Mapping[str, tuple[int, ...]] = {"timestamp": (1,), "snapshot": (1, 7)}


def expiring(expiries: Mapping[str, datetime], now: datetime) -> tuple[str, ...]:
    """A sentence for each role that has expired or does so soon, the first one first."""
    found = []
    for role, end in sorted(expiries.items(), key=lambda item: item[1]):
        left = (end - now).total_seconds() / 86_400
        stage = next((days for days in SHORT.get(role, DAYS) if left <= days), None)
        if stage is not None:
            when = "has expired" if left <= 0 else f"expires within {stage} d"
            cure = "run `edge-fleet refresh`" if role in SHORT else f"sign it anew: `edge-provision keys renew {role}`"
            found.append(f"{role} metadata {when} ({end:%Y-%m-%d}): {cure}")
    return tuple(found)
