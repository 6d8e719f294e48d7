"""How far a clip is from all that a head was trained on.

- The measure is the mean square of the features after they are standardised by the training mean and deviation: 1 on
  average for the training clips themselves, larger for what they did not prepare the head for. It is the squared
  Mahalanobis distance of a diagonal covariance over the number of features, so heads of different widths compare.
- A head's own limit is the 99th percentile of this distance over clips of speakers that it did not hear; the novelty of
  a window is its distance over that limit, and above 1 the window is out of distribution.
- Means over short windows scatter more, so their limit is wider: speech of 1 s lies two to three times as far out as
  the same speech in 3 s (docs/recognition.md has the figures).
"""

import numpy as np
import numpy.typing as npt

STEADY_MS = 3000  # from this length on, a longer window lies no closer


def distances(z: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Distances [n] of standardised features `z` [n, d]."""
    return np.asarray(np.mean(np.square(z, dtype=np.float64), axis=1))


def tolerance(duration_ms: int) -> float:
    """How many times wider the limit is for audio of this length."""
    return max(1.0, STEADY_MS / max(1, duration_ms))
