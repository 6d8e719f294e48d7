"""Half precision on random models of the true architecture: what is rounded, what is not, and that it stays close."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from transformers import WhisperConfig, WhisperModel

from services.embedder.backbones import open_backbone, tracing
from services.embedder.bundle import FRONT_END
from services.embedder.contexts import Context
from services.embedder.graphs import edited
from services.embedder.halve import front_end, halve
from services.embedder.quantise import quantise_weights
from services.embedder.runtimes.onnx import DIMENSIONS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "whisper-random"
    torch.manual_seed(1)
    config = WhisperConfig(
        d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128, init_std=0.08,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=64,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    WhisperModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def traced(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The graph in float32."""
    path = tmp_path_factory.mktemp("graphs") / "encoder.onnx"
    tracing.trace(open_backbone(str(checkpoint)), Context.parse("silence:32"), 2, path)
    return path.read_bytes()


@pytest.fixture(params=[False, True], ids=["inside", "beside"])
def graph(request: pytest.FixtureRequest, traced: bytes, tmp_path: Path) -> Path:
    """A graph to change, in a folder of its own."""
    path = tmp_path / "encoder.onnx"
    path.write_bytes(traced)
    if request.param:
        model = onnx.load(path)
        onnx.save(model, path, save_as_external_data=True, location="encoder.onnx.data")
    return path


@pytest.fixture
def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    pcm = rng.normal(0, 0.1, (3, 24_000)).astype(np.float32)
    return {"pcm": pcm, "lengths": np.array([24_000, 9_000, 400], np.int64)}


def run(path: Path, batch: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["statistics"], batch)[0])


def test_half_is_close_and_is_not_the_same(graph: Path, batch: dict[str, np.ndarray]) -> None:
    single, before = run(graph, batch), sum(path.stat().st_size for path in graph.parent.iterdir())
    halve(graph)
    onnx.checker.check_model(str(graph), full_check=True)
    half = run(graph, batch)
    assert half.dtype == np.float32
    error = np.abs(half - single).max() / single.std()
    assert 1e-6 < error < 5e-3
    assert sum(path.stat().st_size for path in graph.parent.iterdir()) < before
    assert {path.name for path in graph.parent.iterdir()} <= {"encoder.onnx", "encoder.onnx.data"}


def test_half_equals_the_module_with_rounded_weights(
    graph: Path, checkpoint: Path, batch: dict[str, np.ndarray]
) -> None:
    """The weights' rounding is exact; what is left is that of activations."""
    module = open_backbone(str(checkpoint)).graph(Context.parse("silence:32"), 2)
    for part in module.modules():
        if isinstance(part, torch.nn.Linear):
            for parameter in part.parameters():
                parameter.data = parameter.data.half().float()
    with torch.inference_mode():
        expected = module(torch.from_numpy(batch["pcm"]), torch.from_numpy(batch["lengths"]))[0].numpy()
    halve(graph)
    np.testing.assert_allclose(run(graph, batch), expected, atol=4e-3 * expected.std())


def test_the_front_end_the_residual_and_every_sum_stay_float32(graph: Path) -> None:
    halve(graph)
    model = onnx.shape_inference.infer_shapes(onnx.load(graph), strict_mode=True, data_prop=True)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    front = front_end(model.graph.node)
    assert len(front) > 10
    for node in model.graph.node:
        inputs = {kinds.get(name) for name in node.input}
        if node.name in front or node.op_type in {"Softmax", "LayerNormalization", "ReduceSum", "Sqrt"}:
            assert TensorProto.FLOAT16 not in inputs, node.name
        if node.op_type in {"MatMul", "Gemm", "Conv"} and node.name not in front:
            assert TensorProto.FLOAT not in inputs, node.name
    assert {output.type.tensor_type.elem_type for output in model.graph.output} == {TensorProto.FLOAT}
    made = {name for node in model.graph.node for name in node.output}
    assert set(FRONT_END) <= made


def test_a_number_that_half_has_not_becomes_the_largest_that_it_has(graph: Path) -> None:
    with edited(graph) as editing:
        name = next(n.input[1] for n in editing.model.graph.node if n.op_type == "MatMul" and "mel" not in n.input[1])
        values = np.array(editing.read(name))
        values[0, 0] = 1e6
        editing.write(name, values)
    halve(graph)
    with edited(graph) as editing:
        assert editing.read(f"{name}.half")[0, 0] == 65504


@pytest.mark.parametrize("change", [halve, quantise_weights])
def test_what_fails_changes_nothing(
    graph: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in graph.parent.iterdir()}

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("services.embedder.graphs.Editing.write", broken)
    with pytest.raises(OSError, match="disk full"):
        change(graph)
    after = {path.name: path.read_bytes() for path in graph.parent.iterdir() if not path.name.endswith(".new")}
    assert after == before


def test_with_its_shape_fixed_nothing_is_left_to_compute_on_a_host(graph: Path, tmp_path: Path) -> None:
    """What a CUDA graph needs: of a free shape, ONNX Runtime would compute the shapes on the CPU."""
    halve(graph)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fixed.onnx")
    for name, size in zip(DIMENSIONS, (2, 48_000), strict=True):
        options.add_free_dimension_override_by_name(name, size)
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(tmp_path / "fixed.onnx").graph.node}
    assert not kinds & {"Shape", "Range", "Size", "ConstantOfShape"}, kinds


def test_int8_is_the_same_wherever_the_weights_lie(graph: Path, batch: dict[str, np.ndarray]) -> None:
    single = run(graph, batch)
    quantise_weights(graph)
    lossy = run(graph, batch)
    assert 1e-5 < np.abs(lossy - single).max() / single.std() < 0.2
    with edited(graph) as editing:
        kinds = {tensor.data_type for tensor in editing.model.graph.initializer}
    assert TensorProto.INT8 in kinds
