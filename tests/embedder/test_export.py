"""From a checkpoint to a bundle and back through both engines, and every way in which export must refuse."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
import typer
from transformers import WhisperConfig, WhisperModel
from typer.testing import CliRunner

from services.embedder import commands, parity
from services.embedder import export as exporting
from services.embedder.backbones import open_backbone, tracing
from services.embedder.bundle import GRAPH, MANIFEST, Bundle, load
from services.embedder.contexts import Context
from services.embedder.export import export
from services.embedder.quantise import quantised
from services.embedder.runtimes.onnx import OnnxRuntime
from services.embedder.runtimes.openvino import OpenVinoRuntime
from services.embedder.runtimes.torch import TorchRuntime
from servox.errors import BadSetting, BundleError, StorageFull, Unavailable

RATE = 16_000
TRACE = exporting.trace


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Whisper whose attention is far from uniform, so that a wrong bias or mask shows."""
    folder = tmp_path_factory.mktemp("checkpoints") / "whisper-random"
    torch.manual_seed(1)
    config = WhisperConfig(
        d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128, init_std=0.08,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=64,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    WhisperModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One trace a recipe: tracing takes seconds, and what follows it is what most tests are about."""
    folder = tmp_path_factory.mktemp("graphs")

    def trace(recipe: exporting.Recipe, path: Path) -> None:
        cached = folder / f"{recipe.backbone.name} {recipe.context} {recipe.blocks}"
        if not cached.exists():
            TRACE(recipe, cached)
        shutil.copy(cached, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "trace", trace)
        yield


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The default recipe: half depth, silence:32, fp32."""
    return export(str(checkpoint), tmp_path_factory.mktemp("bundles") / "default")


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray, parity.Clips]:
    clips = parity.gather([], None, RATE)
    _, pcm, lengths = next(clips.batches())
    return pcm, lengths, clips


def test_the_default_is_half_depth_and_silence_tokens(exported: Bundle) -> None:
    assert (str(exported.context), exported.blocks, exported.precision) == ("silence:32", 1, "fp32")
    assert (exported.layers, exported.layer_names) == ((0, 1), ("conv", "block 1"))
    assert (exported.default_layer, exported.dims, exported.rate_hz, exported.frame_samples) == (1, 64, RATE, 320)
    assert (exported.family, exported.source, exported.max_duration_ms) == ("whisper", "whisper-random", 30_000)
    assert {figure.name: figure.passed for figure in exported.parity} == dict.fromkeys(
        ("hidden", "precision", "context"), True
    )
    assert "synthesised" in exported.parity_clips
    assert exported.exporter["torch"] == torch.__version__


def test_what_was_exported_can_be_loaded(exported: Bundle) -> None:
    assert load(exported.folder) == exported
    assert sorted(path.name for path in exported.folder.iterdir()) == [MANIFEST, GRAPH]
    assert [path.name for path in exported.folder.parent.iterdir()] == ["default"]


def test_the_graph_is_valid_and_says_nothing_about_the_machine(exported: Bundle) -> None:
    model = onnx.load(exported.graph)
    onnx.checker.check_model(model, full_check=True)
    assert [(i.name, len(i.type.tensor_type.shape.dim)) for i in model.graph.input] == [("pcm", 2), ("lengths", 1)]
    assert [o.name for o in model.graph.output] == ["statistics", "frames"]
    content = exported.graph.read_bytes() + (exported.folder / MANIFEST).read_bytes()
    for part in (str(Path.cwd()), str(Path.home()), str(exported.folder.parent), ".py"):
        assert part.encode() not in content


def test_one_recipe_makes_one_digest(
    exported: Bundle, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "trace", TRACE)
    again = export(str(checkpoint), tmp_path / "again")
    assert again.digest == exported.digest
    assert again.files == exported.files


@pytest.mark.parametrize("engine", [OnnxRuntime, OpenVinoRuntime])
def test_every_engine_equals_torch_in_mixed_batches(
    exported: Bundle, checkpoint: Path, batch: tuple[np.ndarray, np.ndarray, parity.Clips], engine: Callable[..., Any]
) -> None:
    pcm, lengths, _ = batch
    reference = TorchRuntime(open_backbone(str(checkpoint)).graph(exported.context, 1)).run(pcm, lengths, frames=True)
    runtime = engine(exported, threads=1)
    result = runtime.run(pcm, lengths, frames=True)
    np.testing.assert_allclose(result.statistics, reference.statistics, atol=1e-4)
    assert result.frames is not None
    assert reference.frames is not None
    for row, length in enumerate(lengths):
        own = exported.frames(int(length))
        np.testing.assert_allclose(result.frames[row, :own], reference.frames[row, :own], atol=1e-4)
    assert runtime.run(pcm, lengths).frames is None
    for row, length in enumerate(lengths):
        alone = runtime.run(pcm[row : row + 1, :length], lengths[row : row + 1])
        np.testing.assert_allclose(alone.statistics[0], result.statistics[row], atol=1e-4)
    runtime.close()


@pytest.mark.parametrize("engine", [OnnxRuntime, OpenVinoRuntime])
def test_every_engine_takes_any_shape(exported: Bundle, engine: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    runtime = engine(exported, threads=1)
    for rows, width in ((1, 400), (3, 16_001), (1, 480_000), (2, 479_999), (1, 500_000)):
        pcm = rng.normal(0, 0.1, (rows, width)).astype(np.float32)
        lengths = np.full(rows, min(width, 480_000), np.int64)
        statistics = runtime.run(pcm, lengths).statistics
        assert statistics.shape == (rows, 2, 2, 64)
        assert np.isfinite(statistics).all()


@pytest.mark.parametrize(("context", "blocks", "layers"), [("padded", "all", 4), ("exact", 0, 1), ("fixed:2", "1", 2)])
def test_every_policy_and_depth_exports(
    checkpoint: Path, tmp_path: Path, context: str, blocks: int | str, layers: int
) -> None:
    bundle = export(str(checkpoint), tmp_path / "bundle", context=context, blocks=blocks)
    assert len(bundle.layers) == layers
    assert bundle.layer_names[-1] == {4: "final", 2: "block 1", 1: "conv"}[layers]
    assert str(bundle.context) == context
    assert all(figure.passed for figure in bundle.parity)
    states = open_backbone(str(checkpoint)).reference(bundle.context, bundle.blocks)
    clip = parity.gather([], None, RATE).samples[3]
    result = OnnxRuntime(bundle, threads=1).run(clip[None], np.array([len(clip)]))
    np.testing.assert_allclose(result.statistics[0, :, 0], np.stack(list(states(clip))).mean(axis=1), atol=1e-4)


def test_logmel_needs_no_checkpoint(tmp_path: Path) -> None:
    bundle = export("logmel", tmp_path / "logmel")
    assert (bundle.family, bundle.layers, bundle.dims, bundle.frame_samples) == ("logmel", (0,), 80, 160)
    clip = parity.gather([], None, RATE).samples[5]
    expected = open_backbone("logmel").reference(Context.parse("exact"), 0)(clip)
    for engine in (OnnxRuntime, OpenVinoRuntime):
        result = engine(bundle, threads=1).run(clip[None], np.array([len(clip)]), frames=True)
        assert result.frames is not None
        np.testing.assert_allclose(result.frames[0], expected[0], atol=2e-4)
        np.testing.assert_allclose(result.statistics[0, 0, 1], expected[0].std(axis=0), atol=1e-4)


def test_int8_weights_are_smaller_and_close(
    checkpoint: Path, exported: Bundle, tmp_path: Path, same_in_company: Callable[[Bundle], None]
) -> None:
    bundle = export(str(checkpoint), tmp_path / "int8", precision="int8")
    same_in_company(bundle)
    assert bundle.digest != exported.digest
    assert bundle.graph.stat().st_size < exported.graph.stat().st_size
    figure = next(f for f in bundle.parity if f.name == "precision")
    assert 1e-5 < figure.value <= parity.PRECISION_BOUNDS["int8"]
    kinds = {node.op_type for node in onnx.load(bundle.graph).graph.node}
    assert "DequantizeLinear" in kinds
    assert not kinds & {"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"}


def test_quantised_weights_are_the_nearest_of_their_scale() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(40, 30)).astype(np.float32)
    weight[:, 3] = 0.0
    weight[:, 4] *= 1000
    values, scale = quantised(weight)
    assert values.dtype == np.int8
    assert (np.abs(values * scale - weight) <= scale / 2 * 1.001).all()


def breaking(change: Callable[[onnx.ModelProto], None]) -> Callable[[exporting.Recipe, Path], None]:
    """The exporter's trace step, followed by damage to the graph."""
    trace = exporting.trace

    def broken(recipe: exporting.Recipe, path: Path) -> None:
        trace(recipe, path)
        model = onnx.load(path)
        change(model)
        onnx.save(model, path)

    return broken


def scale_weights(model: onnx.ModelProto) -> None:
    tensor = max(model.graph.initializer, key=lambda t: int(np.prod(t.dims)))
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))


def test_a_broken_graph_is_refused_and_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "trace", breaking(scale_weights))
    with pytest.raises(BundleError, match=r"parity figure hidden is .* must be at most 0\.001"):
        export(str(checkpoint), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_figure_out_of_bound_is_refused(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "HALF_DEPTH_COSINE", 0.999999999)
    with pytest.raises(BundleError, match=r"parity figure context is .* must be at least"):
        export(str(checkpoint), tmp_path / "bundle")
    monkeypatch.setitem(parity.PRECISION_BOUNDS, "int8", 1e-9)
    with pytest.raises(BundleError, match=r"parity figure precision is .* must be at most 1e-09"):
        export(str(checkpoint), tmp_path / "bundle", context="exact", precision="int8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"context": "loud"}, "--context 'loud'.*padded, fixed:SECONDS, exact, silence:K or cached:K"),
        ({"blocks": 3}, "--blocks 3.*0 to 2"),
        ({"blocks": "half"}, "--blocks 'half'.*0 to 2"),
        ({"precision": "fp8"}, "--precision 'fp8'.*fp32, bf16, fp16, int8"),
    ],
)
def test_bad_settings_name_flag_value_and_choices(
    checkpoint: Path, tmp_path: Path, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadSetting, match=words):
        export(str(checkpoint), tmp_path / "bundle", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"context": "padded"}, "--context padded"),
        ({"blocks": 1}, "--blocks 1"),
        ({"precision": "int8"}, "--precision"),
    ],
)
def test_logmel_refuses_what_it_does_not_have(tmp_path: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        export("logmel", tmp_path / "bundle", **arguments)


def test_an_old_bundle_is_replaced_only_when_told(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(BadSetting, match=r"not empty.*--replace"):
        export("logmel", out)
    assert (out / "notes.txt").read_text() == "mine"
    bundle = export("logmel", out, replace_existing=True)
    assert load(out) == bundle
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bundle", MANIFEST, GRAPH]


def test_a_failed_replacement_keeps_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = export("logmel", tmp_path / "bundle")
    monkeypatch.setattr(parity, "HIDDEN_BOUND", 0.0)
    with pytest.raises(BundleError):
        export("logmel", tmp_path / "bundle", replace_existing=True)
    assert load(tmp_path / "bundle") == old


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(StorageFull, match="free space or choose another --out"), exporting.disk_errors(tmp_path):
        full.write_bytes(b"x" * 10_000)


def test_a_file_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadSetting, match="is a file"):
        export("logmel", tmp_path / "file")


def test_progress_is_told_in_order(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    export("logmel", tmp_path / "bundle", progress=lambda step, done: told.append((step, done)))
    assert [done for _, done in told] == sorted(done for _, done in told)
    assert told[0][1] == 0.0
    assert told[-1] == ("done", 1.0)


def test_the_command_ends_with_one_line_of_json(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(commands.export)
    result = CliRunner().invoke(app, ["logmel", "--out", str(tmp_path / "bundle"), "--json"])
    assert result.exit_code == 0, result.output
    line = json.loads(result.stdout.splitlines()[-1])
    assert line["digest"] == load(tmp_path / "bundle").digest
    assert line["bundle"] == str(tmp_path / "bundle")
    table = commands.parity_table(load(tmp_path / "bundle"))
    assert table.row_count == 2


def test_a_bf16_bundle_is_measured_with_bf16(
    checkpoint: Path, tmp_path: Path, exported: Bundle, same_in_company: Callable[[Bundle], None]
) -> None:
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(Unavailable, match="no bf16"):
            export(str(checkpoint), tmp_path / "bundle", precision="bf16")
        return
    bundle = export(str(checkpoint), tmp_path / "bundle", precision="bf16")
    figure = next(f for f in bundle.parity if f.name == "precision")
    assert 1e-4 < figure.value <= parity.PRECISION_BOUNDS["bf16"]
    assert bundle.files == exported.files
    assert bundle.digest != exported.digest
    same_in_company(bundle)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_whisper_base_keeps_its_bounds_on_real_speech(
    whisper_base: Path, data_root: Path, tmp_path: Path, precision: str, same_in_company: Callable[[Bundle], None]
) -> None:
    bundle = export(str(whisper_base), tmp_path / "bundle", precision=precision, data_root=data_root)
    same_in_company(bundle)
    values = {figure.name: figure.value for figure in bundle.parity}
    assert values["hidden"] <= 1e-3
    assert values["precision"] <= {"bf16": 0.05, "int8": 0.10}[precision]
    assert values["context"] >= 0.9
    fp32 = dataclasses.replace(bundle, precision="fp32")
    clip = parity.gather([], data_root, RATE).samples[0][None]
    lengths = np.array([clip.shape[1]])
    lossy, close = (OpenVinoRuntime(b, threads=1).run(clip, lengths).statistics for b in (bundle, fp32))
    assert np.abs(lossy - close).max() > 0


def test_graphs_beyond_one_protobuf_keep_their_weights_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "trace", TRACE)
    monkeypatch.setattr(tracing, "EXTERNAL_BYTES", 0)
    bundle = export("logmel", tmp_path / "large")
    assert set(bundle.files) == {GRAPH, f"{GRAPH}.data"}
    assert load(bundle.folder) == bundle
    clip = parity.gather([], None, RATE).samples[2][None]
    results = [engine(bundle).run(clip, np.array([clip.size])) for engine in (OnnxRuntime, OpenVinoRuntime)]
    np.testing.assert_allclose(results[0].statistics, results[1].statistics, atol=1e-5)
    (bundle.folder / f"{GRAPH}.data").write_bytes(b"cut")
    with pytest.raises(BundleError, match=r"encoder\.onnx\.data .* is damaged"):
        load(bundle.folder)


def test_company_of_one_width_changes_nothing_to_the_bit(
    exported: Bundle, same_in_company: Callable[[Bundle], None]
) -> None:
    same_in_company(exported)
