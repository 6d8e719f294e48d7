"""The GPU benchmark's arithmetic and its loop, on a CPU; what needs a device refuses by name."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.checkpoints import LARGE_V3, random_whisper, saved_whisper
from bench.gpu import Plan, at_half_load, latencies, throughput
from services.embedder.backbones import open_backbone
from services.embedder.contexts import Context
from services.embedder.runtimes.torch import TorchRuntime

TINY = {**LARGE_V3, "d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    backbone = open_backbone(str(saved_whisper(tmp_path_factory.mktemp("checkpoints") / "tiny", TINY)))
    return Plan(
        backbone=backbone,
        context=Context.parse("silence:32"),
        blocks=2,
        seconds=(3.0,),
        rows=(1, 2, 64),
        budget_s=0.05,
        most_s=10.0,
    )


def test_large_v3_has_the_size_that_it_has() -> None:
    shapes = random_whisper(LARGE_V3, device="meta")
    assert sum(tensor.numel() for tensor in shapes.values()) == 636_968_960
    assert len(shapes) == 487


def test_cells_count_what_was_done(plan: Plan) -> None:
    runtime = TorchRuntime(plan.backbone.graph(plan.context, plan.blocks), attention="folded", precision="bf16")
    cells = list(throughput(runtime, plan, TINY, peak=1e12))
    assert [(cell["seconds"], cell["rows"]) for cell in cells] == [(3.0, 1), (3.0, 2)]  # 64 rows are over `most_s`
    for cell in cells:
        assert cell["of_peak"] == pytest.approx(cell["clips_per_s"] * plan.flops(TINY, 3.0) / 1e12)
    half = at_half_load(runtime, plan, cells)
    assert half["rate"] == pytest.approx(max(cell["clips_per_s"] for cell in cells) / 2)
    assert 0 < half["p50_ms"] <= half["p99_ms"]
    assert half["clips"] >= 32


def test_work_grows_with_the_clip(plan: Plan) -> None:
    assert plan.flops(TINY, 30.0) > 5 * plan.flops(TINY, 3.0)


def test_no_clip_is_served_twice_or_before_it_came() -> None:
    served: list[int] = []

    def serve(rows: int) -> None:
        served.append(rows)
        time.sleep(0.002)

    took = latencies(serve, rate=2000, most=4, duration_s=0.05)
    assert sum(served) == len(took) == 100
    assert max(served) <= 4
    assert (took > 0.002).all()


def test_without_a_gpu_it_ends_with_a_sentence() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "bench.gpu"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("bench.gpu needs a CUDA device: there is no CUDA device here")


def test_saved_checkpoints_are_float16_and_repeat(tmp_path: Path) -> None:
    first, again = (saved_whisper(tmp_path / name, TINY) / "model.safetensors" for name in ("a", "b"))
    assert first.read_bytes() == again.read_bytes()
    tensors = open_backbone(str(tmp_path / "a")).graph(Context.parse("exact"), 1).state_dict()
    assert np.isfinite(tensors["blocks.0.query.weight"].numpy()).all()
