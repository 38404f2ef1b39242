"""A model of MLServer that runs ONNX Runtime as our seat does. Runs in MLServer's own environment."""

import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    """The file that `uri` names, on the CPU with the same options as our seat."""

    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = int(self.settings.parameters.extra["threads"]), 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(self.settings.parameters.uri, options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        feeds = {one.name: NumpyCodec.decode_input(one) for one in payload.inputs}
        names = [one.name for one in self._session.get_outputs()]
        outputs = self._session.run(names, feeds)
        answers = [NumpyCodec.encode_output(name, output) for name, output in zip(names, outputs, strict=True)]
        return InferenceResponse(model_name=self.name, outputs=answers)
