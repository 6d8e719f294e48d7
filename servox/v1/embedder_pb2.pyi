from servox.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Pooling(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POOLING_UNSPECIFIED: _ClassVar[Pooling]
    POOLING_MEAN: _ClassVar[Pooling]
    POOLING_MEAN_STD: _ClassVar[Pooling]
    POOLING_FRAMES: _ClassVar[Pooling]
POOLING_UNSPECIFIED: Pooling
POOLING_MEAN: Pooling
POOLING_MEAN_STD: Pooling
POOLING_FRAMES: Pooling

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("bundle", "rate_hz", "frames_per_s", "dims", "layers", "default_layer", "min_duration_ms", "max_duration_ms", "max_message_bytes", "runtime", "device", "parity", "version")
    class ParityEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    RATE_HZ_FIELD_NUMBER: _ClassVar[int]
    FRAMES_PER_S_FIELD_NUMBER: _ClassVar[int]
    DIMS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_LAYER_FIELD_NUMBER: _ClassVar[int]
    MIN_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PARITY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    bundle: _common_pb2.Bundle
    rate_hz: int
    frames_per_s: float
    dims: int
    layers: _containers.RepeatedScalarFieldContainer[int]
    default_layer: int
    min_duration_ms: int
    max_duration_ms: int
    max_message_bytes: int
    runtime: str
    device: str
    parity: _containers.ScalarMap[str, float]
    version: str
    def __init__(self, bundle: _Optional[_Union[_common_pb2.Bundle, _Mapping]] = ..., rate_hz: _Optional[int] = ..., frames_per_s: _Optional[float] = ..., dims: _Optional[int] = ..., layers: _Optional[_Iterable[int]] = ..., default_layer: _Optional[int] = ..., min_duration_ms: _Optional[int] = ..., max_duration_ms: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., runtime: _Optional[str] = ..., device: _Optional[str] = ..., parity: _Optional[_Mapping[str, float]] = ..., version: _Optional[str] = ...) -> None: ...

class EmbedRequest(_message.Message):
    __slots__ = ("audio", "pooling", "layers", "truncate_ms", "patience_ms")
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_MS_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_MS_FIELD_NUMBER: _ClassVar[int]
    audio: _common_pb2.Audio
    pooling: Pooling
    layers: _containers.RepeatedScalarFieldContainer[int]
    truncate_ms: int
    patience_ms: int
    def __init__(self, audio: _Optional[_Union[_common_pb2.Audio, _Mapping]] = ..., pooling: _Optional[_Union[Pooling, str]] = ..., layers: _Optional[_Iterable[int]] = ..., truncate_ms: _Optional[int] = ..., patience_ms: _Optional[int] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("embedding", "layers", "bundle", "timings", "duration_ms", "truncated")
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    embedding: _common_pb2.Array
    layers: _containers.RepeatedScalarFieldContainer[int]
    bundle: _common_pb2.Bundle
    timings: _common_pb2.Timings
    duration_ms: int
    truncated: bool
    def __init__(self, embedding: _Optional[_Union[_common_pb2.Array, _Mapping]] = ..., layers: _Optional[_Iterable[int]] = ..., bundle: _Optional[_Union[_common_pb2.Bundle, _Mapping]] = ..., timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ..., duration_ms: _Optional[int] = ..., truncated: _Optional[bool] = ...) -> None: ...

class EmbedStreamRequest(_message.Message):
    __slots__ = ("id", "request")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    id: str
    request: EmbedRequest
    def __init__(self, id: _Optional[str] = ..., request: _Optional[_Union[EmbedRequest, _Mapping]] = ...) -> None: ...

class EmbedStreamResponse(_message.Message):
    __slots__ = ("id", "response", "failure")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    id: str
    response: EmbedResponse
    failure: _common_pb2.Failure
    def __init__(self, id: _Optional[str] = ..., response: _Optional[_Union[EmbedResponse, _Mapping]] = ..., failure: _Optional[_Union[_common_pb2.Failure, _Mapping]] = ...) -> None: ...
