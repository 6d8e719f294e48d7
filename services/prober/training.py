"""Fitting MLPs, many at once: the one place of the prober that imports torch.

- Heads of one shape are one batched model: their weights are slices of one tensor, a step of all of them is one batched
  product a layer. What differs from head to head (clips, seed, learning rate, decay, loss, dropout, number of steps) is
  a slice's own. A head whose steps are done leaves the stack.
- The gradient of this one small network is written out: autograd's graph, its zeros and its sums took half of the time.
- A head is the same to the last bit in any stack: each product and sum goes over one head's rows alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from servox.errors import BadSetting

from .fits import MIX, MIX_SPEED, Fit, Fitted, Learner, Pace
from .heads import LAYER_NORM_EPSILON, Floats

Tick = Callable[[int], None]
Device = str

SECOND_MOMENT = 0.999  # torch's default
WHOLE = 64  # weights of a row come in multiples of it: 4 of the widest vectors of any CPU
_NAMES = ("hidden.weight", "hidden.bias", "norm.weight", "norm.bias", "output.weight", "output.bias")


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


@torch.no_grad()
def fit_mlps(fits: Sequence[Fit], *, tick: Tick, device: Device = "cpu") -> list[Fitted]:
    """Fits MLPs of one shape as one batched model.

    Args:
        fits: of equal `shape`; one only, where it reads frames.
        tick: called after each epoch of each head with the head's steps in it; may raise to stop.
        device: of torch.
    """
    learners = [Learner(fit) for fit in fits]
    running = list(learners)
    stack = _Stack([learner.first for learner in learners], device)
    while running:
        lesson = lesson_of(running, device)
        stack.step(gradients(stack.parameters, lesson), [learner.pace() for learner in running])
        for slot, learner in enumerate(running):
            if learner.epoch_ended:
                tick(learner.per_epoch)
                _judge(learner, stack, slot)
        if any(learner.done for learner in running):
            stack.keep([slot for slot, learner in enumerate(running) if not learner.done])
            running = [learner for learner in running if not learner.done]
    return [learner.fitted() for learner in learners]


def _judge(learner: Learner, stack: "_Stack", slot: int) -> None:
    if learner.judged:
        weights = stack.weights(slot)
        learner.judge(weights, _loss_held_back(learner, weights) if len(learner.fit.held_back) else math.inf)


def _loss_held_back(learner: Learner, weights: dict[str, Floats]) -> float:
    """The training's own loss on the clips held back, smoothing apart: what stops is what is learned."""
    fit, loss, total = learner.fit, learner.loss, 0.0
    parameters = [torch.from_numpy(weight)[None] for weight in weights.values()]
    weighted = torch.from_numpy(loss.weights)
    for start in range(0, len(fit.held_back), fit.recipe.batch):
        part = fit.held_back[start : start + fit.recipe.batch]
        rows, owner = fit.inputs.take(part)
        logits = forward(parameters, torch.from_numpy(rows)[None])
        if owner is not None:
            logits = averaged(logits, torch.from_numpy(owner), clips=len(part))
        offset = logits[0].T + torch.from_numpy(loss.offset)
        truth = torch.from_numpy(fit.labels[part])
        total += float(functional.cross_entropy(offset, truth, weight=weighted, reduction="sum"))
    return total / float(loss.weights[fit.labels[fit.held_back]].sum())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lesson:
    """What one step of a stack learns from.

    Attributes:
        rows: [heads, r, d], or [heads, r, layers, d] to be mixed.
        kept: [heads, r, hidden], factors of the dropout.
        targets: [heads, K, clips]; the loss of a head is -sum(targets * log softmax(logits + offset)).
        offset: [heads, K, 1].
        owner: [r], the clip of each row; None for one row a clip.
    """

    rows: Tensor
    kept: Tensor
    targets: Tensor
    offset: Tensor
    owner: Tensor | None


def lesson_of(learners: Sequence[Learner], device: Device) -> Lesson:
    """The next batches of several heads as one."""

    def joined(arrays: Sequence[Floats]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(device)

    batches = [learner.batch() for learner in learners]
    owner = batches[0].owner
    kept = np.empty((len(learners), len(batches[0].rows), learners[0].fit.recipe.hidden), dtype=np.float32)
    for learner, factors in zip(learners, kept, strict=True):
        learner.drop(factors)
    return Lesson(
        rows=joined([batch.rows for batch in batches]),
        kept=torch.from_numpy(kept).to(device),
        targets=joined([batch.targets.T for batch in batches]),
        offset=joined([learner.loss.offset for learner in learners])[..., None],
        owner=None if owner is None else torch.from_numpy(owner).to(device),
    )


def forward(parameters: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Logits [heads, K, r] of rows [heads, r, d]; rows [heads, r, layers, d] are mixed by the last parameter first."""
    into, bias, scale, shift, out, out_bias, *mix = parameters
    if mix:
        rows = _mixed(rows, functional.softmax(mix[0] * MIX_SPEED, dim=1))
    hidden = torch.baddbmm(bias[:, None], rows, into.transpose(1, 2))
    normed = functional.layer_norm(hidden, hidden.shape[2:], eps=LAYER_NORM_EPSILON)
    active = functional.gelu(torch.addcmul(shift[:, None], normed, scale[:, None]))
    return torch.baddbmm(out_bias[:, :, None], out, active.transpose(1, 2))


def gradients(parameters: Sequence[Tensor], lesson: Lesson) -> list[Tensor]:
    """What autograd finds for the sum of the heads' losses, a parameter each: `forward` with dropout, reversed."""
    into, bias, scale, shift, out, out_bias, *mix = parameters
    shares = functional.softmax(mix[0] * MIX_SPEED, dim=1) if mix else None
    rows = lesson.rows if shares is None else _mixed(lesson.rows, shares)
    hidden = torch.baddbmm(bias[:, None], rows, into.transpose(1, 2))
    normed, mean, deviation = torch.native_layer_norm(hidden, hidden.shape[2:], None, None, LAYER_NORM_EPSILON)
    scaled = torch.addcmul(shift[:, None], normed, scale[:, None])
    active = functional.gelu(scaled).mul_(lesson.kept)
    error = _error(torch.baddbmm(out_bias[:, :, None], out, active.transpose(1, 2)), lesson)

    back = torch.bmm(error.transpose(1, 2), out).mul_(lesson.kept)
    back = torch.ops.aten.gelu_backward(back, scaled)
    of_norm = [normed.mul_(back).sum(dim=1), back.sum(dim=1)]
    back = torch.ops.aten.native_layer_norm_backward(
        back.mul_(scale[:, None]), hidden, hidden.shape[2:], mean, deviation, None, None, [True, False, False]
    )[0]
    of_hidden = [torch.bmm(back.transpose(1, 2), rows), back.sum(dim=1)]
    of_output = [torch.bmm(error, active), error.sum(dim=2)]
    of_mix = [] if shares is None else [_of_mix(torch.bmm(back, into), lesson.rows, shares)]
    return [*of_hidden, *of_norm, *of_output, *of_mix]


def _error(logits: Tensor, lesson: Lesson) -> Tensor:
    """The loss by the logits of each row [heads, K, r]: softmax minus target, shared out among the rows of a clip."""
    owner, targets = lesson.owner, lesson.targets
    if owner is not None:
        logits = averaged(logits, owner, clips=targets.shape[2])
    error = functional.softmax(logits + lesson.offset, dim=1).mul_(targets.sum(dim=1, keepdim=True)).sub_(targets)
    if owner is None:
        return error
    return error[..., owner].div_(torch.bincount(owner, minlength=targets.shape[2])[owner])


def _mixed(rows: Tensor, shares: Tensor) -> Tensor:
    return torch.einsum("hrld,hl->hrd", rows, shares)


def _of_mix(back: Tensor, rows: Tensor, shares: Tensor) -> Tensor:
    """The loss by the mix [heads, layers], from the loss by the mixed rows."""
    by_share = torch.einsum("hrld,hrd->hl", rows, back)
    return shares.mul(by_share - (shares * by_share).sum(dim=1, keepdim=True)).mul_(MIX_SPEED)


def averaged(logits: Tensor, owner: Tensor, *, clips: int) -> Tensor:
    """Mean logits [heads, K, clips] of the rows [heads, K, r] of each owner [r]."""
    share = 1 / torch.bincount(owner, minlength=clips).to(logits.dtype)
    return logits.new_zeros(*logits.shape[:2], clips).index_add(2, owner, logits * share[owner])


class _Stack:
    """Weights of several heads, their gradients and moments: [heads, weights of one], and views of them by name.

    torch.optim walks tensor by tensor, and its first step imports torch's compiler: seconds that nothing here needs.
    Its fused kernel is called instead, once for all heads at the same point of the same schedule. It treats the end of
    a row apart, and rounds it otherwise; rows are padded to whole vectors, so that a head has no such end.
    """

    def __init__(self, heads: Sequence[Sequence[Floats]], device: Device) -> None:
        self._shapes = [weight.shape for weight in heads[0]]
        sizes = [math.prod(shape) for shape in self._shapes]
        self._sizes = [*sizes, -sum(sizes) % WHOLE]
        pad = np.zeros(self._sizes[-1], dtype=np.float32)
        flat = np.stack([np.concatenate([*(weight.reshape(-1) for weight in head), pad]) for head in heads])
        weights = torch.from_numpy(flat).to(device)
        self._hold([weights, *(torch.zeros_like(weights) for _ in range(3))])

    def _hold(self, state: Sequence[Tensor]) -> None:
        weights, gradient, _, _ = self._state = state
        *parts, _ = torch.split_with_sizes(weights, self._sizes, dim=1)
        self.parameters = [part.view(-1, *shape) for part, shape in zip(parts, self._shapes, strict=True)]
        self._pad = gradient.new_zeros(len(gradient), self._sizes[-1])

    def weights(self, slot: int) -> dict[str, Floats]:
        """Weights of one head as they are now."""
        held = zip((*_NAMES, MIX), self.parameters, strict=False)
        return {name: parameter[slot].cpu().numpy().copy() for name, parameter in held}

    def keep(self, slots: Sequence[int]) -> None:
        """Leaves these heads only."""
        index = torch.tensor(slots, dtype=torch.int64, device=self._pad.device)
        self._hold([each.index_select(0, index) for each in self._state])

    def step(self, gradients: Sequence[Tensor], paces: Sequence[Pace]) -> None:
        """One step of AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2) on the clipped gradients."""
        gradient = self._state[1]
        torch.cat([*(each.flatten(1) for each in gradients), self._pad], dim=1, out=gradient)
        limits = gradient.new_tensor([pace.clip_norm for pace in paces])
        norms = torch.linalg.vector_norm(gradient, dim=1)
        gradient.mul_(torch.clamp(limits / (norms + 1e-6), max=1.0)[:, None])
        alike: dict[tuple[float, float, float, int], list[int]] = {}
        for slot, pace in enumerate(paces):
            alike.setdefault((pace.rate, pace.moment, pace.decay, pace.number), []).append(slot)
        for (rate, moment, decay, number), slots in alike.items():
            chosen = [self._state] if len(alike) == 1 else [[each[slot] for each in self._state] for slot in slots]
            _adamw(chosen, rate=rate, moment=moment, decay=decay, number=number)


def _adamw(heads: Sequence[Sequence[Tensor]], *, rate: float, moment: float, decay: float, number: int) -> None:
    weights, gradient, first, second = (list(each) for each in zip(*heads, strict=True))
    torch._fused_adamw_(
        weights,
        gradient,
        first,
        second,
        [],
        [gradient[0].new_tensor(number)] * len(weights),
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
