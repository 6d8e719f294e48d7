"""The few directions in which a training set varies."""

import numpy as np

from services.prober.subspace import axes_of


def vectors(seed: int = 0, *, clips: int = 200, dims: int = 60, rank: int = 60) -> np.ndarray:
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(clips, rank)) * 0.8 ** np.arange(rank) @ random.normal(size=(rank, dims))
    return np.asarray((mixed - mixed.mean(axis=0)) / mixed.std(axis=0), dtype=np.float32)


def test_the_axes_hold_what_the_best_axes_hold() -> None:
    x = vectors()
    axes = axes_of(x, 12)
    assert axes is not None
    assert axes.shape == (60, 12)
    held = np.linalg.qr(axes)[0]
    best = np.linalg.svd(x, compute_uv=False)[:12]
    assert np.square(x @ held).sum() > 0.995 * np.square(best).sum()


def test_every_axis_carries_about_the_same_and_one_on_average() -> None:
    axes = axes_of(vectors(), 12)
    assert axes is not None
    variances = np.square(vectors() @ axes).mean(axis=0)
    assert abs(variances.mean() - 1) < 1e-4
    assert variances.max() < 12 / 2, "on the principal axes the first would carry most of it"


def test_a_set_within_the_axes_loses_nothing() -> None:
    x = vectors(rank=8)
    axes = axes_of(x, 10)
    assert axes is not None
    back, *_ = np.linalg.lstsq((x @ axes).astype(np.float64), x.astype(np.float64), rcond=None)
    np.testing.assert_allclose((x @ axes) @ back, x, atol=1e-3)


def test_there_are_no_axes_where_they_save_nothing_and_no_more_than_clips() -> None:
    assert axes_of(vectors(), 60) is None
    assert axes_of(vectors(), 500) is None
    few = axes_of(vectors(clips=5), 12)
    assert few is not None
    assert few.shape == (60, 5)
    assert np.isfinite(few).all()


def test_the_axes_are_the_same_every_time() -> None:
    np.testing.assert_array_equal(axes_of(vectors(), 12), axes_of(vectors(), 12))
