"""Fitting MLPs, many at once: the one place of the prober that imports torch.

- Heads of one shape are one batched model: their weights are slices of one tensor, a step of all of them is one batched
  product a layer. What differs from head to head (clips, seed, learning rate, decay, loss, dropout, number of steps) is
  a slice's own. A head whose steps are done leaves the stack.
- The recipe is SER Evals' (arXiv 2408.07851): label smoothing, AdamW, OneCycle stepped per batch with torch's own
  momentum cycle, gradient norm clipped, dropout behind the GELU, the last incomplete batch dropped. A set smaller than
  one batch is one batch, or a few where the recipe wants more steps an epoch.
- All randomness of a head comes from one generator of its own: first weights, order of the clips, dropout. So a head
  does not depend on what is trained beside it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from servox.errors import BadSetting
from servox.priors import softmax

from .heads import Floats, Weights
from .inputs import Inputs
from .losses import loss_of
from .specs import Recipe

Ints = npt.NDArray[np.int64]
Tick = Callable[[int], None]
Device = str

SECOND_MOMENT = 0.999  # torch's default
MIX_SPEED = 30.0  # how much faster than a weight the mix of layers moves: it has a few numbers and as few steps
_NAMES = ("hidden.weight", "hidden.bias", "norm.weight", "norm.bias", "output.weight", "output.bias")
_MIX = "mix"


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


def kept_units(random: np.random.Generator, rows: int, hidden: int, dropout: float) -> Floats:
    """Factors [rows, hidden] of a dropout layer: 0 for `dropout` of them to the nearest 1/256, and the rest over 1.

    A byte a unit: a quarter of the time of a float each.
    """
    if not dropout:
        return np.ones((rows, hidden), dtype=np.float32)
    threshold = round(dropout * 256)
    drawn = np.frombuffer(random.bytes(rows * hidden), dtype=np.uint8).reshape(rows, hidden)
    return np.multiply(drawn >= threshold, np.float32(256 / (256 - threshold)), dtype=np.float32)


def check_device(name: str) -> None:
    """Whether torch can train there.

    Raises:
        BadSetting: it has no such device here.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise BadSetting(
            f"train_device = {name}: torch {torch.__version__} finds no CUDA device here; install a CUDA build of it "
            "and a driver, or train on the cpu"
        )


def fit_mlps(fits: Sequence[Fit], *, tick: Tick, device: Device = "cpu") -> list[Fitted]:
    """Fits MLPs of one shape as one batched model.

    Args:
        fits: of equal `shape`; one only, where it reads frames.
        tick: called after each epoch of each head with the head's steps in it; may raise to stop.
        device: of torch.
    """
    members = [_Member(fit) for fit in fits]
    running = list(members)
    stack = _Stack([member.first for member in members], device)
    while running:
        _step(stack, running, device)
        for slot, member in enumerate(running):
            if member.epoch_ended:
                tick(member.per_epoch)
                member.look(lambda at=slot: stack.weights(at))  # type: ignore[misc]
        if any(member.done for member in running):
            stack.keep([slot for slot, member in enumerate(running) if not member.done])
            running = [member for member in running if not member.done]
    return [member.fitted() for member in members]


def _step(stack: "_Stack", members: Sequence["_Member"], device: Device) -> None:
    batches = [member.batch() for member in members]
    rows = torch.from_numpy(np.stack([batch.rows for batch in batches])).to(device)
    kept = torch.from_numpy(np.stack([batch.kept for batch in batches])).to(device)
    targets = torch.from_numpy(np.stack([batch.targets for batch in batches])).to(device)
    offset = torch.from_numpy(np.stack([member.loss.offset for member in members])).to(device)
    logits = forward(stack.parameters, rows, kept)
    if (owner := batches[0].owner) is not None:
        logits = averaged(logits, torch.from_numpy(owner).to(device), clips=targets.shape[1])
    loss = -(targets * functional.log_softmax(logits + offset[:, None], dim=2)).sum()
    stack.step(torch.autograd.grad(loss, stack.parameters), [member.pace() for member in members])


def forward(parameters: Sequence[Tensor], rows: Tensor, kept: Tensor | None) -> Tensor:
    """Logits [heads, r, K] of rows [heads, r, d]; rows [heads, r, layers, d] are mixed by the last parameter first."""
    into, bias, scale, shift, out, out_bias, *mix = parameters
    if mix:
        shares = functional.softmax(mix[0] * MIX_SPEED, dim=1)
        rows = torch.einsum("hrld,hl->hrd", rows, shares)
    hidden = torch.baddbmm(bias[:, None], rows, into.transpose(1, 2))
    hidden = functional.gelu(
        torch.addcmul(shift[:, None], functional.layer_norm(hidden, hidden.shape[2:]), scale[:, None])
    )
    if kept is not None:
        hidden = hidden * kept
    return torch.baddbmm(out_bias[:, None], hidden, out.transpose(1, 2))


def averaged(logits: Tensor, owner: Tensor, *, clips: int) -> Tensor:
    """Mean logits [heads, clips, K] of the rows of each owner [r]."""
    share = 1 / torch.bincount(owner, minlength=clips).to(logits.dtype)
    empty = logits.new_zeros(len(logits), clips, logits.shape[2])
    return empty.index_add(1, owner, logits * share[owner, None])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Batch:
    rows: Floats  # [r, d]
    owner: Ints | None  # [r]
    targets: Floats  # [clips, K]
    kept: Floats  # [r, hidden]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pace:
    """One step of AdamW."""

    rate: float
    moment: float
    decay: float
    clip_norm: float
    number: int  # from 1


class _Member:
    """One head of a stack: which clips come next, how fast it learns, and when it has learned enough."""

    def __init__(self, fit: Fit) -> None:
        self._fit, self._random = fit, np.random.default_rng(fit.seed)
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
        return self._steps % self.per_epoch == 0

    @property
    def _epoch(self) -> int:
        return self._steps // self.per_epoch

    def batch(self) -> _Batch:
        """What the next step learns from."""
        at, recipe = self._steps % self.per_epoch, self._fit.recipe
        if at == 0:
            self._order = self._random.permutation(self._learned)
        clips = self._order[at * self._size : (at + 1) * self._size]
        rows, owner = self._fit.inputs.take(clips)
        kept = kept_units(self._random, len(rows), recipe.hidden, recipe.dropout)
        truth = self._fit.labels[clips]
        targets = self.loss.targets[truth] / self.loss.weights[truth].sum()
        return _Batch(rows=rows, owner=owner, targets=targets, kept=kept)

    def pace(self) -> _Pace:
        """How far the next step goes; counts it as done."""
        recipe = self._fit.recipe
        rate, moment = one_cycle(self._steps, self._total, recipe.learning_rate)
        self._steps += 1
        return _Pace(
            rate=rate,
            moment=moment,
            decay=recipe.weight_decay,
            clip_norm=recipe.clip_norm,
            number=self._steps,
        )

    def look(self, weights: Callable[[], dict[str, Floats]]) -> None:
        """After an epoch: whether to go on, and whether these are the weights to keep."""
        last = self._steps == self._total
        if not len(self._fit.held_back):
            if last:
                self._best, self._best_epoch, self.done = weights(), self._epoch, True
            return
        now = weights()
        if (loss := self._loss_held_back(now)) < self._best_loss:
            self._best, self._best_loss, self._best_epoch = now, loss, self._epoch
        self.done = last or self._epoch - self._best_epoch >= self._fit.recipe.patience

    def fitted(self) -> Fitted:
        """The weights, with what the loss has moved put back."""
        weights = dict(self._best)
        weights["output.bias"] = weights["output.bias"] + self.loss.correction
        moved = weights.pop(_MIX, np.empty(0, dtype=np.float32)) * np.float32(MIX_SPEED)
        shares = softmax(moved).astype(np.float32) if moved.size else moved
        return Fitted(weights=weights, epoch=self._best_epoch, mix=shares)

    @torch.no_grad()
    def _loss_held_back(self, weights: dict[str, Floats]) -> float:
        """The training's own loss on the clips held back, smoothing apart: what stops is what is learned."""
        total, clips = 0.0, self._fit.held_back
        parameters = [torch.from_numpy(weight)[None] for weight in weights.values()]
        for start in range(0, len(clips), self._fit.recipe.batch):
            part = clips[start : start + self._fit.recipe.batch]
            rows, owner = self._fit.inputs.take(part)
            logits = forward(parameters, torch.from_numpy(rows)[None], None)
            if owner is not None:
                logits = averaged(logits, torch.from_numpy(owner), clips=len(part))
            truth = torch.from_numpy(self._fit.labels[part])
            weighted = torch.from_numpy(self.loss.weights)
            offset = logits[0] + torch.from_numpy(self.loss.offset)
            total += float(functional.cross_entropy(offset, truth, weight=weighted, reduction="sum"))
        return total / float(self.loss.weights[self._fit.labels[clips]].sum())


class _Stack:
    """Weights of several heads, their gradients and moments: [heads, weights of one], and views of them by name.

    torch.optim walks tensor by tensor, and its first step imports torch's compiler: seconds that nothing here needs.
    Its fused kernel is called instead, once for all heads at the same point of the same schedule.
    """

    def __init__(self, heads: Sequence[Sequence[Floats]], device: Device) -> None:
        self._shapes = [weight.shape for weight in heads[0]]
        flat = np.stack([np.concatenate([weight.reshape(-1) for weight in head]) for head in heads])
        self._flat = torch.from_numpy(flat).to(device)
        self._gradient, self._first, self._second = (torch.zeros_like(self._flat) for _ in range(3))
        self.parameters = self._views()

    def _views(self) -> list[Tensor]:
        sizes = [math.prod(shape) for shape in self._shapes]
        parts = zip(torch.split_with_sizes(self._flat, sizes, dim=1), self._shapes, strict=True)
        return [part.view(-1, *shape).requires_grad_() for part, shape in parts]

    def weights(self, slot: int) -> dict[str, Floats]:
        """Weights of one head as they are now."""
        held = zip((*_NAMES, _MIX), self.parameters, strict=False)
        return {name: parameter.detach()[slot].cpu().numpy().copy() for name, parameter in held}

    def keep(self, slots: Sequence[int]) -> None:
        """Leaves these heads only."""
        index = torch.tensor(slots, dtype=torch.int64, device=self._flat.device)
        self._flat, self._gradient, self._first, self._second = (
            each.index_select(0, index) for each in (self._flat, self._gradient, self._first, self._second)
        )
        self.parameters = self._views()

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], paces: Sequence[_Pace]) -> None:
        """One step of AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2) on the clipped gradients."""
        torch.cat([gradient.flatten(1) for gradient in gradients], dim=1, out=self._gradient)
        limits = self._gradient.new_tensor([pace.clip_norm for pace in paces])
        norms = torch.linalg.vector_norm(self._gradient, dim=1)
        self._gradient.mul_(torch.clamp(limits / (norms + 1e-6), max=1.0)[:, None])
        alike: dict[tuple[float, ...], list[int]] = {}
        for slot, pace in enumerate(paces):
            alike.setdefault((pace.rate, pace.moment, pace.decay, pace.number), []).append(slot)
        for (rate, moment, decay, number), slots in alike.items():
            torch._fused_adamw_(
                [self._flat[slot] for slot in slots],
                [self._gradient[slot] for slot in slots],
                [self._first[slot] for slot in slots],
                [self._second[slot] for slot in slots],
                [],
                [limits.new_tensor(number) for _ in slots],
                lr=rate,
                beta1=moment,
                beta2=SECOND_MOMENT,
                weight_decay=decay,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Keeps torch and numpy's BLAS from spreading one stack over several cores while several are fitted; then restored.

    The sum of a dot product depends on how many threads share it, so this also makes heads the same on every machine.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
