"""No OpenVINO, as on a device without that extra: whoever has this folder on its PYTHONPATH finds it first."""

raise ModuleNotFoundError("No module named 'openvino'", name="openvino")
