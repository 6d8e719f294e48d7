"""What gRPC itself tries again: calls of one request, never calls whose requests are a stream.

A stream that is refused while it sends makes gRPC's core, when it tries again by itself, now and then abort the whole
process ("ILLEGAL STATE: FORWARDED_BATCH", grpc/grpc#40283) or wait for ever (grpcio 1.85). Streams are tried again
by those who know what is unanswered: `servox.resending` and `servox.live`.
"""

import json

from google.protobuf.descriptor import FileDescriptor

from servox.v1 import embedder_pb2, evaluator_pb2, prober_pb2

_POLICY = {
    "maxAttempts": 5,
    "initialBackoff": "0.2s",
    "maxBackoff": "5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
}


def service_config() -> str:
    """The configuration of a channel, as gRPC reads it: calls go to all replicas in turn, and which are tried again."""
    streamed = [name for file in (embedder_pb2, prober_pb2, evaluator_pb2) for name in _streamed(file.DESCRIPTOR)]
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            "methodConfig": [{"name": [{}], "retryPolicy": _POLICY}, {"name": streamed}],
        }
    )


def _streamed(file: FileDescriptor) -> list[dict[str, str]]:
    return [
        {"service": service.full_name, "method": method.name}
        for service in file.services_by_name.values()
        for method in service.methods
        if method.client_streaming
    ]
