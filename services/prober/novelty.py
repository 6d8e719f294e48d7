"""How far a clip is from all that a head was trained on.

- The measure is the mean square of the features after they are standardised by the training mean and deviation: 1 on
  average for the training clips themselves, larger for what they did not prepare the head for. It is the squared
  Mahalanobis distance of a diagonal covariance over the number of features, so heads of different widths compare.
- A head's own limit is the 99th percentile of this distance over clips of speakers that it did not hear; the novelty of
  a window is its distance over that limit, and above 1 the window is out of distribution.
"""

import numpy as np
import numpy.typing as npt


def distances(z: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Distances [n] of standardised features `z` [n, d]."""
    return np.asarray(np.mean(np.square(z, dtype=np.float64), axis=1))
