"""What stands around a face detector and a face embedder: pictures in, faces out, as their authors do it.

RetinaFace (arXiv 1905.00641), with the priors and variances of its exported MobileNet0.25; ArcFace's five-point template
of 112 x 112 pixels (arXiv 1801.07698), fitted by Umeyama's method (IEEE PAMI 13(4), 1991).
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 640  # pixels of RetinaFace's input
STEPS = {8: (10, 20), 16: (32, 64), 32: (128, 256)}  # pixels between priors: their sizes
CENTRE, SIZE = 0.1, 0.2  # variances of a box
MEAN_BGR = (104.0, 117.0, 123.0)
SCORE, OVERLAP = 0.6, 0.4

CROP = 112  # pixels of the embedder's input
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


@dataclass(frozen=True, slots=True)
class Faces:
    """Boxes (xyxy) and five landmarks each, in pixels of the input; the surest first."""

    boxes: np.ndarray  # [n, 4]
    scores: np.ndarray  # [n]
    landmarks: np.ndarray  # [n, 5, 2]


def letterbox(path):
    """A picture scaled into the upper left corner of the input; uint8 [1, 640, 640, 3], RGB."""
    picture = Image.open(path).convert("RGB")
    scale = SIDE / max(picture.size)
    fitted = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (SIDE, SIDE))
    canvas.paste(fitted)
    return np.asarray(canvas)[None]


def detector_tensor(frames):
    """The detector's input, float32 [n, 3, 640, 640]: BGR less its mean."""
    return np.ascontiguousarray((frames[..., ::-1] - np.float32(MEAN_BGR)).transpose(0, 3, 1, 2))


def embedder_tensor(frames):
    """The embedder's input, float32 [n, 3, 112, 112]: RGB from -1 to 1."""
    return np.ascontiguousarray(((frames - np.float32(127.5)) / np.float32(128)).transpose(0, 3, 1, 2))


def priors():
    """Centre and size of every prior box, as shares of the input: [16800, 4]."""
    grids = []
    for step, sizes in STEPS.items():
        at = (np.arange(SIDE // step) + 0.5) * step
        y, x, size = np.meshgrid(at, at, sizes, indexing="ij")
        grids.append(np.stack([x, y, size, size], axis=-1).reshape(-1, 4))
    return np.concatenate(grids) / SIDE


def find_faces(outputs):
    """The faces in one answer of the detector: `loc`, `conf` and `landms` by name."""
    prior = priors()
    scores = outputs["conf"][0, :, 1]
    sure = scores > SCORE
    loc, landms, prior, scores = outputs["loc"][0][sure], outputs["landms"][0][sure], prior[sure], scores[sure]
    centre = prior[:, :2] + loc[:, :2] * CENTRE * prior[:, 2:]
    half = prior[:, 2:] * np.exp(loc[:, 2:] * SIZE) / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1) * SIDE
    points = (prior[:, None, :2] + landms.reshape(-1, 5, 2) * CENTRE * prior[:, None, 2:]) * SIDE
    kept = suppress(boxes, scores)
    return Faces(boxes[kept], scores[kept], points[kept])


def suppress(boxes, scores):
    """Indices of the boxes that no surer one overlaps, the surest first."""
    kept, left = [], np.argsort(-scores)
    while left.size:
        kept.append(left[0])
        left = left[1:][overlaps(boxes[left[:1]], boxes[left[1:]])[0] <= OVERLAP]
    return kept


def overlaps(some, others):
    """Intersection over union of every pair: [len(some), len(others)]."""
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (some, others)]
    return both / (areas[0][:, None] + areas[1][None, :] - both)


def crops(path, landmarks):
    """Each face of a picture, from its own pixels, turned and scaled onto the template; uint8 [n, 112, 112, 3]."""
    picture = Image.open(path).convert("RGB")
    scale = max(picture.size) / SIDE
    return np.stack([np.asarray(crop(picture, points)) for points in (landmarks + 0.5) * scale - 0.5])


def crop(picture, points):
    """One face, by the similarity that brings the template's points closest to its own."""
    turn, shift = similarity(TEMPLATE, points)
    matrix = (*turn[0], shift[0], *turn[1], shift[1])  # from the crop's pixels to the picture's
    return picture.transform((CROP, CROP), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def similarity(source, target):
    """Scaled rotation and shift that bring `source` closest to `target` in the sense of least squares."""
    middle, aim = source.mean(0), target.mean(0)
    u, stretch, v = np.linalg.svd((target - aim).T @ (source - middle) / len(source))
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    turn = (u * sign) @ v * ((stretch * sign).sum() / (source - middle).var(0).sum())
    return turn, aim - turn @ middle


def mirrored_and_dimmed(frames):
    """The same faces, mirrored and with seven tenths of the light."""
    return (frames[:, :, ::-1] * 0.7).astype(np.uint8)


def cosines(some, others):
    """Cosine of every pair of embeddings."""
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (some, others)]
    return unit[0] @ unit[1].T
