"""A prober that serves while its registry changes under it: new versions at once, and no call fails for it."""
# ruff: noqa: ANN401 -- gRPC stubs have no types worth naming here

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.prober.heads import Head
from services.prober.registry import Registry
from servox.errors import HeadMismatch, NotFound
from servox.rpc import translated
from servox.v1 import common_pb2, prober_pb2
from servox.wire import array_to_proto

VERSIONS = [f"{number:016x}" for number in range(10)]


async def trained(prober: Any, corpus: Any) -> None:
    spec = corpus.spec(kind=prober_pb2.HEAD_KIND_LOGISTIC, calibrate=True)
    async for _ in prober.Train(prober_pb2.TrainRequest(store_url=corpus.store, heads=[spec])):
        pass


def versioned(head: Head, version: str) -> Head:
    return dataclasses.replace(head, card=dataclasses.replace(head.card, version=version))


def recognition(head: str = "toy") -> prober_pb2.RecognizeRequest:
    noise = np.random.default_rng(0).normal(scale=0.1, size=8000).astype("<f4")
    pcm = common_pb2.Pcm(data=noise.tobytes(), rate_hz=16_000, channels=1, format=common_pb2.SAMPLE_FORMAT_F32)
    config = prober_pb2.RecognizeConfig(head=head)
    return prober_pb2.RecognizeRequest(audio=common_pb2.Audio(pcm=pcm), config=config)


def prediction(corpus: Any, head: str = "toy") -> prober_pb2.PredictRequest:
    x = np.zeros((2, corpus.dims), dtype=np.float32)
    return prober_pb2.PredictRequest(head=head, bundle_digest=corpus.bundle, embeddings=array_to_proto(x))


class Callers:
    """Calls in a closed loop until told to stop; every failure and every version that answered is kept."""

    def __init__(self, *calls: Any) -> None:
        self.answered: list[str] = []
        self.failures: list[str] = []
        self._stop = asyncio.Event()
        self._tasks = [asyncio.create_task(self._loop(call)) for call in calls]

    async def _loop(self, call: Any) -> None:
        while not self._stop.is_set():
            try:
                self.answered.append((await call()).head.version)
            except Exception as error:  # noqa: BLE001 -- whatever a caller meets is what the test is about
                self.failures.append(repr(error))

    async def heard(self, version: str) -> None:
        """Returns once a call that began from now on was answered by `version`."""
        count = len(self.answered)
        while version not in self.answered[count + len(self._tasks) :]:
            assert not self.failures, self.failures[0]
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)


async def test_versions_come_and_go_without_a_failed_call(pair: Any, corpus: Any, tmp_path: Path) -> None:
    await trained(pair.prober, corpus)
    registry = Registry(tmp_path / "heads")  # another hand than the prober's own
    base = await asyncio.to_thread(registry.get, "toy")
    predict, recognize = prediction(corpus), recognition()
    callers = Callers(
        lambda: pair.prober.Predict(predict),
        lambda: pair.prober.Predict(predict),
        lambda: pair.prober.Recognize(recognize),
    )
    before = base.card.version
    for version in VERSIONS:
        await asyncio.to_thread(registry.save, versioned(base, version))
        await callers.heard(version)
        await asyncio.to_thread(registry.delete, f"toy:{before}")
        before = version
    spare = versioned(base, "f" * 16)
    await asyncio.to_thread(registry.save, spare)
    await pair.prober.Promote(prober_pb2.PromoteRequest(head=f"toy:{before}"))
    await callers.heard(before)
    await asyncio.to_thread(registry.delete, f"toy:{before}", force=True)
    await callers.heard("f" * 16)
    await callers.stop()
    assert callers.failures == []
    assert set(VERSIONS) <= set(callers.answered)


async def test_a_deleted_version_in_use_is_not_found_afterwards(pair: Any, corpus: Any, tmp_path: Path) -> None:
    await trained(pair.prober, corpus)
    registry = Registry(tmp_path / "heads")
    base = registry.get("toy")
    registry.save(versioned(base, "a" * 16))
    assert (await pair.prober.Recognize(recognition(base.card.tag))).head.version == base.card.version
    registry.delete(base.card.tag)
    for call in (
        pair.prober.Recognize(recognition(base.card.tag)),
        pair.prober.Predict(prediction(corpus, base.card.tag)),
    ):
        with pytest.raises(NotFound, match=f"no such version; it has {'a' * 16}"), translated("prober"):
            await call


async def test_another_head_under_a_deleted_version_is_the_one_that_answers(
    pair: Any, corpus: Any, tmp_path: Path
) -> None:
    await trained(pair.prober, corpus)
    registry = Registry(tmp_path / "heads")
    base = registry.get("toy")
    first = await pair.prober.Predict(prediction(corpus))
    registry.delete(base.card.tag)
    turned = {name: -array if name == "output.weight" else array for name, array in base.weights.items()}
    assert any((turned[name] != base.weights[name]).any() for name in turned)
    registry.save(dataclasses.replace(base, weights=turned))
    second = await pair.prober.Predict(prediction(corpus))
    assert first.head.version == second.head.version
    assert first.head.digest != second.head.digest
    assert first.probabilities.data != second.probabilities.data


@pytest.mark.parametrize("file", ["card.json", "weights.safetensors", "model.yaml"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "corrupt"])
async def test_a_half_written_entry_costs_itself_only(
    pair: Any, corpus: Any, tmp_path: Path, file: str, damage: str
) -> None:
    await trained(pair.prober, corpus)
    registry = Registry(tmp_path / "heads")
    base = registry.get("toy")
    registry.save(versioned(base, "a" * 16))
    place = tmp_path / "heads" / "models" / "toy" / ("a" * 16) / file
    data = place.read_bytes()
    place.unlink()
    if damage != "missing":
        place.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "corrupt": b"\xff" * len(data)}[damage])
    assert (await pair.prober.Recognize(recognition(base.card.tag))).head.version == base.card.version
    listed = await pair.prober.ListHeads(prober_pb2.ListHeadsRequest())
    assert [each.head.version for each in listed.heads] == [base.card.version]
    with pytest.raises(Exception, match=f"toy:{'a' * 16}.*damaged"), translated("prober"):
        await pair.prober.Recognize(recognition(f"toy:{'a' * 16}"))


async def test_a_head_of_another_bundle_is_refused_with_both_digests(pair: Any, corpus: Any) -> None:
    await trained(pair.prober, corpus)
    pair.embedder.bundle = "ef" * 32
    with pytest.raises(HeadMismatch, match=f"{corpus.bundle}, not of {'ef' * 32}"), translated("prober"):
        await pair.prober.Recognize(recognition())
