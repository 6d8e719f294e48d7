"""The evaluator's way to the embedder and the prober: their gRPC contracts and nothing else."""

from collections.abc import AsyncIterator

from servox.keys import own_key
from servox.rpc import channel, client_tls, translated
from servox.v1 import embedder_pb2, embedder_pb2_grpc, prober_pb2, prober_pb2_grpc

from .settings import Settings


class Peers:
    """Channels to both services, opened on first use by gRPC and closed by `close`."""

    def __init__(self, settings: Settings) -> None:
        tls = client_tls(settings.peer_ca, settings.peer_certificate, settings.peer_private_key)
        limit, key = settings.max_message_bytes, own_key(settings.peer_api_key) if settings.peer_api_key else None
        self._embedder_channel = channel(settings.embedder, max_message_bytes=limit, tls=tls, key=key)
        self._prober_channel = channel(settings.prober, max_message_bytes=limit, tls=tls, key=key)
        self._names = (f"embedder at {settings.embedder}", f"prober at {settings.prober}")
        self.embedder = embedder_pb2_grpc.EmbedderStub(self._embedder_channel)  # type: ignore[no-untyped-call]
        self._prober = prober_pb2_grpc.ProberStub(self._prober_channel)  # type: ignore[no-untyped-call]

    async def describe(self) -> embedder_pb2.DescribeResponse:
        """What the embedder runs.

        Raises:
            Unavailable: it does not answer.
        """
        with translated(self._names[0]):
            answer: embedder_pb2.DescribeResponse = await self.embedder.Describe(
                embedder_pb2.DescribeRequest(), wait_for_ready=True, timeout=60
            )
        return answer

    async def train(self, request: prober_pb2.TrainRequest) -> AsyncIterator[prober_pb2.TrainResponse]:
        """Progress and results of a training."""
        with translated(self._names[1]):
            async for event in self._prober.Train(request):
                yield event

    async def predict(self, request: prober_pb2.PredictRequest) -> prober_pb2.PredictResponse:
        """Scores of one head."""
        with translated(self._names[1]):
            answer: prober_pb2.PredictResponse = await self._prober.Predict(request)
        return answer

    async def head(self, name: str) -> prober_pb2.GetHeadResponse:
        """A head and its card."""
        with translated(self._names[1]):
            answer: prober_pb2.GetHeadResponse = await self._prober.GetHead(prober_pb2.GetHeadRequest(head=name))
        return answer

    async def store_evaluation(self, head: str, document: str) -> prober_pb2.StoreEvaluationResponse:
        """Keeps an evaluation beside its head."""
        request = prober_pb2.StoreEvaluationRequest(head=head, evaluation_json=document)
        with translated(self._names[1]):
            answer: prober_pb2.StoreEvaluationResponse = await self._prober.StoreEvaluation(request)
        return answer

    async def close(self) -> None:
        """Closes both channels."""
        await self._embedder_channel.close()
        await self._prober_channel.close()
