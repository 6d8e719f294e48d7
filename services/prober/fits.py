"""One MLP that is being fitted: which clips come next, how fast it learns, and when it has learned enough.

- The recipe is SER Evals' (arXiv 2408.07851): label smoothing, AdamW, OneCycle stepped per batch with torch's own
  momentum cycle, gradient norm clipped, dropout behind the GELU, the last incomplete batch dropped. A set smaller than
  one batch is one batch, or a few where the recipe wants more steps an epoch.
- All randomness of a head comes from one generator of its own: first weights, order of the clips, dropout. So a head
  does not depend on what is trained beside it.
- Pure numpy; `training` does the steps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from servox.priors import softmax

from .heads import Floats, Weights
from .inputs import Inputs
from .losses import loss_of
from .specs import Recipe

Ints = npt.NDArray[np.int64]

MIX = "mix"
MIX_SPEED = 30.0  # how much faster than a weight the mix of layers moves: it has a few numbers and as few steps


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """An MLP to be fitted.

    Attributes:
        inputs: vectors or frames of n clips.
        labels: [n], 0 to classes - 1.
        classes: outputs K.
        recipe: how.
        seed: of everything random.
        held_back: [m], clips that decide when to stop and are not learned from; empty for a fixed number of epochs.
    """

    inputs: Inputs
    labels: Ints
    classes: int
    recipe: Recipe
    seed: int
    held_back: Ints

    @property
    def learned(self) -> int:
        """How many clips are learned from."""
        return len(self.labels) - len(self.held_back)

    @property
    def shape(self) -> tuple[int, ...]:
        """What heads of one stack have in common."""
        width = self.recipe.width(self.learned)
        return self.inputs.dims, self.inputs.layers, self.recipe.hidden, self.classes, width


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitted:
    """An MLP that was fitted.

    Attributes:
        weights: under the names of a head.
        epoch: from 1, after which they were taken.
        mix: [layers], shares of the layers, where they were mixed; empty otherwise.
    """

    weights: Weights
    epoch: int
    mix: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """What one step learns from.

    Attributes:
        rows: [r, d] or [r, layers, d].
        owner: [r], the clip of each row; None for one row a clip.
        targets: [clips, K].
    """

    rows: Floats
    owner: Ints | None
    targets: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How far one step of AdamW goes.

    Attributes:
        number: of the step, from 1.
    """

    rate: float
    moment: float
    decay: float
    clip_norm: float
    number: int


class Learner:
    """Goes through the steps of one fit."""

    def __init__(self, fit: Fit) -> None:
        self.fit, self._random = fit, np.random.default_rng(fit.seed)
        recipe, count = fit.recipe, fit.learned
        self.first = first_weights(fit.inputs.dims, recipe.hidden, fit.classes, self._random)
        if fit.inputs.layers > 1:
            self.first.append(np.zeros(fit.inputs.layers, dtype=np.float32))
        self._learned = np.setdiff1d(np.arange(len(fit.labels)), fit.held_back)
        self.loss = loss_of(recipe, fit.labels[self._learned], classes=fit.classes)
        self._size = recipe.width(count)
        self.per_epoch = count // self._size
        self._steps, self._total = 0, recipe.steps(count)
        self._order = self._learned
        self._best, self._best_loss, self._best_epoch = dict[str, Floats](), math.inf, 0
        self.done = False

    @property
    def epoch_ended(self) -> bool:
        """Whether every clip was learned from equally often."""
        return self._steps % self.per_epoch == 0

    @property
    def judged(self) -> bool:
        """Whether its weights are looked at after this epoch: clips were held back, or it is the last."""
        return bool(len(self.fit.held_back)) or self._steps == self._total

    @property
    def _epoch(self) -> int:
        return self._steps // self.per_epoch

    def batch(self) -> Batch:
        """What the next step learns from."""
        at = self._steps % self.per_epoch
        if at == 0:
            self._order = self._random.permutation(self._learned)
        clips = self._order[at * self._size : (at + 1) * self._size]
        rows, owner = self.fit.inputs.take(clips)
        truth = self.fit.labels[clips]
        targets = self.loss.targets[truth] / self.loss.weights[truth].sum()
        return Batch(rows=rows, owner=owner, targets=targets)

    def drop(self, kept: Floats) -> None:
        """Fills [r, hidden] with the factors of the next step's dropout."""
        drop_units(self._random, self.fit.recipe.dropout, kept)

    def pace(self) -> Pace:
        """How far the next step goes; counts it as done."""
        recipe = self.fit.recipe
        rate, moment = one_cycle(self._steps, self._total, recipe.learning_rate)
        self._steps += 1
        return Pace(rate=rate, moment=moment, decay=recipe.weight_decay, clip_norm=recipe.clip_norm, number=self._steps)

    def judge(self, weights: Mapping[str, Floats], loss: float) -> None:
        """After an epoch: whether to go on, and whether these are the weights to keep.

        Args:
            weights: as they are now; kept, not copied.
            loss: on the clips held back; any number where there are none.
        """
        last = self._steps == self._total
        if not len(self.fit.held_back):
            self._best, self._best_epoch, self.done = dict(weights), self._epoch, last
            return
        if loss < self._best_loss:
            self._best, self._best_loss, self._best_epoch = dict(weights), loss, self._epoch
        self.done = last or self._epoch - self._best_epoch >= self.fit.recipe.patience

    def fitted(self) -> Fitted:
        """The weights, with what the loss has moved put back."""
        weights = dict(self._best)
        weights["output.bias"] = weights["output.bias"] + self.loss.correction
        moved = weights.pop(MIX, np.empty(0, dtype=np.float32)) * np.float32(MIX_SPEED)
        shares = softmax(moved).astype(np.float32) if moved.size else moved
        return Fitted(weights=weights, epoch=self._best_epoch, mix=shares)


def one_cycle(step: int, total: int, max_rate: float) -> tuple[float, float]:
    """Learning rate and first AdamW moment at a step: torch's OneCycleLR with pct_start 0.1 and its other defaults.

    Smith & Topin 2017 (arXiv 1708.07120), cosine annealing: the rate climbs from max/25 to max over the first tenth
    and falls to max/250,000, while the moment goes from .95 to .85 and back.
    """
    peak = 0.1 * total - 1
    if step <= peak:
        share = step / peak if peak > 0 else 1.0
        return _cosine(max_rate / 25, max_rate, share), _cosine(0.95, 0.85, share)
    share = min(1.0, (step - peak) / (total - 1 - peak))
    return _cosine(max_rate, max_rate / 25e4, share), _cosine(0.85, 0.95, share)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def first_weights(dims: int, hidden: int, classes: int, random: np.random.Generator) -> list[Floats]:
    """Xavier-uniform hidden layer, biases 0, output N(0, 1/sqrt(d)), in the order of the names in a head."""
    bound = math.sqrt(6 / (dims + hidden))
    into = (random.random((hidden, dims), dtype=np.float32) * 2 - 1) * np.float32(bound)
    out = random.standard_normal((classes, hidden), dtype=np.float32) * np.float32(dims**-0.5)
    zeros = np.zeros(hidden, dtype=np.float32)
    return [into, zeros, np.ones_like(zeros), zeros, out, np.zeros(classes, dtype=np.float32)]


def drop_units(random: np.random.Generator, dropout: float, kept: Floats) -> None:
    """Fills [rows, hidden] with factors of a dropout layer: 0 for `dropout` of them to the nearest 1/256, else over 1.

    A byte a unit, as the generator makes them, eight at a time: a fifth of the time of a float each.
    """
    if not dropout:
        kept.fill(1)
        return
    threshold = round(dropout * 256)
    drawn = random.bit_generator.random_raw(-(-kept.size // 8)).astype("<u8", copy=False).view(np.uint8)
    np.multiply(drawn[: kept.size].reshape(kept.shape) >= threshold, np.float32(256 / (256 - threshold)), out=kept)
