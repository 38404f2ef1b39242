"""A camera frame as it comes: uint8, NHWC, RGB; a quarter of the bytes of the float tensor that it becomes.

The signed config says how: (pixel * scale - mean) / std, in its layout and colour. A client does not choose.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.core.release import Config, Tensor

FLOATS = frozenset({"float32", "float16", "float64"})
RANK = 4


def frame_shape(declared: Tensor, config: Config) -> tuple[int, ...] | None:
    """The NHWC shape of the frames that this input takes beside its own tensors; None when it takes none."""
    if declared.dtype not in FLOATS or len(declared.shape) != RANK:
        return None
    if config.preprocessing.layout == "NHWC":
        return declared.shape
    count, channels, height, width = declared.shape
    return count, height, width, channels


def normalise(frames: NDArray[Any], declared: Tensor, config: Config) -> NDArray[Any]:
    """The input tensor that frames (N, H, W, C) stand for."""
    how = config.preprocessing
    channels = frames.shape[3]
    planar = how.layout == "NCHW"
    shape = frames.transpose(0, 3, 1, 2).shape if planar else frames.shape
    tensor = np.empty(shape, np.dtype(declared.dtype))
    for channel in range(channels):
        source = frames[..., channels - 1 - channel if how.colour == "BGR" else channel]
        target = tensor[:, channel] if planar else tensor[..., channel]
        mean, std = how.mean[channel % len(how.mean)], how.std[channel % len(how.std)]
        np.multiply(source, how.scale / std, out=target, casting="unsafe")
        target -= mean / std
    return tensor
