import dataclasses
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperConfig, WhisperModel

from bench.engine_models import ENGINES
from bench.engine_peers import own_frames
from bench.engine_report import HEADS, Row, markdown, plot, ratio
from bench.engine_speech import read_clips, write_clips
from bench.engine_turns import layout
from bench.engine_work import Sizes, encoder_flops
from bench.engine_worker import Streams, timed
from services.study.feature_heads import Gap


def test_flops_are_those_that_torch_counts() -> None:
    config = WhisperConfig(
        num_mel_bins=80, d_model=64, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=256,
        decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=64, vocab_size=64, max_source_positions=50,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    encoder = WhisperModel(config).get_encoder()
    encoder.set_attn_implementation("eager")  # torch counts nothing inside its fused attention on a CPU
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, 80, 100))
    sizes = Sizes(mels=80, dims=64, inner=256, blocks=3)
    counted = encoder_flops(sizes, frames=50, tokens=50, rows=50, blocks=3)
    assert counted == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_flops_of_whisper_base_are_the_known_ones() -> None:
    base = Sizes(mels=80, dims=512, inner=2048, blocks=6)
    assert encoder_flops(base, frames=1500, tokens=1500, rows=1500, blocks=6) == pytest.approx(87.4e9, rel=0.01)
    assert encoder_flops(base, frames=150, tokens=150, rows=150, blocks=6) == pytest.approx(6.25e9, rel=0.02)
    short = encoder_flops(base, frames=152, tokens=184, rows=150, blocks=3)
    assert short / encoder_flops(base, frames=1500, tokens=1500, rows=1500, blocks=6) < 0.05


def test_a_ratio_over_rounds_has_an_interval_that_contains_it() -> None:
    at, low, high = ratio([50.0, 55.0, 60.0], [1.0, 1.0, 1.0])
    assert at == pytest.approx((50 * 55 * 60) ** (1 / 3))
    assert low is not None
    assert high is not None
    assert low < at < high
    # Student's t with 2 degrees of freedom, by hand
    logs = np.log([50, 55, 60])
    assert math.log(high) - math.log(at) == pytest.approx(4.302653 * logs.std(ddof=1) / math.sqrt(3), rel=1e-5)
    alone, *ends = ratio([2.0], [1.0])
    assert alone == pytest.approx(2.0)
    assert ends == [None, None]


def test_slowdowns_that_hit_both_alike_leave_the_ratio() -> None:
    assert list(ratio([50.0, 25.0, 10.0], [1.0, 0.5, 0.2])) == pytest.approx([50, 50, 50])


def test_streams_answer_in_order_and_never_share_an_engine() -> None:
    busy: list[threading.Lock] = []

    def make() -> object:
        lock = threading.Lock()
        busy.append(lock)

        def embed(clip: np.ndarray) -> np.ndarray:
            assert lock.acquire(blocking=False)
            try:
                return clip[:1] * 2
            finally:
                lock.release()

        return embed

    streams = Streams(make, 3)  # type: ignore[arg-type]
    clips = [np.full(4, value, np.float32) for value in range(50)]
    assert [float(vector[0]) for vector in streams.embed(clips)] == [2.0 * value for value in range(50)]
    assert len(busy) == 3
    found = timed(streams, clips, 0.0)
    assert found["clips"] == 50
    assert found["wall_s"] > 0
    assert found["rss_bytes"] > 10e6


def test_clips_come_back_as_they_were(tmp_path: Path) -> None:
    clips = [np.arange(n, dtype=np.float32) for n in (5, 1, 7)]
    write_clips(tmp_path / "some" / "clips.npz", clips)
    for one, other in zip(read_clips(tmp_path / "some" / "clips.npz"), clips, strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_engine_uses_all_processors_and_names_are_distinct() -> None:
    for engine in ENGINES:
        streams, threads = layout(engine, 4)
        assert streams * threads == 4
    names = [engine.name for engine in ENGINES]
    assert len(set(names)) == len(names)
    assert {engine.equals for engine in ENGINES if engine.equals} <= set(names)
    assert [own_frames(samples) for samples in (1, 320, 321, 480_000)] == [1, 1, 2, 1500]


ROW = Row(
    engine="Servox int8", context="silence:32", blocks=3, precision="int8", clips_per_s=95.0, ratio=60.1,
    ratio_low=58.0, ratio_high=62.0, cpu_ms=20.4, cpu_ratio=57.0, peak_share=0.5, f1=0.934,
    f1_by_corpus={"EmoDB": 0.934}, f1_from="Servox int8", to_reference=Gap(mean=0.06, low=0.03, high=0.09),
    to_ours=Gap(mean=0.0, low=None, high=None), rss_mb=300.0,
)  # fmt: skip


def test_the_table_has_a_cell_for_every_heading_and_the_plot_is_written(tmp_path: Path) -> None:
    unscored = dataclasses.replace(ROW, engine="peer", f1=None, to_reference=None, to_ours=None, ratio_low=None)
    lines = markdown([ROW, unscored]).splitlines()
    assert all(line.count("|") == len(HEADS) + 1 for line in lines)
    assert "60.1 (58.0–62.0)" in lines[2]
    assert "+0.060 (+0.030 to +0.090)" in lines[2]
    plot([ROW, unscored], tmp_path / "engines.svg")
    assert "Servox int8" in (tmp_path / "engines.svg").read_text()
