"""Tenants through a real prober and a toy embedder: first clips, restart, operators, wrong names, priors, refusals."""
# ruff: noqa: ANN401 -- gRPC stubs have no types

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import generate_latest

from services.prober.heads import Standardisation
from services.prober.registry import Registry
from services.prober.server import ProberServer
from services.prober.settings import Settings
from servox.callers import Caller, calling
from servox.errors import BadInput, Forbidden, NotFound, Refused, StorageFull
from servox.priors import softmax
from servox.rpc import Server, channel, translated
from servox.telemetry import Metrics
from servox.v1 import common_pb2, embedder_pb2_grpc, prober_pb2, prober_pb2_grpc

RATE = 16_000
COLLECTING, READY, FROZEN = (
    prober_pb2.CALIBRATION_STATE_COLLECTING,
    prober_pb2.CALIBRATION_STATE_READY,
    prober_pb2.CALIBRATION_STATE_FROZEN,
)
KIND = prober_pb2.Prior


def sound(number: int, seconds: float = 3.0) -> Any:
    """Noise of a colour of its own, as PCM."""
    random = np.random.default_rng(number)
    samples = np.convolve(random.normal(size=int(seconds * RATE)), random.normal(size=8) / 40, mode="same")
    return np.clip(samples, -0.9, 0.9).astype(np.float32)


def audio(samples: Any) -> common_pb2.Audio:
    return common_pb2.Audio(
        pcm=common_pb2.Pcm(data=samples.tobytes(), rate_hz=RATE, format=common_pb2.SAMPLE_FORMAT_F32)
    )


class Running:
    """A prober with its toy embedder."""

    def __init__(self, server: ProberServer, stub: Any, metrics: Metrics) -> None:
        self.server, self.prober, self.metrics = server, stub, metrics
        plane = server._dataplane  # what an operator reaches over gRPC, without the way there
        assert plane is not None
        self.tenants = plane.tenants

    async def recognised(self, number: int = 0, **config: Any) -> prober_pb2.RecognizeResponse:
        seconds = config.pop("seconds", 3.0)
        settings = prober_pb2.RecognizeConfig(**{"head": "toy", "tenant": "acme", **config})
        request = prober_pb2.RecognizeRequest(audio=audio(sound(number, seconds)), config=settings)
        with translated("prober"):
            answer: prober_pb2.RecognizeResponse = await self.prober.Recognize(request)
        return answer

    async def asked(self, method: str, request: Any) -> Any:
        with translated("prober"):
            return await getattr(self.prober, method)(request)

    async def listed(self, tenant: str = "") -> list[prober_pb2.Calibration]:
        answer = await self.asked("ListCalibrations", prober_pb2.ListCalibrationsRequest(tenant=tenant))
        return list(answer.calibrations)


Start = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
async def start(tmp_path: Path, toys: Any, corpus: Any) -> AsyncIterator[Start]:
    """Starts probers on one folder; the first one trains the heads."""
    toy = toys()
    embedder = Server(address=f"unix:{tmp_path / 'e.sock'}", services=[], max_message_bytes=1 << 26)
    embedder_pb2_grpc.add_EmbedderServicer_to_server(toy, embedder.grpc)  # type: ignore[no-untyped-call]
    address = await embedder.start()
    number = 0

    @asynccontextmanager
    async def started(**flags: Any) -> AsyncIterator[Running]:
        nonlocal number
        number += 1
        given = {
            "grpc_socket": tmp_path / f"p{number}.sock",
            "http_port": 0,
            "metrics_port": 0,
            "heads": tmp_path / "heads",
            "tenants": tmp_path / "tenants",
            "embedder": address,
            "drain_grace_s": 1,
        }
        metrics = Metrics()
        server = ProberServer(Settings.load({**given, **flags}), metrics)
        async with channel(await server.start()) as connection:
            running = Running(server, prober_pb2_grpc.ProberStub(connection), metrics)  # type: ignore[no-untyped-call]
            if number == 1:
                specs = [
                    corpus.spec(kind=prober_pb2.HEAD_KIND_LOGISTIC),
                    corpus.spec(name="frames", kind=prober_pb2.HEAD_KIND_FRAME_MLP),
                ]
                async for _ in running.prober.Train(prober_pb2.TrainRequest(store_url=corpus.store, heads=specs)):
                    pass
            try:
                yield running
            finally:
                await server.stop()

    yield started
    await embedder.stop()


async def test_a_tenants_first_clips_and_then_their_own_mean(start: Start, tmp_path: Path) -> None:
    async with start() as running:
        first = await running.recognised(0, uncalibrated=True)
        assert (first.calibration.tenant, first.calibration.state, first.calibration.version) == ("acme", COLLECTING, 0)
        assert (first.calibration.clips, first.calibration.relevance) == (0, 0)
        assert list(first.overall.uncalibrated) == list(first.overall.probabilities)
        for number in range(1, 16):
            assert (await running.recognised(number)).calibration.state == COLLECTING
        ready = await running.recognised(99, uncalibrated=True)
        used = ready.calibration
        assert (used.state, used.version, used.clips, used.relevance) == (READY, 1, 16, 1)
        head = Registry(tmp_path / "heads").get("toy")
        spectra = [np.abs(np.fft.rfft(sound(each), n=46)).astype(np.float32) for each in (*range(16), 99)]
        own = Standardisation(mean=np.stack(spectra[:16]).mean(axis=0).astype(np.float32, copy=False))
        for shown, statistics in ((ready.overall.probabilities, own), (ready.overall.uncalibrated, None)):
            logits = head.logits(spectra[16][None], *([statistics] if statistics else []))[0]
            wanted = softmax(head.card.scaling.apply(logits))
            np.testing.assert_allclose([each.probability for each in shown], wanted, atol=0.02)
        assert await running.recognised(5, tenant="") != ready
        assert (await running.recognised(5, tenant="")).calibration == prober_pb2.UsedCalibration()


async def test_a_call_ends_with_the_state_that_it_began_with(start: Start) -> None:
    async with start(tenant_ready_clips=4, tenant_call_clips=8) as running:
        for number in range(3):
            await running.recognised(number)
        long = await running.recognised(50, seconds=40, window_ms=2000, uncalibrated=True)
        assert long.calibration.state == COLLECTING
        assert all(list(each.uncalibrated) == list(each.probabilities) for each in long.windows)
        after = await running.recognised(51)
        assert after.calibration.state == READY
        assert after.calibration.clips == 5  # three calls, and of forty seconds two clips


async def test_a_stream_is_answered_as_the_upload_is(start: Start) -> None:
    async with start(tenant_ready_clips=4) as running:
        for number in range(5):
            await running.recognised(number)
        freeze = prober_pb2.FreezeCalibrationRequest(key=prober_pb2.CalibrationKey(tenant="acme"))
        await running.asked("FreezeCalibration", freeze)
        whole = await running.recognised(60, seconds=2.6, window_ms=1000, hop_ms=500)
        recognise = prober_pb2.RecognizeConfig(head="toy", tenant="acme", window_ms=1000, hop_ms=500)
        config = prober_pb2.StreamConfig(recognize=recognise, rate_hz=RATE, format=common_pb2.SAMPLE_FORMAT_F32)

        async def requests() -> AsyncIterator[prober_pb2.RecognizeStreamRequest]:
            yield prober_pb2.RecognizeStreamRequest(config=config)
            yield prober_pb2.RecognizeStreamRequest(chunk=sound(60, 2.6).tobytes())

        streamed = [message async for message in running.prober.RecognizeStream(requests())]
        assert [message.window for message in streamed] == list(whole.windows)
        assert all(message.calibration == whole.calibration for message in streamed)
        assert whole.calibration.state == FROZEN


async def test_duplicates_teach_nothing(start: Start) -> None:
    async with start() as running:
        for _ in range(20):
            await running.recognised(1)
        (state,) = await running.listed()
        assert (state.clips, state.refused, state.state) == (1, 19, COLLECTING)
        assert b'servox_prober_tenant_clips_total{outcome="duplicate"} 19.0' in generate_latest(
            running.metrics.registry
        )


async def test_a_frame_head_answers_uncalibrated_and_says_so(start: Start) -> None:
    async with start() as running:
        answer = await running.recognised(1, head="frames")
        assert answer.calibration == prober_pb2.UsedCalibration(tenant="acme")
        assert await running.listed() == []
        reset = prober_pb2.ResetCalibrationRequest(key=prober_pb2.CalibrationKey(tenant="acme", head="frames"))
        with pytest.raises(BadInput, match="reads frames"):
            await running.asked("ResetCalibration", reset)


@pytest.mark.parametrize("name", ["../up", "a/b", "-", ".hidden", "x" * 64, "tab\t"])
async def test_names_that_are_none_are_refused(start: Start, name: str) -> None:
    async with start() as running:
        with pytest.raises(BadInput, match="use 1 to 63 letters"):
            await running.recognised(1, tenant=name)


async def test_a_caller_with_a_tenant_of_their_own_names_no_other(start: Start, tmp_path: Path) -> None:
    async with start() as running:
        tenants, head = running.tenants, Registry(tmp_path / "heads").get("toy")
        with calling(Caller(name="shop", tenant="acme")):
            assert (await tenants.visit("", head)).tenant == "acme"
            assert (await tenants.visit("acme", head)).tenant == "acme"
            with pytest.raises(Forbidden, match="your key is for tenant acme"):
                await tenants.visit("rival", head)
            with pytest.raises(Forbidden):
                await tenants.states("rival")
            document = await exported_of(running)
            with pytest.raises(Forbidden):
                await tenants.take_in(document, "rival")


async def exported_of(running: Running) -> str:
    with calling(Caller()):
        await running.recognised(1)
        key = prober_pb2.CalibrationKey(tenant="acme")
        answer = await running.asked("ExportCalibration", prober_pb2.ExportCalibrationRequest(key=key))
        document: str = answer.state_json
        return document


async def test_a_restart_loses_nothing_that_was_drained(start: Start) -> None:
    async with start() as running:
        for number in range(10):
            await running.recognised(number)
    async with start() as running:
        assert (await running.recognised(70)).calibration.clips == 10
        for number in range(10, 17):
            await running.recognised(number)
        assert (await running.recognised(71)).calibration.state == READY


async def test_a_prober_that_is_killed_loses_what_was_not_written_yet(start: Start, tmp_path: Path) -> None:
    async with start(tenant_save_s=1000) as running:
        for number in range(6):
            await running.recognised(number)
        await running.tenants.flush()
        (path,) = (tmp_path / "tenants" / "acme").glob("*.json")
        written = path.read_text()
        await running.recognised(8)
        assert path.read_text() == written
        assert json.loads(written)["states"][0]["clips"] == 6


async def test_a_damaged_file_is_set_aside_and_answers_go_on(start: Start, tmp_path: Path) -> None:
    async with start() as running:
        await running.recognised(1)
    (path,) = (tmp_path / "tenants" / "acme").glob("*.json")
    path.write_text(path.read_text()[:-40])
    async with start() as running:
        answer = await running.recognised(2)
        assert (answer.calibration.state, answer.calibration.clips) == (COLLECTING, 0)
        (state,) = await running.listed()
        assert "set aside" in state.alarm
        shown = generate_latest(running.metrics.registry).decode()
        assert 'servox_prober_tenant_alarm{head="toy:' in shown
        assert path.with_suffix(".damaged").exists()


async def test_of_two_probers_on_one_folder_one_learns_and_the_other_reads(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.prober.tenants.calibrations.LOOK_AGAIN_S", 0.0)
    async with start(tenant_ready_clips=4, tenant_save_s=1000) as first:
        await first.recognised(0)
        async with start(tenant_ready_clips=4) as second:
            for number in range(10, 14):
                assert (await second.recognised(number)).calibration.clips == 0  # nothing is written yet
            for number in range(1, 5):
                await first.recognised(number)
            await first.tenants.flush()
            read = await second.recognised(20)
            assert (read.calibration.state, read.calibration.clips) == (READY, 5)
            freeze = prober_pb2.FreezeCalibrationRequest(key=prober_pb2.CalibrationKey(tenant="acme"))
            with pytest.raises(Exception, match="another prober looks after"):
                await second.tenants.freeze("acme", None, thaw=False)
            await first.server.stop()
            await second.recognised(30)
            frozen = await second.asked("FreezeCalibration", freeze)
            assert [(each.state, each.clips) for each in frozen.calibrations] == [(FROZEN, 5 + 1)]


async def test_operators_freeze_thaw_export_import_and_reset(start: Start, tmp_path: Path) -> None:
    key = prober_pb2.CalibrationKey(tenant="acme", head="toy")
    async with start(tenant_ready_clips=4) as running:
        with pytest.raises(NotFound, match="no calibration"):
            await running.asked("FreezeCalibration", prober_pb2.FreezeCalibrationRequest(key=key))
        for number in range(6):
            await running.recognised(number)
        frozen = await running.asked("FreezeCalibration", prober_pb2.FreezeCalibrationRequest(key=key))
        version = frozen.calibrations[0].version
        answer = await running.recognised(90)
        assert (answer.calibration.state, answer.calibration.version) == (FROZEN, version)
        await running.recognised(91)
        assert (await running.recognised(90)).overall == answer.overall
        document = (await running.asked("ExportCalibration", prober_pb2.ExportCalibrationRequest(key=key))).state_json
        taken = await running.asked(
            "ImportCalibration", prober_pb2.ImportCalibrationRequest(state_json=document, tenant="twin")
        )
        assert (taken.calibrations[0].tenant, taken.calibrations[0].state) == ("twin", FROZEN)
        twin = await running.recognised(90, tenant="twin")
        assert twin.overall == answer.overall
        assert [each.tenant for each in await running.listed()] == ["acme", "twin"]
        thawed = await running.asked("FreezeCalibration", prober_pb2.FreezeCalibrationRequest(key=key, thaw=True))
        assert thawed.calibrations[0].state == READY
        gone = await running.asked("ResetCalibration", prober_pb2.ResetCalibrationRequest(key=key))
        assert gone.calibrations[0].clips == 6
        assert not list((tmp_path / "tenants" / "acme").glob("*.json"))
        assert (await running.recognised(92)).calibration.clips == 0


async def test_what_cannot_be_imported_is_refused(start: Start) -> None:
    async with start() as running:
        document = json.loads(await exported_of(running))
        (state,) = document["states"]
        for change, why in (
            ({"mean": [*state["mean"][:-1], "x"]}, "no finite number"),
            ({"recent": state["recent"][:-1]}, "give a list of 24"),
            ({"tenant": "../etc"}, "use 1 to 63 letters"),
            ({"weight": -1}, "give a number from 0"),
            ({"phase": "cooked"}, "give text like"),
            ({"extra": 1}, "it is unknown"),
            ({"heads": [{**state["heads"][0], "raw": [1, 1, 1]}]}, "sum to one"),
        ):
            changed = json.dumps({**document, "states": [{**state, **change}]})
            with pytest.raises(BadInput, match=why):
                await running.asked("ImportCalibration", prober_pb2.ImportCalibrationRequest(state_json=changed))
        for text in ("", "[]", '{"schema": 7, "states": []}', "[" * 100_000):
            with pytest.raises(BadInput, match="calibration: "):
                await running.asked("ImportCalibration", prober_pb2.ImportCalibrationRequest(state_json=text))


async def test_an_imported_state_of_another_width_is_refused_where_it_would_answer(start: Start) -> None:
    async with start() as running:
        document = json.loads(await exported_of(running))
        document["states"][0]["mean"].append(0.0)
        document["states"][0]["recent"].append(0.0)
        request = prober_pb2.ImportCalibrationRequest(state_json=json.dumps(document), tenant="wide")
        await running.asked("ImportCalibration", request)
        with pytest.raises(BadInput, match="25 dimensions and head toy:"):
            await running.recognised(1, tenant="wide")


async def test_one_tenant_too_many_is_refused(start: Start) -> None:
    async with start(max_tenants=2, tenants_in_memory=1) as running:
        for tenant in ("a", "b"):
            await running.recognised(1, tenant=tenant)
        await running.tenants.flush()
        with pytest.raises(Refused, match="over the limit of 2"):
            await running.recognised(1, tenant="c")
        for tenant in ("a", "b", "a"):  # one at a time is in memory, and nothing is lost on the way
            await running.recognised(2, tenant=tenant)
        kept = {each.tenant: each.clips for each in await running.listed()}
        assert kept == {"a": 3, "b": 2}  # clips are known again only while the state is in memory


async def test_tenants_of_whom_nothing_is_kept_leave_no_trace(start: Start, tmp_path: Path) -> None:
    async with start(tenants_in_memory=1) as running:
        for number in range(5):
            with pytest.raises(BadInput):
                await running.recognised(1, tenant=f"t{number}", window_ms=5)
    assert list((tmp_path / "tenants").iterdir()) == []


# ---- priors ----------------------------------------------------------------------------------------------------------


async def test_priors_of_a_tenant(start: Start) -> None:
    async with start(tenant_ready_clips=4) as running:
        estimated = KIND(kind=KIND.KIND_ESTIMATED)
        first = await running.recognised(0, prior=estimated)
        assert first.prior.kind == KIND.KIND_TRAIN  # too little was heard
        for number in range(1, 7):
            await running.recognised(number)
        plain = await running.recognised(80)
        answer = await running.recognised(80, prior=estimated)
        assert answer.prior.kind == KIND.KIND_ESTIMATED
        assert dict(answer.prior.probabilities) == pytest.approx(
            dict.fromkeys(("anger", "happiness", "sadness"), 1 / 3)
        )
        assert answer.overall != plain.overall
        with pytest.raises(Refused, match="estimated-em is off here"):
            await running.recognised(80, prior=KIND(kind=KIND.KIND_ESTIMATED_EM))
        for kind in (KIND.KIND_ESTIMATED, KIND.KIND_TENANT):
            with pytest.raises(BadInput, match="name the tenant"):
                await running.recognised(80, tenant="", prior=KIND(kind=kind))
        with pytest.raises(BadInput, match="none is set for tenant acme"):
            await running.recognised(80, prior=KIND(kind=KIND.KIND_TENANT))


async def test_estimation_by_em_where_it_is_allowed(start: Start) -> None:
    async with start(tenant_ready_clips=4, tenant_em=True) as running:
        for number in range(6):
            await running.recognised(number)
        answer = await running.recognised(80, prior=KIND(kind=KIND.KIND_ESTIMATED_EM))
        assert answer.prior.kind == KIND.KIND_ESTIMATED_EM
        assert sum(answer.prior.probabilities.values()) == pytest.approx(1)


async def test_a_tenants_own_prior_is_set_used_and_taken_away(start: Start) -> None:
    key = prober_pb2.CalibrationKey(tenant="acme", head="toy")
    shares = {"anger": 0.6, "happiness": 0.3, "sadness": 0.1}
    explicit = KIND(kind=KIND.KIND_EXPLICIT, probabilities=shares)
    async with start() as running:
        for prior, why in (
            (KIND(kind=KIND.KIND_EXPLICIT, probabilities={**shares, "sadness": 0.3}), "sums to 1.2"),
            (KIND(kind=KIND.KIND_EXPLICIT, probabilities={"joy": 1.0}), r"unknown classes \['joy'\]"),
            (KIND(kind=KIND.KIND_TENANT), "cannot be the tenant's own"),
        ):
            with pytest.raises(BadInput, match=why):
                await running.asked("SetTenantPrior", prober_pb2.SetTenantPriorRequest(key=key, prior=prior))
        lost = prober_pb2.SetTenantPriorRequest(key=prober_pb2.CalibrationKey(tenant="acme"), prior=explicit)
        with pytest.raises(BadInput, match="head: it is missing"):
            await running.asked("SetTenantPrior", lost)
        await running.asked("SetTenantPrior", prober_pb2.SetTenantPriorRequest(key=key, prior=explicit))
        own = await running.recognised(3, prior=KIND(kind=KIND.KIND_TENANT))
        said = await running.recognised(3, prior=explicit)
        assert (own.prior.kind, own.overall) == (KIND.KIND_EXPLICIT, said.overall)
        assert dict(own.prior.probabilities) == pytest.approx(shares)
    async with start() as running:  # it is kept
        assert (await running.recognised(3, prior=KIND(kind=KIND.KIND_TENANT))).overall == said.overall
        await running.asked("SetTenantPrior", prober_pb2.SetTenantPriorRequest(key=key))
        with pytest.raises(BadInput, match="none is set"):
            await running.recognised(3, prior=KIND(kind=KIND.KIND_TENANT))


# ---- drift -----------------------------------------------------------------------------------------------------------


async def test_drift_shows_as_gauges(start: Start) -> None:
    async with start(tenant_ready_clips=4, tenant_gauges=1) as running:
        for number in range(8):
            await running.recognised(number, tenant="other-one")
        for number in range(20):
            await running.recognised(number)
        text = generate_latest(running.metrics.registry).decode()
        assert 'servox_prober_tenant_feature_drift{head="toy:' in text
        for name in ("feature_drift", "prior_drift", "shift", "weight", "alarm"):
            assert f"servox_prober_tenant_{name}{{" in text
        assert 'tenant="acme"' in text
        assert 'tenant="other"' in text
        assert "other-one" not in text  # of one tenant only is the label its own


async def test_calls_of_a_known_tenant_wait_for_no_disk(start: Start) -> None:
    async with start() as running:
        await running.recognised(1)
        async with running.tenants._disk:
            async with asyncio.timeout(20):
                assert (await running.recognised(2)).calibration.clips == 1


async def test_a_folder_that_cannot_be_written_to_is_told_and_answers_without_a_tenant_go_on(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    async with start(tenants=tmp_path / "file" / "tenants") as running:
        with pytest.raises(StorageFull, match="see that the folder is writable"):
            await running.recognised(1)
        assert (await running.recognised(1, tenant="")).overall.label
