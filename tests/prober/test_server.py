"""A real prober on a Unix socket."""
# ruff: noqa: ANN401 -- arrays and gRPC stubs have no types worth naming here

from typing import Any

import numpy as np

from servox.rpc import translated
from servox.v1 import prober_pb2
from servox.wire import array_from_proto

MLP, LOGISTIC, FRAMES = prober_pb2.HEAD_KIND_MLP, prober_pb2.HEAD_KIND_LOGISTIC, prober_pb2.HEAD_KIND_FRAME_MLP


async def trained(prober: Any, corpus: Any, *specs: prober_pb2.HeadSpec) -> list[prober_pb2.TrainResponse]:
    request = prober_pb2.TrainRequest(store_url=corpus.store, heads=specs)
    with translated("prober"):
        return [event async for event in prober.Train(request)]


def of_kind(events: list[prober_pb2.TrainResponse], kind: str) -> list[Any]:
    return [getattr(event, kind) for event in events if event.WhichOneof("event") == kind]


async def test_trains_every_kind_and_predicts_from_the_store(prober: Any, corpus: Any) -> None:
    specs = [
        corpus.spec(name="mlp", calibrate=True),
        corpus.spec(name="lr", kind=LOGISTIC, calibrate=True),
        corpus.spec(name="frames", kind=FRAMES),
    ]
    events = await trained(prober, corpus, *specs)
    heads = {answer.index: answer for answer in of_kind(events, "trained")}
    assert set(heads) == {0, 1, 2}
    assert not any(answer.reused for answer in heads.values())
    last = of_kind(events, "progress")[-1]
    assert (last.fraction, last.heads_done, last.heads_total) == (1.0, 3, 3)
    for name in ("mlp", "lr", "frames"):
        stored = prober_pb2.StoredEmbeddings(store_url=corpus.store, clip_set_url=corpus.subset())
        answer = await prober.Predict(prober_pb2.PredictRequest(head=name, bundle_digest=corpus.bundle, stored=stored))
        logits, probabilities = array_from_proto(answer.logits), array_from_proto(answer.probabilities)
        assert logits.shape == (1, len(corpus.clips), 3)
        assert list(answer.classes) == ["anger", "happiness", "sadness"]
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)
        scaled = np.exp(logits / answer.temperature)
        np.testing.assert_allclose(probabilities, scaled / scaled.sum(axis=-1, keepdims=True), atol=1e-5)
        right = [answer.classes[k] for k in probabilities[0].argmax(axis=1)]
        assert np.mean([a == c.label for a, c in zip(right, corpus.clips, strict=True)]) > 0.6
