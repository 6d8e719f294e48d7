from servox.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HeadKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HEAD_KIND_UNSPECIFIED: _ClassVar[HeadKind]
    HEAD_KIND_MLP: _ClassVar[HeadKind]
    HEAD_KIND_LOGISTIC: _ClassVar[HeadKind]
    HEAD_KIND_FRAME_MLP: _ClassVar[HeadKind]

class Abstention(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ABSTENTION_UNSPECIFIED: _ClassVar[Abstention]
    ABSTENTION_SILENCE: _ClassVar[Abstention]
    ABSTENTION_TOO_SHORT: _ClassVar[Abstention]
    ABSTENTION_OUT_OF_DISTRIBUTION: _ClassVar[Abstention]

class CalibrationState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CALIBRATION_STATE_UNSPECIFIED: _ClassVar[CalibrationState]
    CALIBRATION_STATE_COLLECTING: _ClassVar[CalibrationState]
    CALIBRATION_STATE_READY: _ClassVar[CalibrationState]
    CALIBRATION_STATE_FROZEN: _ClassVar[CalibrationState]

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_PRODUCTION: _ClassVar[Stage]
    STAGE_CANARY: _ClassVar[Stage]
    STAGE_SHADOW: _ClassVar[Stage]
HEAD_KIND_UNSPECIFIED: HeadKind
HEAD_KIND_MLP: HeadKind
HEAD_KIND_LOGISTIC: HeadKind
HEAD_KIND_FRAME_MLP: HeadKind
ABSTENTION_UNSPECIFIED: Abstention
ABSTENTION_SILENCE: Abstention
ABSTENTION_TOO_SHORT: Abstention
ABSTENTION_OUT_OF_DISTRIBUTION: Abstention
CALIBRATION_STATE_UNSPECIFIED: CalibrationState
CALIBRATION_STATE_COLLECTING: CalibrationState
CALIBRATION_STATE_READY: CalibrationState
CALIBRATION_STATE_FROZEN: CalibrationState
STAGE_UNSPECIFIED: Stage
STAGE_PRODUCTION: Stage
STAGE_CANARY: Stage
STAGE_SHADOW: Stage

class HeadSpec(_message.Message):
    __slots__ = ("name", "kind", "bundle_digest", "layer", "clip_set_url", "classes", "seed", "calibrate", "settings")
    class SettingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    CLIP_SET_URL_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CALIBRATE_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: HeadKind
    bundle_digest: str
    layer: int
    clip_set_url: str
    classes: _containers.RepeatedScalarFieldContainer[str]
    seed: int
    calibrate: bool
    settings: _containers.ScalarMap[str, float]
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[HeadKind, str]] = ..., bundle_digest: _Optional[str] = ..., layer: _Optional[int] = ..., clip_set_url: _Optional[str] = ..., classes: _Optional[_Iterable[str]] = ..., seed: _Optional[int] = ..., calibrate: _Optional[bool] = ..., settings: _Optional[_Mapping[str, float]] = ...) -> None: ...

class TrainRequest(_message.Message):
    __slots__ = ("store_url", "heads")
    STORE_URL_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    store_url: str
    heads: _containers.RepeatedCompositeFieldContainer[HeadSpec]
    def __init__(self, store_url: _Optional[str] = ..., heads: _Optional[_Iterable[_Union[HeadSpec, _Mapping]]] = ...) -> None: ...

class TrainProgress(_message.Message):
    __slots__ = ("heads_done", "heads_total", "fraction", "eta_ms")
    HEADS_DONE_FIELD_NUMBER: _ClassVar[int]
    HEADS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    ETA_MS_FIELD_NUMBER: _ClassVar[int]
    heads_done: int
    heads_total: int
    fraction: float
    eta_ms: int
    def __init__(self, heads_done: _Optional[int] = ..., heads_total: _Optional[int] = ..., fraction: _Optional[float] = ..., eta_ms: _Optional[int] = ...) -> None: ...

class TrainedHead(_message.Message):
    __slots__ = ("index", "head", "reused")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    REUSED_FIELD_NUMBER: _ClassVar[int]
    index: int
    head: _common_pb2.Head
    reused: bool
    def __init__(self, index: _Optional[int] = ..., head: _Optional[_Union[_common_pb2.Head, _Mapping]] = ..., reused: _Optional[bool] = ...) -> None: ...

class FailedHead(_message.Message):
    __slots__ = ("index", "failure")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    index: int
    failure: _common_pb2.Failure
    def __init__(self, index: _Optional[int] = ..., failure: _Optional[_Union[_common_pb2.Failure, _Mapping]] = ...) -> None: ...

class TrainResponse(_message.Message):
    __slots__ = ("progress", "trained", "failed")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    TRAINED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    progress: TrainProgress
    trained: TrainedHead
    failed: FailedHead
    def __init__(self, progress: _Optional[_Union[TrainProgress, _Mapping]] = ..., trained: _Optional[_Union[TrainedHead, _Mapping]] = ..., failed: _Optional[_Union[FailedHead, _Mapping]] = ...) -> None: ...

class StoredEmbeddings(_message.Message):
    __slots__ = ("store_url", "clip_set_url")
    STORE_URL_FIELD_NUMBER: _ClassVar[int]
    CLIP_SET_URL_FIELD_NUMBER: _ClassVar[int]
    store_url: str
    clip_set_url: str
    def __init__(self, store_url: _Optional[str] = ..., clip_set_url: _Optional[str] = ...) -> None: ...

class Standardisation(_message.Message):
    __slots__ = ("mean", "std")
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    mean: _containers.RepeatedScalarFieldContainer[float]
    std: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, mean: _Optional[_Iterable[float]] = ..., std: _Optional[_Iterable[float]] = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("head", "bundle_digest", "embeddings", "stored", "variants")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    head: str
    bundle_digest: str
    embeddings: _common_pb2.Array
    stored: StoredEmbeddings
    variants: _containers.RepeatedCompositeFieldContainer[Standardisation]
    def __init__(self, head: _Optional[str] = ..., bundle_digest: _Optional[str] = ..., embeddings: _Optional[_Union[_common_pb2.Array, _Mapping]] = ..., stored: _Optional[_Union[StoredEmbeddings, _Mapping]] = ..., variants: _Optional[_Iterable[_Union[Standardisation, _Mapping]]] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("head", "classes", "logits", "temperature", "probabilities", "bias")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    head: _common_pb2.Head
    classes: _containers.RepeatedScalarFieldContainer[str]
    logits: _common_pb2.Array
    temperature: float
    probabilities: _common_pb2.Array
    bias: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, head: _Optional[_Union[_common_pb2.Head, _Mapping]] = ..., classes: _Optional[_Iterable[str]] = ..., logits: _Optional[_Union[_common_pb2.Array, _Mapping]] = ..., temperature: _Optional[float] = ..., probabilities: _Optional[_Union[_common_pb2.Array, _Mapping]] = ..., bias: _Optional[_Iterable[float]] = ...) -> None: ...

class Prior(_message.Message):
    __slots__ = ("kind", "probabilities")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Prior.Kind]
        KIND_TRAIN: _ClassVar[Prior.Kind]
        KIND_UNIFORM: _ClassVar[Prior.Kind]
        KIND_EXPLICIT: _ClassVar[Prior.Kind]
        KIND_ESTIMATED: _ClassVar[Prior.Kind]
        KIND_ESTIMATED_EM: _ClassVar[Prior.Kind]
        KIND_TENANT: _ClassVar[Prior.Kind]
    KIND_UNSPECIFIED: Prior.Kind
    KIND_TRAIN: Prior.Kind
    KIND_UNIFORM: Prior.Kind
    KIND_EXPLICIT: Prior.Kind
    KIND_ESTIMATED: Prior.Kind
    KIND_ESTIMATED_EM: Prior.Kind
    KIND_TENANT: Prior.Kind
    class ProbabilitiesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    kind: Prior.Kind
    probabilities: _containers.ScalarMap[str, float]
    def __init__(self, kind: _Optional[_Union[Prior.Kind, str]] = ..., probabilities: _Optional[_Mapping[str, float]] = ...) -> None: ...

class RecognizeConfig(_message.Message):
    __slots__ = ("head", "prior", "window_ms", "hop_ms", "every_window", "tenant", "uncalibrated", "purpose", "session")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    PRIOR_FIELD_NUMBER: _ClassVar[int]
    WINDOW_MS_FIELD_NUMBER: _ClassVar[int]
    HOP_MS_FIELD_NUMBER: _ClassVar[int]
    EVERY_WINDOW_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    UNCALIBRATED_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    head: str
    prior: Prior
    window_ms: int
    hop_ms: int
    every_window: bool
    tenant: str
    uncalibrated: bool
    purpose: str
    session: str
    def __init__(self, head: _Optional[str] = ..., prior: _Optional[_Union[Prior, _Mapping]] = ..., window_ms: _Optional[int] = ..., hop_ms: _Optional[int] = ..., every_window: _Optional[bool] = ..., tenant: _Optional[str] = ..., uncalibrated: _Optional[bool] = ..., purpose: _Optional[str] = ..., session: _Optional[str] = ...) -> None: ...

class ClassProbability(_message.Message):
    __slots__ = ("label", "probability")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    label: str
    probability: float
    def __init__(self, label: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ("start_ms", "end_ms", "label", "confidence", "probabilities", "index", "abstention", "speech", "novelty", "uncalibrated")
    START_MS_FIELD_NUMBER: _ClassVar[int]
    END_MS_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ABSTENTION_FIELD_NUMBER: _ClassVar[int]
    SPEECH_FIELD_NUMBER: _ClassVar[int]
    NOVELTY_FIELD_NUMBER: _ClassVar[int]
    UNCALIBRATED_FIELD_NUMBER: _ClassVar[int]
    start_ms: int
    end_ms: int
    label: str
    confidence: float
    probabilities: _containers.RepeatedCompositeFieldContainer[ClassProbability]
    index: int
    abstention: Abstention
    speech: float
    novelty: float
    uncalibrated: _containers.RepeatedCompositeFieldContainer[ClassProbability]
    def __init__(self, start_ms: _Optional[int] = ..., end_ms: _Optional[int] = ..., label: _Optional[str] = ..., confidence: _Optional[float] = ..., probabilities: _Optional[_Iterable[_Union[ClassProbability, _Mapping]]] = ..., index: _Optional[int] = ..., abstention: _Optional[_Union[Abstention, str]] = ..., speech: _Optional[float] = ..., novelty: _Optional[float] = ..., uncalibrated: _Optional[_Iterable[_Union[ClassProbability, _Mapping]]] = ...) -> None: ...

class UsedCalibration(_message.Message):
    __slots__ = ("tenant", "state", "version", "clips", "shift", "relevance")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CLIPS_FIELD_NUMBER: _ClassVar[int]
    SHIFT_FIELD_NUMBER: _ClassVar[int]
    RELEVANCE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    state: CalibrationState
    version: int
    clips: int
    shift: float
    relevance: float
    def __init__(self, tenant: _Optional[str] = ..., state: _Optional[_Union[CalibrationState, str]] = ..., version: _Optional[int] = ..., clips: _Optional[int] = ..., shift: _Optional[float] = ..., relevance: _Optional[float] = ...) -> None: ...

class RecognizeRequest(_message.Message):
    __slots__ = ("audio", "config")
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    audio: _common_pb2.Audio
    config: RecognizeConfig
    def __init__(self, audio: _Optional[_Union[_common_pb2.Audio, _Mapping]] = ..., config: _Optional[_Union[RecognizeConfig, _Mapping]] = ...) -> None: ...

class RecognizeResponse(_message.Message):
    __slots__ = ("overall", "windows", "head", "bundle", "prior", "timings", "calibration", "stage", "notice")
    OVERALL_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    PRIOR_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    overall: Window
    windows: _containers.RepeatedCompositeFieldContainer[Window]
    head: _common_pb2.Head
    bundle: _common_pb2.Bundle
    prior: Prior
    timings: _common_pb2.Timings
    calibration: UsedCalibration
    stage: Stage
    notice: str
    def __init__(self, overall: _Optional[_Union[Window, _Mapping]] = ..., windows: _Optional[_Iterable[_Union[Window, _Mapping]]] = ..., head: _Optional[_Union[_common_pb2.Head, _Mapping]] = ..., bundle: _Optional[_Union[_common_pb2.Bundle, _Mapping]] = ..., prior: _Optional[_Union[Prior, _Mapping]] = ..., timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ..., calibration: _Optional[_Union[UsedCalibration, _Mapping]] = ..., stage: _Optional[_Union[Stage, str]] = ..., notice: _Optional[str] = ...) -> None: ...

class RecognizeStreamRequest(_message.Message):
    __slots__ = ("config", "chunk")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    config: StreamConfig
    chunk: bytes
    def __init__(self, config: _Optional[_Union[StreamConfig, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class StreamConfig(_message.Message):
    __slots__ = ("recognize", "rate_hz", "channels", "format", "container", "next_window")
    RECOGNIZE_FIELD_NUMBER: _ClassVar[int]
    RATE_HZ_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    NEXT_WINDOW_FIELD_NUMBER: _ClassVar[int]
    recognize: RecognizeConfig
    rate_hz: int
    channels: int
    format: _common_pb2.SampleFormat
    container: bool
    next_window: int
    def __init__(self, recognize: _Optional[_Union[RecognizeConfig, _Mapping]] = ..., rate_hz: _Optional[int] = ..., channels: _Optional[int] = ..., format: _Optional[_Union[_common_pb2.SampleFormat, str]] = ..., container: _Optional[bool] = ..., next_window: _Optional[int] = ...) -> None: ...

class RecognizeStreamResponse(_message.Message):
    __slots__ = ("window", "head", "bundle", "prior", "calibration", "stage", "notice")
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    PRIOR_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    window: Window
    head: _common_pb2.Head
    bundle: _common_pb2.Bundle
    prior: Prior
    calibration: UsedCalibration
    stage: Stage
    notice: str
    def __init__(self, window: _Optional[_Union[Window, _Mapping]] = ..., head: _Optional[_Union[_common_pb2.Head, _Mapping]] = ..., bundle: _Optional[_Union[_common_pb2.Bundle, _Mapping]] = ..., prior: _Optional[_Union[Prior, _Mapping]] = ..., calibration: _Optional[_Union[UsedCalibration, _Mapping]] = ..., stage: _Optional[_Union[Stage, str]] = ..., notice: _Optional[str] = ...) -> None: ...

class ListHeadsRequest(_message.Message):
    __slots__ = ("prefix",)
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    def __init__(self, prefix: _Optional[str] = ...) -> None: ...

class HeadSummary(_message.Message):
    __slots__ = ("head", "kind", "classes", "production", "created_unix_ms", "stage")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    PRODUCTION_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    head: _common_pb2.Head
    kind: HeadKind
    classes: _containers.RepeatedScalarFieldContainer[str]
    production: bool
    created_unix_ms: int
    stage: Stage
    def __init__(self, head: _Optional[_Union[_common_pb2.Head, _Mapping]] = ..., kind: _Optional[_Union[HeadKind, str]] = ..., classes: _Optional[_Iterable[str]] = ..., production: _Optional[bool] = ..., created_unix_ms: _Optional[int] = ..., stage: _Optional[_Union[Stage, str]] = ...) -> None: ...

class ListHeadsResponse(_message.Message):
    __slots__ = ("heads",)
    HEADS_FIELD_NUMBER: _ClassVar[int]
    heads: _containers.RepeatedCompositeFieldContainer[HeadSummary]
    def __init__(self, heads: _Optional[_Iterable[_Union[HeadSummary, _Mapping]]] = ...) -> None: ...

class GetHeadRequest(_message.Message):
    __slots__ = ("head",)
    HEAD_FIELD_NUMBER: _ClassVar[int]
    head: str
    def __init__(self, head: _Optional[str] = ...) -> None: ...

class GetHeadResponse(_message.Message):
    __slots__ = ("summary", "card_json", "evaluation_json")
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    CARD_JSON_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_JSON_FIELD_NUMBER: _ClassVar[int]
    summary: HeadSummary
    card_json: str
    evaluation_json: str
    def __init__(self, summary: _Optional[_Union[HeadSummary, _Mapping]] = ..., card_json: _Optional[str] = ..., evaluation_json: _Optional[str] = ...) -> None: ...

class PromoteRequest(_message.Message):
    __slots__ = ("head", "replaces", "reason")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    REPLACES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    head: str
    replaces: str
    reason: str
    def __init__(self, head: _Optional[str] = ..., replaces: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class GateResult(_message.Message):
    __slots__ = ("rule", "passed", "found")
    RULE_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    rule: str
    passed: bool
    found: str
    def __init__(self, rule: _Optional[str] = ..., passed: _Optional[bool] = ..., found: _Optional[str] = ...) -> None: ...

class PromoteResponse(_message.Message):
    __slots__ = ("summary", "gate")
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    summary: HeadSummary
    gate: _containers.RepeatedCompositeFieldContainer[GateResult]
    def __init__(self, summary: _Optional[_Union[HeadSummary, _Mapping]] = ..., gate: _Optional[_Iterable[_Union[GateResult, _Mapping]]] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("name", "reason", "replaces")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REPLACES_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    replaces: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ..., replaces: _Optional[str] = ...) -> None: ...

class RollbackResponse(_message.Message):
    __slots__ = ("summary",)
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    summary: HeadSummary
    def __init__(self, summary: _Optional[_Union[HeadSummary, _Mapping]] = ...) -> None: ...

class StoreEvaluationRequest(_message.Message):
    __slots__ = ("head", "evaluation_json")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_JSON_FIELD_NUMBER: _ClassVar[int]
    head: str
    evaluation_json: str
    def __init__(self, head: _Optional[str] = ..., evaluation_json: _Optional[str] = ...) -> None: ...

class StoreEvaluationResponse(_message.Message):
    __slots__ = ("summary", "gate")
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    summary: HeadSummary
    gate: _containers.RepeatedCompositeFieldContainer[GateResult]
    def __init__(self, summary: _Optional[_Union[HeadSummary, _Mapping]] = ..., gate: _Optional[_Iterable[_Union[GateResult, _Mapping]]] = ...) -> None: ...

class HeadEvent(_message.Message):
    __slots__ = ("time_unix_ms", "action", "version", "replaced", "actor", "reason", "gate")
    class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ACTION_UNSPECIFIED: _ClassVar[HeadEvent.Action]
        ACTION_PROMOTED: _ClassVar[HeadEvent.Action]
        ACTION_ROLLED_BACK: _ClassVar[HeadEvent.Action]
        ACTION_ROLLED_OUT: _ClassVar[HeadEvent.Action]
        ACTION_REFUSED: _ClassVar[HeadEvent.Action]
        ACTION_EVALUATED: _ClassVar[HeadEvent.Action]
        ACTION_DELETED: _ClassVar[HeadEvent.Action]
        ACTION_FOUND: _ClassVar[HeadEvent.Action]
    ACTION_UNSPECIFIED: HeadEvent.Action
    ACTION_PROMOTED: HeadEvent.Action
    ACTION_ROLLED_BACK: HeadEvent.Action
    ACTION_ROLLED_OUT: HeadEvent.Action
    ACTION_REFUSED: HeadEvent.Action
    ACTION_EVALUATED: HeadEvent.Action
    ACTION_DELETED: HeadEvent.Action
    ACTION_FOUND: HeadEvent.Action
    TIME_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    time_unix_ms: int
    action: HeadEvent.Action
    version: str
    replaced: str
    actor: str
    reason: str
    gate: _containers.RepeatedCompositeFieldContainer[GateResult]
    def __init__(self, time_unix_ms: _Optional[int] = ..., action: _Optional[_Union[HeadEvent.Action, str]] = ..., version: _Optional[str] = ..., replaced: _Optional[str] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ..., gate: _Optional[_Iterable[_Union[GateResult, _Mapping]]] = ...) -> None: ...

class GetHistoryRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetHistoryResponse(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[HeadEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[HeadEvent, _Mapping]]] = ...) -> None: ...

class Rollout(_message.Message):
    __slots__ = ("canary", "canary_share", "shadow", "shadow_share")
    CANARY_FIELD_NUMBER: _ClassVar[int]
    CANARY_SHARE_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    SHADOW_SHARE_FIELD_NUMBER: _ClassVar[int]
    canary: str
    canary_share: float
    shadow: str
    shadow_share: float
    def __init__(self, canary: _Optional[str] = ..., canary_share: _Optional[float] = ..., shadow: _Optional[str] = ..., shadow_share: _Optional[float] = ...) -> None: ...

class SetRolloutRequest(_message.Message):
    __slots__ = ("name", "rollout", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    rollout: Rollout
    reason: str
    def __init__(self, name: _Optional[str] = ..., rollout: _Optional[_Union[Rollout, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class SetRolloutResponse(_message.Message):
    __slots__ = ("rollout",)
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    rollout: Rollout
    def __init__(self, rollout: _Optional[_Union[Rollout, _Mapping]] = ...) -> None: ...

class GetRolloutRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class StageFigures(_message.Message):
    __slots__ = ("stage", "version", "windows", "confidence", "abstained", "labels", "calls", "failed")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    STAGE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    ABSTAINED_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    stage: Stage
    version: str
    windows: int
    confidence: float
    abstained: int
    labels: _containers.ScalarMap[str, int]
    calls: int
    failed: int
    def __init__(self, stage: _Optional[_Union[Stage, str]] = ..., version: _Optional[str] = ..., windows: _Optional[int] = ..., confidence: _Optional[float] = ..., abstained: _Optional[int] = ..., labels: _Optional[_Mapping[str, int]] = ..., calls: _Optional[int] = ..., failed: _Optional[int] = ...) -> None: ...

class ShadowFigures(_message.Message):
    __slots__ = ("version", "windows", "disagreed", "divergence", "confidence_difference", "dropped", "unfit")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    DISAGREED_FIELD_NUMBER: _ClassVar[int]
    DIVERGENCE_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    UNFIT_FIELD_NUMBER: _ClassVar[int]
    version: str
    windows: int
    disagreed: int
    divergence: float
    confidence_difference: float
    dropped: int
    unfit: int
    def __init__(self, version: _Optional[str] = ..., windows: _Optional[int] = ..., disagreed: _Optional[int] = ..., divergence: _Optional[float] = ..., confidence_difference: _Optional[float] = ..., dropped: _Optional[int] = ..., unfit: _Optional[int] = ...) -> None: ...

class GetRolloutResponse(_message.Message):
    __slots__ = ("rollout", "production", "stages", "shadow")
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    PRODUCTION_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    rollout: Rollout
    production: str
    stages: _containers.RepeatedCompositeFieldContainer[StageFigures]
    shadow: ShadowFigures
    def __init__(self, rollout: _Optional[_Union[Rollout, _Mapping]] = ..., production: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[StageFigures, _Mapping]]] = ..., shadow: _Optional[_Union[ShadowFigures, _Mapping]] = ...) -> None: ...

class Calibration(_message.Message):
    __slots__ = ("tenant", "bundle_digest", "layers", "state", "version", "clips", "refused", "diversity", "drift", "alarm", "changed_unix_ms", "prior", "weight")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CLIPS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    DRIFT_FIELD_NUMBER: _ClassVar[int]
    ALARM_FIELD_NUMBER: _ClassVar[int]
    CHANGED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    PRIOR_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    bundle_digest: str
    layers: _containers.RepeatedScalarFieldContainer[int]
    state: CalibrationState
    version: int
    clips: int
    refused: int
    diversity: float
    drift: float
    alarm: str
    changed_unix_ms: int
    prior: Prior
    weight: float
    def __init__(self, tenant: _Optional[str] = ..., bundle_digest: _Optional[str] = ..., layers: _Optional[_Iterable[int]] = ..., state: _Optional[_Union[CalibrationState, str]] = ..., version: _Optional[int] = ..., clips: _Optional[int] = ..., refused: _Optional[int] = ..., diversity: _Optional[float] = ..., drift: _Optional[float] = ..., alarm: _Optional[str] = ..., changed_unix_ms: _Optional[int] = ..., prior: _Optional[_Union[Prior, _Mapping]] = ..., weight: _Optional[float] = ...) -> None: ...

class CalibrationKey(_message.Message):
    __slots__ = ("tenant", "head")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    head: str
    def __init__(self, tenant: _Optional[str] = ..., head: _Optional[str] = ...) -> None: ...

class ListCalibrationsRequest(_message.Message):
    __slots__ = ("tenant",)
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    def __init__(self, tenant: _Optional[str] = ...) -> None: ...

class ListCalibrationsResponse(_message.Message):
    __slots__ = ("calibrations",)
    CALIBRATIONS_FIELD_NUMBER: _ClassVar[int]
    calibrations: _containers.RepeatedCompositeFieldContainer[Calibration]
    def __init__(self, calibrations: _Optional[_Iterable[_Union[Calibration, _Mapping]]] = ...) -> None: ...

class FreezeCalibrationRequest(_message.Message):
    __slots__ = ("key", "thaw")
    KEY_FIELD_NUMBER: _ClassVar[int]
    THAW_FIELD_NUMBER: _ClassVar[int]
    key: CalibrationKey
    thaw: bool
    def __init__(self, key: _Optional[_Union[CalibrationKey, _Mapping]] = ..., thaw: _Optional[bool] = ...) -> None: ...

class FreezeCalibrationResponse(_message.Message):
    __slots__ = ("calibrations",)
    CALIBRATIONS_FIELD_NUMBER: _ClassVar[int]
    calibrations: _containers.RepeatedCompositeFieldContainer[Calibration]
    def __init__(self, calibrations: _Optional[_Iterable[_Union[Calibration, _Mapping]]] = ...) -> None: ...

class ResetCalibrationRequest(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: CalibrationKey
    def __init__(self, key: _Optional[_Union[CalibrationKey, _Mapping]] = ...) -> None: ...

class ResetCalibrationResponse(_message.Message):
    __slots__ = ("calibrations",)
    CALIBRATIONS_FIELD_NUMBER: _ClassVar[int]
    calibrations: _containers.RepeatedCompositeFieldContainer[Calibration]
    def __init__(self, calibrations: _Optional[_Iterable[_Union[Calibration, _Mapping]]] = ...) -> None: ...

class ExportCalibrationRequest(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: CalibrationKey
    def __init__(self, key: _Optional[_Union[CalibrationKey, _Mapping]] = ...) -> None: ...

class ExportCalibrationResponse(_message.Message):
    __slots__ = ("state_json",)
    STATE_JSON_FIELD_NUMBER: _ClassVar[int]
    state_json: str
    def __init__(self, state_json: _Optional[str] = ...) -> None: ...

class ImportCalibrationRequest(_message.Message):
    __slots__ = ("state_json", "tenant")
    STATE_JSON_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    state_json: str
    tenant: str
    def __init__(self, state_json: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class ImportCalibrationResponse(_message.Message):
    __slots__ = ("calibrations",)
    CALIBRATIONS_FIELD_NUMBER: _ClassVar[int]
    calibrations: _containers.RepeatedCompositeFieldContainer[Calibration]
    def __init__(self, calibrations: _Optional[_Iterable[_Union[Calibration, _Mapping]]] = ...) -> None: ...

class SetTenantPriorRequest(_message.Message):
    __slots__ = ("key", "prior")
    KEY_FIELD_NUMBER: _ClassVar[int]
    PRIOR_FIELD_NUMBER: _ClassVar[int]
    key: CalibrationKey
    prior: Prior
    def __init__(self, key: _Optional[_Union[CalibrationKey, _Mapping]] = ..., prior: _Optional[_Union[Prior, _Mapping]] = ...) -> None: ...

class SetTenantPriorResponse(_message.Message):
    __slots__ = ("calibrations",)
    CALIBRATIONS_FIELD_NUMBER: _ClassVar[int]
    calibrations: _containers.RepeatedCompositeFieldContainer[Calibration]
    def __init__(self, calibrations: _Optional[_Iterable[_Union[Calibration, _Mapping]]] = ...) -> None: ...
