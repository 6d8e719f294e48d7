import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from services.embedder.bundle import Bundle, load
from services.embedder.parity import Clips
from services.embedder.precisions import Trial, export_fastest, fastest, judged, trials, variant
from services.embedder.runtimes import choose
from servox.errors import BadSetting, Unavailable


@pytest.fixture
def plain(tiny_bundle: Path) -> Bundle:
    return load(tiny_bundle)


@pytest.fixture
def clips(speech: Callable[..., np.ndarray]) -> Clips:
    return Clips(samples=tuple(speech(0.4 + 0.1 * seed, seed=seed) for seed in range(5)), origin="tones")


def test_the_fastest_that_nothing_speaks_against_is_chosen(plain: Bundle) -> None:
    bf16, int8 = (dataclasses.replace(plain, precision=name) for name in ("bf16", "int8"))
    tried = [
        Trial(precision="fp32", bundle=plain, realtime=70.0),
        Trial(precision="bf16", bundle=bf16, realtime=120.0),
        Trial(precision="int8", bundle=int8, realtime=160.0),
    ]
    assert fastest(tried) is int8
    assert fastest([*tried[:2], dataclasses.replace(tried[2], refused="its error")]) is bf16
    assert fastest([tried[0], Trial(precision="bf16", refused="this CPU has no bf16")]) is plain


def test_a_gate_may_refuse_anything_but_float32(plain: Bundle) -> None:
    asked: list[tuple[str, str]] = []

    def never(bundle: Bundle, other: Bundle) -> str:
        asked.append((bundle.precision, other.precision))
        return "a head loses"

    int8 = Trial(precision="int8", bundle=dataclasses.replace(plain, precision="int8"))
    assert judged(int8, plain, never).refused == "a head loses"
    assert judged(Trial(precision="fp32", bundle=plain), plain, never).refused == ""
    assert judged(Trial(precision="bf16", refused="no bf16"), plain, never).refused == "no bf16"
    assert judged(dataclasses.replace(int8, refused="its error"), plain, never).refused == "its error"
    assert asked == [("int8", "fp32")]


def test_every_precision_of_the_cpu_is_compared_and_timed(plain: Bundle, clips: Clips, tmp_path: Path) -> None:
    tried = trials(plain, tmp_path, clips)
    assert sorted(trial.precision for trial in tried) == ["bf16", "fp32", "int8"]
    by_name = {trial.precision: trial for trial in tried}
    assert by_name["fp32"].bundle is plain
    assert by_name["fp32"].error == 0.0
    for trial in tried:
        if trial.bundle is None:  # where the CPU has no bf16
            with pytest.raises(Unavailable):
                choose(dataclasses.replace(plain, precision=trial.precision), "cpu")
            continue
        assert trial.realtime is not None
        assert 0 < trial.realtime < math.inf
        assert trial.bundle.digest != plain.digest or trial.precision == "fp32"
    rates = [trial.realtime for trial in tried if trial.realtime is not None]
    assert rates == sorted(rates)


def test_a_variant_is_a_whole_bundle_of_its_own(plain: Bundle, tmp_path: Path) -> None:
    made = variant(plain, "int8", tmp_path / "int8")
    made.write_manifest()
    assert load(tmp_path / "int8").digest == made.digest != plain.digest
    assert load(plain.folder).digest == plain.digest


def test_what_has_no_encoder_stays_in_float32_and_nothing_else_is_left(tmp_path: Path) -> None:
    bundle, tried = export_fastest("logmel", tmp_path / "out")
    assert [trial.precision for trial in tried] == ["fp32"]
    assert load(tmp_path / "out").digest == bundle.digest
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(BadSetting, match="--replace"):
        export_fastest("logmel", tmp_path / "out")
