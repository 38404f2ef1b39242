"""The messages of the Open Inference Protocol's gRPC service, with what Triton's clients ask beside it.

1. The table below is the whole transcription: type, name and number of each field, in our own order. A `*` is a list.
   A map is on the wire a list of keys and values, and is one here; nested messages stand at the top.
2. No generated code: classes are made by the protobuf runtime that is installed, in a pool of their own.

Sources: grpc_service.proto and model_config.proto of github.com/triton-inference-server/common.
"""

from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
ONE_OF = "Value"  # the message of which one field is set
_INTEGERS = (f"{sign}INT{bits}" for sign in ("U", "") for bits in (8, 16, 32, 64))
DATA_TYPES = ("INVALID", "BOOL", *_INTEGERS, "FP16", "FP32", "FP64", "STRING", "BF16")

TABLE = """
Empty:
Named: string name 1, string version 2
ServerLiveResponse: bool live 1
ServerReadyResponse: bool ready 1
ModelReadyResponse: bool ready 1
ServerMetadataResponse: string name 1, string version 2, string* extensions 3
TensorMetadata: string name 1, string datatype 2, int64* shape 3
ModelMetadataResponse: string name 1, string* versions 2, string platform 3, TensorMetadata* inputs 4, \
TensorMetadata* outputs 5
Value: bool bool_param 1, int64 int64_param 2, string string_param 3, double double_param 4, uint64 uint64_param 5
Parameter: string key 1, Value value 2
Contents: bool* bool_contents 1, int32* int_contents 2, int64* int64_contents 3, uint32* uint_contents 4, \
uint64* uint64_contents 5, float* fp32_contents 6, double* fp64_contents 7, bytes* bytes_contents 8
Input: string name 1, string datatype 2, int64* shape 3, Parameter* parameters 4, Contents contents 5
Output: string name 1, Parameter* parameters 2
ModelInferRequest: string model_name 1, string model_version 2, string id 3, Parameter* parameters 4, Input* inputs 5, \
Output* outputs 6, bytes* raw_input_contents 7
InferOutput: string name 1, string datatype 2, int64* shape 3, Parameter* parameters 4
ModelInferResponse: string model_name 1, string model_version 2, string id 3, Parameter* parameters 4, \
InferOutput* outputs 5, bytes* raw_output_contents 6
ModelStreamInferResponse: string error_message 1, ModelInferResponse infer_response 2
ConfigInput: string name 1, DataType data_type 2, int64* dims 4
ConfigOutput: string name 1, DataType data_type 2, int64* dims 3
ModelConfig: string name 1, string platform 2, int32 max_batch_size 4, ConfigInput* input 5, ConfigOutput* output 6, \
string backend 17
ModelConfigResponse: ModelConfig config 1
Duration: uint64 count 1, uint64 ns 2
Statistics: Duration success 1, Duration fail 2, Duration queue 3, Duration compute_input 4, Duration compute_infer 5, \
Duration compute_output 6, Duration cache_hit 7, Duration cache_miss 8
BatchStatistics: uint64 batch_size 1, Duration compute_input 2, Duration compute_infer 3, Duration compute_output 4
ModelStatistics: string name 1, string version 2, uint64 last_inference 3, uint64 inference_count 4, \
uint64 execution_count 5, Statistics inference_stats 6, BatchStatistics* batch_stats 7
ModelStatisticsResponse: ModelStatistics* model_stats 1
RepositoryIndexRequest: string repository_name 1, bool ready 2
ModelIndex: string name 1, string version 2, string state 3, string reason 4
RepositoryIndexResponse: ModelIndex* models 1
Region: string name 1, string key 2, uint64 offset 3, uint64 byte_size 4
RegionEntry: string key 1, Region value 2
SystemSharedMemoryStatusResponse: RegionEntry* regions 1
"""


def _file() -> FileDescriptorProto:
    file = FileDescriptorProto(name="edge_inference.proto", package=PACKAGE, syntax="proto3")
    data_type = file.enum_type.add(name="DataType")
    for place, name in enumerate(DATA_TYPES):
        data_type.value.add(name=f"TYPE_{name}", number=place)
    for line in TABLE.strip().splitlines():
        name, _, fields = line.partition(":")
        message = file.message_type.add(name=name)
        if name == ONE_OF:
            message.oneof_decl.add(name="choice")
        for field in filter(None, fields.split(",")):
            kind, label, number = field.split()
            added = message.field.add(name=label, number=int(number), label=3 if kind.endswith("*") else 1)
            _set_type(added, kind.removesuffix("*"))
            if name == ONE_OF:
                added.oneof_index = 0
    return file


def _set_type(field: FieldDescriptorProto, kind: str) -> None:
    if kind[0].islower():
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    else:
        field.type_name = f".{PACKAGE}.{kind}"  # message or enum: the pool finds out


_POOL = DescriptorPool()
_POOL.Add(_file())


def message(name: str) -> Any:
    """The class of a message."""
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))
