"""A real prober on a Unix socket: training, prediction, the registry, and what it refuses."""
# ruff: noqa: ANN401 -- arrays and gRPC stubs have no types worth naming here

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from services.prober.dataplane import Dataplane
from services.prober.metrics import ProberMetrics
from services.prober.registry import Registry
from services.prober.settings import Settings
from servox.arrays import EmbeddingStore
from servox.errors import BadInput, BadSetting, HeadMismatch, NotFound, Refused, StorageFull, Unavailable
from servox.rpc import translated
from servox.telemetry import Metrics
from servox.v1 import common_pb2, prober_pb2
from servox.wire import array_from_proto, array_to_proto

MLP, LOGISTIC, FRAMES = prober_pb2.HEAD_KIND_MLP, prober_pb2.HEAD_KIND_LOGISTIC, prober_pb2.HEAD_KIND_FRAME_MLP


async def trained(prober: Any, corpus: Any, *specs: prober_pb2.HeadSpec) -> list[prober_pb2.TrainResponse]:
    request = prober_pb2.TrainRequest(store_url=corpus.store, heads=specs)
    with translated("prober"):
        return [event async for event in prober.Train(request)]


def of_kind(events: list[prober_pb2.TrainResponse], kind: str) -> list[Any]:
    return [getattr(event, kind) for event in events if event.WhichOneof("event") == kind]


async def predicted(prober: Any, corpus: Any, head: str, **changes: Any) -> prober_pb2.PredictResponse:
    stored = prober_pb2.StoredEmbeddings(store_url=corpus.store, clip_set_url=corpus.subset())
    given = {"head": head, "bundle_digest": corpus.bundle, "stored": stored, **changes}
    with translated("prober"):
        answer: prober_pb2.PredictResponse = await prober.Predict(prober_pb2.PredictRequest(**given))
    return answer


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
        answer = await predicted(prober, corpus, name)
        logits, probabilities = array_from_proto(answer.logits), array_from_proto(answer.probabilities)
        assert logits.shape == (1, len(corpus.clips), 3)
        assert list(answer.classes) == ["anger", "happiness", "sadness"]
        scaled = np.exp(logits / answer.temperature)
        np.testing.assert_allclose(probabilities, scaled / scaled.sum(axis=-1, keepdims=True), atol=1e-5)
        right = [answer.classes[k] for k in probabilities[0].argmax(axis=1)]
        assert np.mean([a == c.label for a, c in zip(right, corpus.clips, strict=True)]) > 0.6


async def test_a_logistic_head_is_scikit_learns(prober: Any, corpus: Any) -> None:
    await trained(prober, corpus, corpus.spec(name="lr", kind=LOGISTIC, settings={"c": 0.3}))
    answer = await predicted(prober, corpus, "lr")
    x = corpus.vectors().astype(np.float64)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    model = LogisticRegression(C=0.3, max_iter=2000).fit(x, [clip.label for clip in corpus.clips])
    np.testing.assert_allclose(array_from_proto(answer.probabilities)[0], model.predict_proba(x), atol=1e-5)


async def test_a_head_on_several_layers_is_scikit_learns_on_all_of_them(prober: Any, corpus: Any) -> None:
    await trained(prober, corpus, corpus.spec(name="wide", kind=LOGISTIC, settings={"layers": 3}))
    answer = await predicted(prober, corpus, "wide")
    keys = [clip.key for clip in corpus.clips]
    stored = EmbeddingStore(corpus.store).read(bundle=corpus.bundle, pooling="mean", keys=keys)
    x = np.stack(stored).reshape(len(keys), -1).astype(np.float64)
    spread = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(spread < 1e-6, 1.0, spread)
    model = LogisticRegression(C=0.1, max_iter=2000).fit(x, [clip.label for clip in corpus.clips])
    np.testing.assert_allclose(array_from_proto(answer.probabilities)[0], model.predict_proba(x), atol=1e-5)


async def test_a_head_trained_alone_is_the_head_trained_in_company(prober: Any, corpus: Any, tmp_path: Any) -> None:
    alone = corpus.spec(name="alone", seed=5, calibrate=True)
    company = [corpus.spec(name=f"other-{seed}", seed=seed, calibrate=True) for seed in range(4)]
    first = of_kind(
        await trained(prober, corpus, *company, corpus.spec(name="alone", seed=5, calibrate=True)), "trained"
    )
    (tmp_path / "heads" / "models" / "alone").rename(tmp_path / "aside")
    second = of_kind(await trained(prober, corpus, alone), "trained")
    assert not second[0].reused
    assert {answer.head.name: answer.head.digest for answer in first}["alone"] == second[0].head.digest


async def test_the_same_head_is_answered_at_once(prober: Any, corpus: Any) -> None:
    spec = corpus.spec(calibrate=True)
    first = of_kind(await trained(prober, corpus, spec, spec), "trained")
    assert [answer.reused for answer in first] == [False, True]
    again = await trained(prober, corpus, spec)
    assert of_kind(again, "trained")[0].reused
    assert of_kind(again, "trained")[0].head == first[0].head
    other = of_kind(await trained(prober, corpus, corpus.spec(calibrate=True, seed=1)), "trained")[0]
    assert not other.reused
    assert other.head.version != first[0].head.version


async def test_the_card_says_what_was_done(prober: Any, corpus: Any) -> None:
    await trained(prober, corpus, corpus.spec(calibrate=True, settings={"epochs": 40, "hidden": 16}))
    answer = await prober.GetHead(prober_pb2.GetHeadRequest(head="toy"))
    card = json.loads(answer.card_json)
    assert card["class_counts"] == [24, 24, 24]
    assert (card["clips"], card["speakers"], card["dims"], card["layer"]) == (72, 6, corpus.dims, corpus.layer)
    assert card["bundle"] == corpus.bundle
    assert card["settings"]["epochs"] == 40
    assert card["settings"]["batch"] == 128
    scores = card["out_of_fold"]
    assert (scores["clips"], scores["speakers"], scores["folds"], scores["grouped_by"]) == (72, 6, 5, "speaker")
    assert scores["macro_f1"] > scores["floor"] == pytest.approx(1 / 3)
    assert scores["nll_after"] <= scores["nll_before"]
    assert answer.summary.kind == MLP
    assert not answer.summary.production


async def test_promotion_needs_to_beat_the_floor(prober: Any, corpus: Any) -> None:
    good = corpus.spec(calibrate=True, settings={"epochs": 40, "hidden": 16})
    events = await trained(prober, corpus, good, corpus.spec(name="unseen"))
    tags = [f"{answer.head.name}:{answer.head.version}" for answer in of_kind(events, "trained")]
    for tag in tags:
        if tag.startswith("unseen"):
            with pytest.raises(Refused, match="calibrate = true"), translated("prober"):
                await prober.Promote(prober_pb2.PromoteRequest(head=tag))
        else:
            assert (await prober.Promote(prober_pb2.PromoteRequest(head=tag))).summary.production
    listed = await prober.ListHeads(prober_pb2.ListHeadsRequest())
    assert {head.head.name: head.production for head in listed.heads} == {"toy": True, "unseen": False}


async def test_variants_standardise_by_other_statistics(prober: Any, corpus: Any) -> None:
    await trained(prober, corpus, corpus.spec())
    x = corpus.vectors()
    shifted = prober_pb2.Standardisation(mean=x.mean(axis=0) + 1, std=x.std(axis=0) * 2)
    answer = await predicted(prober, corpus, "toy", variants=[prober_pb2.Standardisation(), shifted])
    logits = array_from_proto(answer.logits)
    assert logits.shape == (2, len(x), 3)
    direct = await predicted(prober, corpus, "toy", stored=None, embeddings=array_to_proto(x))
    np.testing.assert_allclose(array_from_proto(direct.logits)[0], logits[0], atol=1e-5)
    # standardising by other statistics is moving the embeddings before the training ones
    moved = (x - x.mean(axis=0) - 1) / (x.std(axis=0) * 2) * x.std(axis=0) + x.mean(axis=0)
    by_hand = await predicted(prober, corpus, "toy", stored=None, embeddings=array_to_proto(moved.astype(np.float32)))
    np.testing.assert_allclose(array_from_proto(by_hand.logits)[0], logits[1], atol=1e-3)


async def test_predictions_go_on_during_a_training(prober: Any, corpus: Any) -> None:
    await trained(prober, corpus, corpus.spec())
    long = corpus.spec(name="long", settings={"epochs": 10_000, "hidden": 1024})
    call = prober.Train(prober_pb2.TrainRequest(store_url=corpus.store, heads=[long]))
    begun = await call.read()
    assert begun.progress.heads_total == 1
    assert (await predicted(prober, corpus, "toy")).logits.shape[1] == len(corpus.clips)
    call.cancel()
    # the training stops with its caller: the next one is not kept waiting for ten thousand epochs
    events = await asyncio.wait_for(trained(prober, corpus, corpus.spec(name="next")), 60)
    assert of_kind(events, "trained")[0].head.name == "next"
    listed = await prober.ListHeads(prober_pb2.ListHeadsRequest())
    assert {head.head.name for head in listed.heads} == {"toy", "next"}


async def test_two_trainings_take_turns(prober: Any, corpus: Any) -> None:
    one, two = await asyncio.gather(
        trained(prober, corpus, corpus.spec(name="one")), trained(prober, corpus, corpus.spec(name="two"))
    )
    assert of_kind(one, "trained")[0].head.name == "one"
    assert of_kind(two, "trained")[0].head.name == "two"


async def test_bad_heads_fail_alone(prober: Any, corpus: Any) -> None:
    bad = {
        "no such setting": corpus.spec(settings={"epoch": 3}),
        "no clips of ['fear']": corpus.spec(classes=["anger", "happiness", "sadness", "fear"]),
        "not among its classes": corpus.spec(classes=["anger", "happiness"]),
        "one class only": corpus.spec(clip_set_url=corpus.subset(labels=("anger",))),
        "has 1 speaker": corpus.spec(clip_set_url=corpus.subset(speakers=("s1",)), classes=[], calibrate=True),
        "there is no such file": corpus.spec(clip_set_url=f"{corpus.sets}/none.parquet"),
        "have no mean embedding of bundle cdcdcdcdcdcd": corpus.spec(bundle_digest="cd" * 32),
        "has no layer 9": corpus.spec(layer=9),
        "kind 0 is unknown": corpus.spec(kind=prober_pb2.HEAD_KIND_UNSPECIFIED),
        "use 1 to 63 lower-case": corpus.spec(name="Not A Name"),
        "have no frames embedding": corpus.spec(kind=FRAMES, bundle_digest="cd" * 32),
    }
    events = await trained(prober, corpus, *bad.values(), corpus.spec(name="good"))
    failures = {answer.index: answer.failure for answer in of_kind(events, "failed")}
    assert set(failures) == set(range(len(bad)))
    for index, part in enumerate(bad):
        assert part in failures[index].message
    assert failures[0].kind == "BadSetting"
    assert failures[5].kind == "NotFound"
    assert [answer.head.name for answer in of_kind(events, "trained")] == ["good"]


async def test_a_full_disk_ends_the_training(prober: Any, corpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Registry, head: Any) -> None:
        raise StorageFull(f"cannot write head {head.card.tag}: no space left")

    monkeypatch.setattr(Registry, "save", full)
    with pytest.raises(StorageFull, match="cannot write head toy:"):
        await trained(prober, corpus, corpus.spec())
    monkeypatch.undo()
    assert of_kind(await trained(prober, corpus, corpus.spec()), "trained")


def test_calls_are_counted_by_outcome() -> None:
    from services.prober.metrics import ProberMetrics
    from servox.telemetry import Metrics

    metrics = Metrics()
    counters = ProberMetrics(metrics)
    with pytest.raises(BadInput), counters.call("Predict"):
        raise BadInput("x")
    with counters.call("Predict"):
        pass
    with pytest.raises(asyncio.CancelledError), counters.call("Train"):
        raise asyncio.CancelledError
    with pytest.raises(ZeroDivisionError), counters.call("Train"):
        raise ZeroDivisionError
    value = metrics.registry.get_sample_value
    for method, outcome in (("Predict", "BadInput"), ("Predict", "ok"), ("Train", "cancelled"), ("Train", "crash")):
        assert value("servox_prober_requests_total", {"method": method, "outcome": outcome}) == 1


async def test_an_empty_training_is_refused(prober: Any, corpus: Any) -> None:
    with pytest.raises(BadInput, match="0 heads were asked for"):
        await trained(prober, corpus)


async def test_bad_predictions_are_refused(prober: Any, corpus: Any) -> None:
    await trained(prober, corpus, corpus.spec(), corpus.spec(name="frames", kind=FRAMES))
    other = "cd" * 32
    with pytest.raises(HeadMismatch, match=f"bundle {corpus.bundle}, not of {other}"):
        await predicted(prober, corpus, "toy", bundle_digest=other)
    with pytest.raises(NotFound, match=r"'tou'.*did you mean toy"):
        await predicted(prober, corpus, "tou")
    wide = array_to_proto(np.zeros((2, corpus.dims + 1), dtype=np.float32))
    with pytest.raises(BadInput, match=rf"\[2, {corpus.dims + 1}\].*reads \[n, {corpus.dims}\]"):
        await predicted(prober, corpus, "toy", stored=None, embeddings=wide)
    with pytest.raises(BadInput, match="send `embeddings` or `stored`"):
        await predicted(prober, corpus, "toy", stored=None)
    with pytest.raises(BadInput, match=f"give {corpus.dims} finite figures"):
        await predicted(prober, corpus, "toy", variants=[prober_pb2.Standardisation(mean=[1.0])])
    with pytest.raises(BadInput, match="standardises nothing"):
        await predicted(prober, corpus, "frames", variants=[prober_pb2.Standardisation(mean=[1.0] * corpus.dims)])
    empty = prober_pb2.StoredEmbeddings(store_url=f"{corpus.store}-none", clip_set_url=corpus.subset())
    with pytest.raises(NotFound, match="72 of 72 clips have no mean embedding"):
        await predicted(prober, corpus, "toy", stored=empty)


async def test_recognition_without_an_embedder_is_unavailable(prober: Any, corpus: Any) -> None:
    await trained(prober, corpus, corpus.spec())
    request = prober_pb2.RecognizeRequest(
        audio=common_pb2.Audio(container=b"x"), config=prober_pb2.RecognizeConfig(head="toy")
    )
    with pytest.raises(Unavailable, match=r"embedder at unix:.*did not answer within 0.5 s"), translated("prober"):
        await prober.Recognize(request, timeout=30)


async def test_an_unknown_head_has_its_own_status(prober: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await prober.GetHead(prober_pb2.GetHeadRequest(head="nobody"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_device_that_is_not_there_is_refused_at_start(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    settings = Settings.load({"heads": tmp_path, "train_device": "cuda"})
    with pytest.raises(BadSetting, match=r"train_device = cuda: torch .* finds no CUDA device here"):
        Dataplane(settings, ProberMetrics(Metrics()))
