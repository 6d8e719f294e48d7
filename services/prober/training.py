"""Fitting heads: the one place of the prober that imports torch and scikit-learn.

- The recipe is SER Evals' (arXiv 2408.07851): label smoothing, AdamW, OneCycle stepped per batch with torch's own
  momentum cycle, gradient norm clipped, dropout behind the GELU, the last incomplete batch dropped. A set smaller than
  one batch is one batch.
- One head is fitted by one thread, and several threads fit several heads. Many heads stacked into one batched model
  were measured and are no faster on a CPU (1.2 to 1.4 ms a head and step against 1.1 at the default size): what is
  saved in calls is lost in memory traffic, for one head with its moments fits a core's cache and a hundred do not. And
  so a head is the same to the last bit whatever is trained beside it.
- All randomness of a head comes from one generator of its own: first weights, order of the clips, dropout.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from .heads import Floats, Weights
from .specs import Recipe

Ints = npt.NDArray[np.int64]
Tick = Callable[[int], None]

SECOND_MOMENT = 0.999  # torch's default
_NAMES = ("hidden.weight", "hidden.bias", "norm.weight", "norm.bias", "output.weight", "output.bias")


class Inputs(Protocol):
    """What an MLP is trained on."""

    dims: int

    def __len__(self) -> int:
        """How many clips."""

    def take(self, clips: Ints) -> tuple[Tensor, Tensor | None]:
        """Rows [r, d] of these clips, and which of them each row belongs to ([r]; None: one row a clip, in order)."""


class Vectors:
    """One standardised vector a clip.

    Args:
        x: [n, d].
    """

    def __init__(self, x: Floats) -> None:
        self._x = torch.from_numpy(x)
        self.dims = x.shape[1]

    def __len__(self) -> int:
        return len(self._x)

    def take(self, clips: Ints) -> tuple[Tensor, Tensor | None]:
        """One row a clip."""
        return self._x[torch.from_numpy(clips)], None


class Frames:
    """Every frame of every clip, one clip after the other; may lie in a memory-mapped file.

    Args:
        values: [frames, d].
        lengths: [n], frames of each clip, in the order of `values`.
        chosen: [m], the clips to use; None for all.
    """

    def __init__(self, values: Floats, lengths: Ints, chosen: Ints | None = None) -> None:
        self._values = values
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._chosen = np.arange(len(lengths)) if chosen is None else chosen
        self.dims = values.shape[1]

    def __len__(self) -> int:
        return len(self._chosen)

    def only(self, chosen: Ints) -> "Frames":
        """The same frames, fewer clips."""
        return Frames(self._values, np.diff(self._starts), self._chosen[chosen])

    def take(self, clips: Ints) -> tuple[Tensor, Tensor | None]:
        """All frames of the clips."""
        spans = [(self._starts[clip], self._starts[clip + 1]) for clip in self._chosen[clips]]
        rows = np.concatenate([self._values[start:end] for start, end in spans])
        owner = np.repeat(np.arange(len(spans)), [end - start for start, end in spans])
        return torch.from_numpy(rows), torch.from_numpy(owner)


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


def first_weights(dims: int, hidden: int, classes: int, generator: torch.Generator) -> list[Tensor]:
    """Xavier-uniform hidden layer, biases 0, output N(0, 1/sqrt(d)), in the order of the names in a head."""
    into = torch.empty(hidden, dims)
    torch.nn.init.xavier_uniform_(into, generator=generator)
    out = torch.empty(classes, hidden).normal_(0.0, dims**-0.5, generator=generator)
    return [into, torch.zeros(hidden), torch.ones(hidden), torch.zeros(hidden), out, torch.zeros(classes)]


def fit_mlp(inputs: Inputs, labels: Ints, *, classes: int, recipe: Recipe, seed: int, tick: Tick) -> Weights:
    """Weights of an MLP on `labels` [n].

    Args:
        inputs: vectors or frames of n clips.
        labels: 0 to classes - 1.
        classes: outputs K.
        recipe: how.
        seed: of everything random.
        tick: called after each epoch with the steps since the last call; may raise to stop.
    """
    generator = torch.Generator().manual_seed(seed)
    network = _Network(first_weights(inputs.dims, recipe.hidden, classes, generator))
    truth, step = torch.from_numpy(labels), 0
    total, batches = recipe.steps(len(labels)), _Batches(len(labels), recipe.batch, generator)
    for _ in range(recipe.epochs):
        for clips in batches.epoch():
            rows, owner = inputs.take(clips)
            logits = forward(
                network.parameters, rows, owner, clips=len(clips), dropout=recipe.dropout, generator=generator
            )
            wanted = truth[torch.from_numpy(clips)]
            functional.cross_entropy(logits, wanted, label_smoothing=recipe.label_smoothing).backward()  # type: ignore[no-untyped-call]
            rate, moment = one_cycle(step, total, recipe.learning_rate)
            network.step(rate=rate, moment=moment, decay=recipe.weight_decay, clip_norm=recipe.clip_norm)
            step += 1
        tick(batches.count)
    return {name: p.detach().numpy().copy() for name, p in zip(_NAMES, network.parameters, strict=True)}


class _Network:
    """Weights and their gradients as views of one vector each, and AdamW on the vectors.

    torch.optim walks tensor by tensor, and its first step imports torch's compiler: seconds that nothing here needs.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._flat = torch.cat([weight.reshape(-1) for weight in weights])
        self._gradient, self._first, self._second, self._spread = (torch.zeros_like(self._flat) for _ in range(4))
        self._steps = 0
        self.parameters, start = list[Tensor](), 0
        for weight in weights:
            span = slice(start, start + weight.numel())
            parameter = self._flat[span].view(weight.shape).requires_grad_()
            parameter.grad = self._gradient[span].view(weight.shape)  # backward adds to it in place
            self.parameters.append(parameter)
            start = span.stop

    @torch.no_grad()
    def step(self, *, rate: float, moment: float, decay: float, clip_norm: float) -> None:
        """One step of AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2) on the clipped gradient."""
        self._steps += 1
        gradient, first, second = self._gradient, self._first, self._second
        gradient.mul_(torch.clamp(clip_norm / (torch.linalg.vector_norm(gradient) + 1e-6), max=1.0))
        first.lerp_(gradient, 1 - moment)
        second.mul_(SECOND_MOMENT).addcmul_(gradient, gradient, value=1 - SECOND_MOMENT)
        spread = torch.mul(second, 1 / (1 - SECOND_MOMENT**self._steps), out=self._spread).sqrt_().add_(1e-8)
        self._flat.mul_(1 - rate * decay).addcdiv_(first, spread, value=-rate / (1 - moment**self._steps))
        gradient.zero_()


class _Batches:
    def __init__(self, clips: int, size: int, generator: torch.Generator) -> None:
        self._clips, self._size, self._generator = clips, min(size, clips), generator
        self.count = max(1, clips // size)

    def epoch(self) -> Iterator[Ints]:
        order = torch.randperm(self._clips, generator=self._generator).numpy()
        for start in range(0, self.count * self._size, self._size):
            yield order[start : start + self._size]


def forward(
    parameters: Sequence[Tensor],
    rows: Tensor,
    owner: Tensor | None,
    *,
    clips: int,
    dropout: float,
    generator: torch.Generator,
) -> Tensor:
    """Logits [clips, K] of rows [r, d]; rows of one owner are averaged."""
    into, bias, scale, shift, out, out_bias = parameters
    hidden = functional.gelu(functional.layer_norm(functional.linear(rows, into, bias), bias.shape, scale, shift))
    if dropout > 0:
        kept = torch.rand(hidden.shape, generator=generator) >= dropout  # half the time of bernoulli_
        hidden = hidden * kept.to(hidden.dtype).div_(1 - dropout)
    logits = functional.linear(hidden, out, out_bias)
    if owner is None:
        return logits
    share = 1 / torch.bincount(owner, minlength=clips).to(logits.dtype)
    return logits.new_zeros(clips, logits.shape[1]).index_add(0, owner, logits * share[owner, None])


def fit_logistic(x: Floats, labels: Ints, *, classes: int, c: float) -> Weights:
    """Multinomial logistic regression on standardised vectors [n, d] (scikit-learn, lbfgs, L2 of strength 1/C).

    A class without clips is answered with probability zero in effect (bias -30).
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    present = np.unique(labels)
    model = LogisticRegression(C=c, max_iter=2000)
    with threadpool_limits(1):  # the sum of a dot product depends on how many threads share it
        model.fit(x.astype(np.float64), labels)
    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, -30.0)
    if len(present) == 2:  # one row: the log-odds of the second class
        weight[present], bias[present] = (
            np.stack([-model.coef_[0], model.coef_[0]]) / 2,
            np.array([-0.5, 0.5]) * model.intercept_,
        )
    else:
        weight[present], bias[present] = model.coef_, model.intercept_
    return {"output.weight": weight.astype(np.float32), "output.bias": bias.astype(np.float32)}


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Keeps torch from spreading one head over several cores while several heads are fitted; restored afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
