"""What runs on GPUs, as far as a CPU allows: bound buffers, shapes, refusals; on a GPU, the real thing."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.embedder.bundle import Bundle, Engine, Shape, load
from services.embedder.contexts import Context
from services.embedder.export import export
from services.embedder.runtimes import choose, gpu, onnx, tensorrt
from services.embedder.runtimes.binding import CAPTURED_S, captured_shape, padded_batch
from services.embedder.runtimes.onnx import OnnxRuntime, cuda_options
from servox.errors import BadSetting, BundleError, Unavailable

HERE = Engine(tensorrt="10.9.0", gpu="NVIDIA H200", capability="9.0", driver="580.1", onnxruntime="1.31.1")

SHAPED = Bundle(
    folder=Path(),
    family="tiny",
    source="tiny",
    source_sha256="0" * 64,
    context=Context(kind="exact"),
    blocks=1,
    source_blocks=1,
    precision="fp16",
    rate_hz=16_000,
    frame_samples=160,
    dims=4,
    layers=(0,),
    layer_names=("conv",),
    default_layer=0,
    max_duration_ms=30_000,
    files={},
)


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return load(tiny_bundle)


@pytest.fixture
def no_gpu() -> None:
    try:
        found = gpu.find()
    except Unavailable:
        return
    pytest.skip(f"this machine has a {found.name}")


def batch(rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows * width)
    lengths = rng.integers(1, width + 1, rows)
    return rng.normal(0, 0.1, (rows, width)).astype(np.float32), lengths.astype(np.int64)


def test_bound_buffers_give_what_plain_runs_give(bundle: Bundle) -> None:
    """The device is a CPU here; the buffers, the padding and the cutting are the same code."""
    bound, plain = OnnxRuntime(bundle, threads=1, bound=True), OnnxRuntime(bundle, threads=1)
    for rows, width in ((1, 8_000), (3, 11_111), (3, 11_111), (4, 16_000), (1, 480_000), (2, 7_000), (3, 12_000)):
        pcm, lengths = batch(rows, width)
        ours = bound.run(pcm, lengths)
        assert ours.frames is None
        np.testing.assert_allclose(ours.statistics, plain.run(pcm, lengths).statistics, atol=1e-5)
        framed, expected = (runtime.run(pcm, lengths, frames=True) for runtime in (bound, plain))
        assert framed.frames is not None
        assert expected.frames is not None
        np.testing.assert_array_equal(framed.frames, expected.frames)
    assert len(bound._buffers) == 4
    bound.close()
    with pytest.raises(Unavailable, match="closed"):
        bound.run(*batch(1, 8_000))


def test_no_more_shapes_are_captured_than_their_weights_may_take(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "CAPTURED_BYTES", 2 * bundle.graph.stat().st_size)
    runtime, plain = OnnxRuntime(bundle, threads=1, bound=True), OnnxRuntime(bundle, threads=1)
    for rows in (1, 2, 4, 8):
        pcm, lengths = batch(rows, 8_000)
        expected = plain.run(pcm, lengths).statistics
        np.testing.assert_allclose(runtime.run(pcm, lengths).statistics, expected, atol=1e-5)
    assert list(runtime._buffers) == [(1, 8_000), (2, 8_000)]


def test_bound_results_outlive_the_next_run(bundle: Bundle) -> None:
    runtime = OnnxRuntime(bundle, threads=1, bound=True)
    pcm, lengths = batch(2, 8_000)
    first = runtime.run(pcm, lengths).statistics
    kept = first.copy()
    runtime.run(-pcm, lengths)
    np.testing.assert_array_equal(first, kept)


@given(rows=st.integers(1, 64), width=st.integers(1, 480_000))
def test_captured_shapes_hold_the_batch_and_are_few(rows: int, width: int) -> None:
    bundle = dataclasses.replace(SHAPED, max_duration_ms=30_000)
    shape = captured_shape(rows, width, bundle)
    if shape is None:
        assert rows > 1
        return
    assert rows <= shape[0] < 2 * rows
    assert width <= shape[1] <= bundle.max_samples
    assert shape[0] == 1 or shape[0] * shape[1] <= CAPTURED_S * bundle.rate_hz
    assert captured_shape(*shape, bundle) == shape


def test_padding_rows_are_one_sample_of_silence() -> None:
    pcm, lengths = padded_batch(*batch(3, 100), (4, 160))
    assert pcm.shape == (4, 160)
    assert lengths[3] == 1
    assert not pcm[3].any()
    assert not pcm[:, 100:].any()


def test_fp32_bundles_do_not_compute_in_tf32(bundle: Bundle) -> None:
    assert cuda_options(bundle, captures=True)["use_tf32"] == "0"
    half = cuda_options(dataclasses.replace(bundle, precision="fp16"), captures=False)
    assert half["use_tf32"] == "1"
    assert half["enable_cuda_graph"] == "0"


def test_an_absent_gpu_is_named(no_gpu: None) -> None:
    with pytest.raises(Unavailable, match="no CUDA device here"):
        gpu.find()


def test_a_gpu_build_without_a_gpu_is_refused(bundle: Bundle, no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With onnxruntime-gpu installed the provider is listed wherever it runs; the device is asked for before."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", tensorrt.PROVIDER])
    with pytest.raises(Unavailable, match="no CUDA device here"):
        choose(bundle, "cuda")
    with pytest.raises(Unavailable, match="TensorRT is not installed"):
        choose(dataclasses.replace(bundle, precision="fp16", engines={"tensorrt": HERE}), "cuda", engine="tensorrt")


def test_devices_engines_and_precisions_that_do_not_go_together(bundle: Bundle) -> None:
    half = dataclasses.replace(bundle, precision="fp16")
    with pytest.raises(BadSetting, match="tensorrt runs on GPUs only"):
        choose(half, "cpu", engine="tensorrt")
    with pytest.raises(BadSetting, match="tensorrt does not run fp32 bundles"):
        choose(bundle, "cuda", engine="tensorrt")
    with pytest.raises(BadSetting, match="openvino does not run fp16 bundles"):
        choose(half, "cpu", engine="openvino")
    assert choose(half).name == "onnx"


def test_tensorrt_is_refused_before_any_work(tmp_path: Path) -> None:
    if tensorrt.PROVIDER in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has TensorRT here")
    told: list[str] = []
    with pytest.raises(Unavailable, match="no TensorrtExecutionProvider here"):
        export(
            "nowhere", tmp_path / "b", precision="fp16", engine="tensorrt", progress=lambda step, _: told.append(step)
        )
    with pytest.raises(BadSetting, match="--engine tensorrt does not run --precision fp32"):
        export("nowhere", tmp_path / "b", engine="tensorrt")
    with pytest.raises(BadSetting, match="--engine 'openvino' is not one that is built ahead"):
        export("nowhere", tmp_path / "b", engine="openvino")
    assert told == []
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_without_engines_says_how_to_make_them(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"no TensorRT engines.*--precision fp16 --engine tensorrt"):
        tensorrt.TensorRtRuntime(bundle)


def test_engines_of_another_machine_are_refused_by_what_differs(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = dataclasses.replace(HERE, gpu="NVIDIA L4", capability="8.9", driver="550.2")
    assert tensorrt.differences(HERE, dataclasses.replace(HERE, driver="590.0")) == []
    monkeypatch.setattr(tensorrt, "probe", lambda: HERE)
    with pytest.raises(Unavailable, match=r"gpu NVIDIA L4 there, NVIDIA H200 here; capability 8.9 there.*export again"):
        tensorrt.TensorRtRuntime(dataclasses.replace(bundle, engines={"tensorrt": there}))


def test_engines_stand_in_the_manifest_and_not_in_the_digest(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "0.onnx").write_bytes(b"engine")
    (tmp_path / bundle.graph.name).write_bytes(bundle.graph.read_bytes())
    engine = dataclasses.replace(
        HERE,
        shapes=(Shape(rows=4, least=1, most=480_000),),
        files={"tensorrt/0.onnx": "5bc8ea8d16d92bf0a0b37a2e6d6a2b1b7ba62ea30cf4ea7d4bb4e05a6c8c5bd4"},
    )
    built = dataclasses.replace(bundle, folder=tmp_path, engines={"tensorrt": engine})
    built.write_manifest()
    assert load(tmp_path) == built
    assert built.digest == bundle.digest
    assert "engines" not in bundle.manifest()
    assert json.loads((tmp_path / "bundle.json").read_text())["engines"]["tensorrt"]["gpu"] == "NVIDIA H200"
    with pytest.raises(BundleError, match=r"tensorrt/0\.onnx .* is damaged"):
        tensorrt.check_files(tmp_path, engine)
    (tmp_path / "tensorrt" / "0.onnx").unlink()
    with pytest.raises(BundleError, match=r"lacks its file tensorrt/0\.onnx"):
        tensorrt.check_files(tmp_path, engine)


@given(rate=st.sampled_from([16_000, 24_000, 48_000]), longest_ms=st.integers(500, 60_000), window=st.integers(1, 800))
def test_every_width_has_one_profile(rate: int, longest_ms: int, window: int) -> None:
    bundle = dataclasses.replace(SHAPED, rate_hz=rate, max_duration_ms=longest_ms, window_samples=window)
    shapes = tensorrt.shapes(bundle)
    assert shapes[0].least == window
    assert shapes[-1].most == bundle.max_samples
    assert all(after.least == before.most + 1 for before, after in itertools.pairwise(shapes))
    for number, shape in enumerate(shapes):
        assert shape.rows >= 1
        assert tensorrt.bucket_of(shape.least, shapes) == tensorrt.bucket_of(shape.most, shapes) == number


def test_profiles_are_written_as_onnx_runtime_reads_them() -> None:
    settings = tensorrt.options(Shape(rows=16, least=16_001, most=32_000))
    assert settings["trt_profile_min_shapes"] == "pcm:1x16001,lengths:1"
    assert settings["trt_profile_opt_shapes"] == "pcm:8x32000,lengths:8"
    assert settings["trt_profile_max_shapes"] == "pcm:16x32000,lengths:16"
    assert "trt_dump_ep_context_model" not in settings
    built = tensorrt.options(Shape(rows=1, least=1, most=9), Path("folder") / "0.onnx")
    assert built["trt_ep_context_file_path"] == "folder/0.onnx"


@pytest.mark.gpu
def test_cuda_gives_what_the_cpu_gives(bundle: Bundle) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime is a CPU build: install onnxruntime-gpu in its place")
    gpu.find()
    on_gpu, on_cpu = OnnxRuntime(bundle, device="cuda"), OnnxRuntime(bundle, threads=1)
    for rows, width in ((1, 8_000), (3, 11_111), (3, 11_111), (64, 480_000), (3, 11_000)):
        pcm, lengths = batch(rows, width)
        expected = on_cpu.run(pcm, lengths).statistics
        for _ in range(4):  # the first run captures, the others replay
            np.testing.assert_allclose(on_gpu.run(pcm, lengths).statistics, expected, atol=1e-4)


@pytest.mark.gpu
def test_tensorrt_engines_are_built_and_loaded(bundle: Bundle, tmp_path: Path) -> None:
    try:
        tensorrt.probe()
    except Unavailable as error:
        pytest.skip(str(error))
    (tmp_path / bundle.graph.name).write_bytes(bundle.graph.read_bytes())
    built = tensorrt.build(dataclasses.replace(bundle, folder=tmp_path, precision="fp16"))
    built.write_manifest()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    on_gpu, on_cpu = choose(load(tmp_path), "cuda", engine="tensorrt"), OnnxRuntime(bundle, threads=1)
    for rows, width in ((1, 8_000), (3, 11_111), (70, 16_000), (2, 480_000)):
        pcm, lengths = batch(rows, width)
        expected = on_cpu.run(pcm, lengths).statistics
        np.testing.assert_allclose(on_gpu.run(pcm, lengths).statistics, expected, atol=2e-2)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
