"""The few directions in which a training set varies, so that an MLP needs not learn in all of them.

- A few hundred clips vary in far fewer directions than an embedding has dimensions. Trained in 96 of them, a head
  scores what it scores in all 512, at a fifth of the work.
- The axes are turned at random among themselves. On the principal axes as they come, Adam moves every weight by the
  same step whatever an axis carries, and 2 to 4 points of macro-F1 are lost; turned, every axis carries the same.
- What was learned in the subspace is a weight matrix over all dimensions again: hosting does not know of it.
"""

import numpy as np
import numpy.typing as npt

from .heads import Floats

ITERATIONS = 2

Axes = npt.NDArray[np.float32]


def axes_of(x: Floats, components: int) -> Axes | None:
    """Axes [d, p] that hold most of the variance of centred `x` [n, d]; None where p would not be below d.

    Randomised power iteration (Halko, Martinsson & Tropp 2011, arXiv 0909.4061, algorithm 4.3) turned by a random
    rotation. `x @ axes` has variance 1 on average.

    Args:
        x: standardised vectors.
        components: how many axes; no more than there are clips.
    """
    count = min(components, len(x))
    if count >= x.shape[1]:
        return None
    random = np.random.default_rng(0)  # the same axes for every seed of a head, so that heads share them
    axes = random.standard_normal((x.shape[1], count), dtype=np.float32)
    for _ in range(ITERATIONS):
        axes = x.T @ (x @ axes)
        axes /= np.abs(axes).max()  # twice is too few for rounding to hide an axis, so they are made upright once
    turned = np.linalg.qr(axes)[0] @ np.linalg.qr(random.standard_normal((count, count), dtype=np.float32))[0]
    spread = np.sqrt(np.square(x @ turned).mean(dtype=np.float64))
    return np.asarray(turned / max(float(spread), 1e-6), dtype=np.float32)
