"""A large graph is traced in a process of its own, and a checkpoint's weights are read when they are used."""

import sys
from pathlib import Path

import pytest
import torch

from bench.checkpoints import LARGE_V3, saved_whisper
from services.embedder import parity
from services.embedder.backbones import open_backbone, tracing
from services.embedder.backbones.checkpoint import open_checkpoint
from services.embedder.bundle import load
from services.embedder.contexts import Context
from services.embedder.export import export
from services.embedder.runtimes import choose
from servox.errors import BundleError, Unavailable

SMALL = {**LARGE_V3, "d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128}
EXACT = Context.parse("exact")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_whisper(tmp_path_factory.mktemp("checkpoints") / "random", SMALL)


def test_a_process_of_its_own_makes_the_same_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracing.trace(open_backbone(str(checkpoint)), EXACT, 1, tmp_path / "here.onnx")
    monkeypatch.setattr(tracing, "APART_BYTES", 0)
    monkeypatch.delattr(tracing, "trace_here")  # so that no other way is left
    tracing.trace(open_backbone(str(checkpoint)), EXACT, 1, tmp_path / "apart.onnx")
    assert (tmp_path / "apart.onnx").read_bytes() == (tmp_path / "here.onnx").read_bytes()


def test_what_fails_there_is_said_here(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot be traced .*No such file or directory"):
        tracing.trace_apart(open_backbone(str(checkpoint)), EXACT, 0, tmp_path / "nowhere" / "a.onnx")


def test_a_process_that_the_system_ended_says_that_memory_ran_out(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = tmp_path / "python"
    ended.write_text("#!/bin/sh\nkill -9 $$\n")
    ended.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(ended))
    with pytest.raises(Unavailable, match=r"memory runs out.*fewer --blocks"):
        tracing.trace_apart(open_backbone(str(checkpoint)), EXACT, 0, tmp_path / "a.onnx")


def test_tensors_are_float32_when_read_and_pages_of_the_file_before(checkpoint: Path) -> None:
    tensors = open_checkpoint(str(checkpoint)).tensors(("model.encoder.",))
    assert tensors["conv1.weight"].dtype == torch.float32
    assert tensors._stored["conv1.weight"].dtype == torch.float16
    assert len(tensors) == len(list(tensors)) == 2 * 15 + 7
    assert "conv1.weight" in tensors
    assert tensors.get("nothing") is None


def test_an_fp16_bundle_is_measured_and_half_as_large(checkpoint: Path, tmp_path: Path) -> None:
    single, half = (
        export(str(checkpoint), tmp_path / precision, context="exact", precision=precision)
        for precision in ("fp32", "fp16")
    )
    figure = next(f for f in half.parity if f.name == "precision")
    assert 1e-5 < figure.value <= parity.PRECISION_BOUNDS["fp16"]
    assert half.parity_clips.endswith("float16 on cpu") or half.parity_clips.endswith("float16 on cuda")
    assert half.digest != single.digest
    assert half.graph.stat().st_size < single.graph.stat().st_size
    assert load(half.folder) == half
    assert choose(half, "cpu").name == "onnx"
