"""Distances to training features."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from services.prober.novelty import STEADY_MS, distances, tolerance


def test_distances_are_mahalanobis_of_a_diagonal_covariance() -> None:
    random = np.random.default_rng(0)
    x = random.normal(2, random.uniform(0.5, 3, 7), (200, 7))
    mean, std = x.mean(axis=0), x.std(axis=0)
    wanted = cdist(x, mean[None], "mahalanobis", VI=np.diag(1 / std**2))[:, 0] ** 2 / 7
    found = distances((x - mean) / std)
    np.testing.assert_allclose(found, wanted)
    assert found.mean() == pytest.approx(1), "training clips lie at 1 on average"


def test_short_audio_may_lie_further_out() -> None:
    lengths = [1, 100, 1000, 1500, STEADY_MS, 10_000, 30_000]
    found = [tolerance(length) for length in lengths]
    assert found == sorted(found, reverse=True)
    assert found[-3:] == [1, 1, 1]
    assert tolerance(1000) == 3
