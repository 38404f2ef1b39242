"""Vision models by name: load one, look up what it is and how to run it, benchmark it, compare two versions.

    from models import load_model
    session = load_model("face_detection_retinaface_widerface_20250628")

Importing this package imports no inference library; loading a model imports the one that runs it.
"""

from models.benchmark import benchmark_model, save_benchmark
from models.comparison import compare_model_versions
from models.folder import ModelNotFoundError, open_folder
from models.loading import get_model_metadata, load_model, load_model_config
from models.naming import format_name, parse_name
from models.registry import Registry, ReleaseName
from models.storage import compress_weights

__all__ = [
    "ModelNotFoundError",
    "Registry",
    "ReleaseName",
    "benchmark_model",
    "compare_model_versions",
    "compress_weights",
    "format_name",
    "get_model_metadata",
    "load_model",
    "load_model_config",
    "open_folder",
    "parse_name",
    "save_benchmark",
]
