"""Golden samples are made when a release is checked; devices only read them (agent/backends/golden.py)."""

import io
from collections.abc import Sequence

import numpy as np

from agent.backends.golden import Sample


def save_golden(samples: Sequence[Sample]) -> bytes:
    """The samples as an `.npz` file, each with an axis of its own in front."""
    stacked = {f"in.{name}": np.stack([sample.feeds[name] for sample in samples]) for name in samples[0].feeds}
    stacked |= {f"out.{name}": np.stack([sample.outputs[name] for sample in samples]) for name in samples[0].outputs}
    file = io.BytesIO()
    np.savez_compressed(file, **stacked)  # type: ignore[arg-type] # numpy's own stub mixes a flag with the arrays
    return file.getvalue()
