"""What may be asked for: every RPC and every HTTP route with the scope that it needs, in one place.

What is in no table needs the scope `*`: an RPC that was forgotten here is closed, not open.
"""

from collections.abc import Mapping

OPEN = ""  # nobody has to say who they are
ALL = "*"
# Scope → what it lets a caller do.
SCOPES: Mapping[str, str] = {
    "recognize": "emotions of audio: Recognize, RecognizeStream, POST /v1/recognize, WS /v1/stream",
    "embed": "embeddings of audio: the embedder, the Open Inference Protocol, POST /v1/embeddings",
    "heads": "read the registry: ListHeads, GetHead, history and rollout, GET /v1/heads",
    "train": "train heads on stored embeddings and score them: Train, Predict; both read the store's URLs",
    "promote": "choose which head answers: Promote, Rollback, SetRollout",
    "tenants": "read and change the calibrations of tenants",
    "evaluate": "runs of the evaluator, which read and write its folders, and StoreEvaluation, which promotion goes by",
    "metrics": "GET /metrics on the HTTP port",
    ALL: "everything",
}

_OPEN_SERVICES = ("/grpc.health.v1.", "/grpc.reflection.")
_EMBEDDER, _PROBER, _EVALUATOR = "/servox.v1.Embedder/", "/servox.v1.Prober/", "/servox.v1.Evaluator/"
_INFERENCE = "/inference.GRPCInferenceService/"


def _each(service: str, scope: str, *methods: str) -> dict[str, str]:
    return {service + method: scope for method in methods}


METHODS: Mapping[str, str] = {
    **_each(_EMBEDDER, "embed", "Describe", "Embed", "EmbedStream"),
    **_each(_INFERENCE, OPEN, "ServerLive", "ServerReady", "ModelReady"),  # probes
    **_each(_INFERENCE, "embed", "ServerMetadata", "ModelMetadata", "ModelInfer"),
    **_each(_PROBER, "recognize", "Recognize", "RecognizeStream"),
    **_each(_PROBER, "train", "Train", "Predict"),
    **_each(_PROBER, "heads", "ListHeads", "GetHead", "GetHistory", "GetRollout"),
    **_each(_PROBER, "promote", "Promote", "Rollback", "SetRollout"),
    **_each(
        _PROBER,
        "tenants",
        "ListCalibrations",
        "FreezeCalibration",
        "ResetCalibration",
        "ExportCalibration",
        "ImportCalibration",
        "SetTenantPrior",
    ),
    **_each(_PROBER, "evaluate", "StoreEvaluation"),
    **_each(_EVALUATOR, "evaluate", "StartRun", "WatchRun", "GetRun", "ListRuns", "CancelRun", "GetResults"),
}

# By the template of a route. What has no template is answered 404 to whoever was let in.
ROUTES: Mapping[str, str] = {
    "/v1/recognize": "recognize",
    "/v1/stream": "recognize",
    "/v1/embeddings": "embed",
    "/v1/heads": "heads",
    "/v1/heads/{name}": "heads",
    "/metrics": "metrics",
    "/livez": OPEN,
    "/readyz": OPEN,
    # The page and the description hold nothing of anybody.
    "/": OPEN,
    "/static/{name}": OPEN,
    "/docs": OPEN,
    "/docs/style.css": OPEN,
    "/openapi.json": OPEN,
}


def of_method(method: str) -> str:
    """The scope that an RPC needs, by its full name with its slashes."""
    if method.startswith(_OPEN_SERVICES):
        return OPEN
    return METHODS.get(method, ALL)


def of_path(path: str) -> str | None:
    """The scope that a path needs; None for one that no table knows: anybody who was let in may be told so."""
    if path in ROUTES:
        return ROUTES[path]
    for template, scope in ROUTES.items():
        stem, found, _ = template.partition("{")
        rest = path.removeprefix(stem)
        if found and path.startswith(stem) and rest and "/" not in rest:
            return scope
    return None
