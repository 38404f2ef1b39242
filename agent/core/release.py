"""A release says what it is (metadata, JSON) and how to run it (config, YAML).

The seed's keys stand at the top level with the seed's units: version, accuracy, inference_time in
milliseconds and model_size_mb in metadata; input_size and confidence_threshold in config. Both documents
may carry keys that a device does not know; gates, tensors and compatibility may not: a typing mistake there
would switch a check off. The desk refuses such keys in a config (models/keys.py).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, field

from agent.core.documents import END, Document, OpenDocument

Dtype = Literal[
    "float32", "float16", "float64", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "bool"
]
Dimension = Annotated[int, Meta(ge=-1)]  # -1: any size
Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
BackendName = Literal["tensorrt", "cuda", "openvino", "cpu"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]


class Ref(Document, order=True):
    """One release: its name, and the SHA-256 of its sealed bytes. One name is one set of bytes for ever."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,126}" + END)]
    digest: str

    def __str__(self) -> str:
        return self.name


class Tensor(Document):
    """A declared input or output."""

    name: Annotated[str, Meta(min_length=1)]
    shape: tuple[Dimension, ...]
    dtype: Dtype


class Compatibility(Document):
    """What a device needs to run the release; checked before loading."""

    opset: Annotated[int, Meta(ge=1)]
    ir_version: int = 8
    minimum_runtime: Mapping[str, str] = field(default_factory=dict)  # runtime name: lowest version
    memory_mb: NonNegative = 0.0
    platforms: tuple[str, ...] = ()


class Metadata(OpenDocument):
    """What a release is."""

    name: str
    version: str
    task: str
    architecture: str
    dataset: str
    accuracy: Share
    inference_time: NonNegative  # ms, measured when publishing
    model_size_mb: NonNegative
    inputs: Annotated[tuple[Tensor, ...], Meta(min_length=1)]
    outputs: Annotated[tuple[Tensor, ...], Meta(min_length=1)]
    compatibility: Compatibility
    accuracy_metric: str = ""
    accuracy_dataset: str = ""
    inference_time_on: str = ""
    classes: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""


class Tolerance(Document):
    """An output passes when every |difference| <= atol + rtol * |reference|."""

    atol: NonNegative = 1e-3
    rtol: NonNegative = 1e-3


class Detections(Document):
    """A detector's answers agree when all but so few detections have a partner: see agent/backends/agreement.py."""

    boxes: str  # output of boxes: [..., n, 4], corners
    scores: str  # output of scores: [..., n] or [..., n, classes]
    min_score: Share = 0.5
    min_iou: Share = 0.9
    max_score: Share = 0.05  # between partners
    max_alone: Share = 0.0  # of the detections of both answers


class Gates(Document):
    """What a candidate must reach on the device before it may serve."""

    min_fps: NonNegative = 1.0
    max_latency_p95_ms: Positive = 10_000.0
    parity: Mapping[str, Tolerance] = field(default_factory=dict)  # output name: tolerance
    detections: Detections | None = None  # beside parity, for detectors
    max_memory_mb: Positive = 4096.0
    min_accuracy: Share = 0.0  # against metadata.accuracy, when publishing
    max_error_rate: Share = 0.01  # of the requests during the soak

    def tolerance(self, output: str) -> Tolerance:
        """The tolerance for one output."""
        return self.parity.get(output, Tolerance())


class Preprocessing(OpenDocument):
    """How a camera frame becomes the input tensor: (pixel * scale - mean) / std, in this layout and colour."""

    layout: Literal["NCHW", "NHWC"] = "NCHW"
    colour: Literal["RGB", "BGR", "GRAY"] = "RGB"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)


class Config(OpenDocument):
    """How to run a release."""

    input_size: tuple[int, int]  # height, width in pixels
    confidence_threshold: Share
    batch_size: Annotated[int, Meta(ge=1)] = 1
    precision: Precision = "fp32"
    variants: tuple[Precision, ...] = ()  # precisions in which the release holds its weights once more
    preprocessing: Preprocessing = Preprocessing()
    postprocessing: Mapping[str, Any] = field(default_factory=dict)
    optimization: Mapping[str, Any] = field(default_factory=dict)  # backend name: its options
    backends: Annotated[tuple[BackendName, ...], Meta(min_length=1)] = ("tensorrt", "cuda", "openvino", "cpu")
    gates: Gates = Gates()
    warm_up: Annotated[int, Meta(ge=1)] = 10

    def options(self, backend: str) -> Mapping[str, Any]:
        """The optimisation settings for one backend."""
        options = self.optimization.get(backend, {})
        return options if isinstance(options, Mapping) else {}

    def precisions_on(self, backend: str) -> tuple[str, ...]:
        """The precisions that the release asks for on one backend, in order: its own, or the config's."""
        return as_list(self.options(backend).get("precision", tuple(dict.fromkeys((self.precision, *self.variants)))))


def as_list(value: Any) -> tuple[Any, ...]:
    """What a key that takes one value or a list of them holds."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)
