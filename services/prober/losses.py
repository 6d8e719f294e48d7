"""What an MLP's loss asks of each clip: label smoothing, class weights and logit adjustment as two small tables.

- Whatever the loss, a head's logits assume the classes' shares in its training set, as if the loss had been plain: what
  a loss has moved is put back into the output's bias. A prior is then chosen when the head is asked (`servox.priors`):
  `uniform` gives the answers that weights and adjustment aim at.
- Pure numpy.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from servox.priors import class_prior

from .heads import Floats
from .specs import Recipe

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loss:
    """Cross-entropy against a table of targets.

    The loss of a batch is -sum_i sum_k targets[y_i, k] log softmax(z_i + offset)_k / sum_i weights[y_i], which is
    torch's `cross_entropy` with weights and smoothing.

    Attributes:
        targets: [K, K], row y for a clip of class y; the class weights are in it.
        weights: [K].
        offset: [K], added to the logits in training only (Menon et al. 2021, arXiv 2007.07314, eq. 10).
    """

    targets: Floats
    weights: Floats
    offset: Floats

    @property
    def correction(self) -> Floats:
        """[K], what is added to the trained logits so that they assume the training set's shares."""
        shift = self.offset - np.log(self.weights)
        return np.asarray(shift - shift.mean(), dtype=np.float32) if np.ptp(shift) else np.zeros_like(shift)


def loss_of(recipe: Recipe, labels: Ints, *, classes: int) -> Loss:
    """The loss of a recipe on clips with these labels [n].

    Class weights are (n / (K n_k)) ** class_weights: 1 is scikit-learn's "balanced", 0 none. The offset is
    `logit_adjustment` (tau in the paper) times the log of the classes' shares. A class without clips weighs 1.
    """
    counts = np.bincount(labels, minlength=classes)
    balanced = counts.sum() / (classes * np.maximum(counts, 1))
    weights = np.where(counts > 0, balanced, 1.0) ** recipe.class_weights
    smoothed = (1 - recipe.label_smoothing) * np.eye(classes) + recipe.label_smoothing / classes
    prior = class_prior(counts, smoothing=0.0 if counts.all() else 1.0)
    return Loss(
        targets=(smoothed * weights).astype(np.float32),
        weights=weights.astype(np.float32),
        offset=(recipe.logit_adjustment * np.log(prior)).astype(np.float32),
    )
