"""Not here: seats that fail do so on ONNX Runtime alone."""

raise ImportError("no OpenVINO beside seats that fail")
