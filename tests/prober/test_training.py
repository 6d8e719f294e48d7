"""The training loop against plain torch, scikit-learn and itself."""
# ruff: noqa: ANN401 -- arrays and gRPC stubs have no types worth naming here

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from services.prober import training
from services.prober.heads import Floats, Weights
from services.prober.specs import Recipe

D, K, N = 20, 4, 50


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with training.one_thread_each():
        yield


def recipe(**changes: Any) -> Recipe:
    given: dict[str, Any] = {
        "hidden": 16,
        "epochs": 6,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "label_smoothing": 0.1,
        "dropout": 0.1,
        "batch": 8,
        "clip_norm": 0.5,
    }
    return Recipe(**{**given, **changes})


def pooled(seed: int = 0) -> tuple[Floats, Any]:
    random = np.random.default_rng(seed)
    return random.normal(size=(N, D)).astype(np.float32), random.integers(0, K, N)


def framed() -> tuple[Floats, Any, Any]:
    random = np.random.default_rng(1)
    lengths = random.integers(1, 9, N)
    return random.normal(size=(int(lengths.sum()), D)).astype(np.float32), lengths, random.integers(0, K, N)


def fit(inputs: training.Inputs, labels: Any, *, seed: int = 3, **changes: Any) -> Weights:
    return training.fit_mlp(inputs, labels, classes=K, recipe=recipe(**changes), seed=seed, tick=lambda _: None)


class Masked(nn.Module):
    """Dropout whose mask comes from the generator of the head, as ours does."""

    def __init__(self, share: float, generator: torch.Generator) -> None:
        super().__init__()
        self.share, self.generator = share, generator

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.share == 0:
            return x
        return x * (torch.rand(x.shape, generator=self.generator) >= self.share) / (1 - self.share)


def reference(clips: list[torch.Tensor], labels: Any, how: Recipe, seed: int) -> nn.Sequential:
    """The recipe in torch's own words: nn, optim.AdamW, OneCycleLR, clip_grad_norm_, one clip at a time."""
    generator = torch.Generator().manual_seed(seed)
    hidden, out = nn.Linear(D, how.hidden), nn.Linear(how.hidden, K)
    net = nn.Sequential(hidden, nn.LayerNorm(how.hidden), nn.GELU(), Masked(how.dropout, generator), out)
    nn.init.xavier_uniform_(hidden.weight, generator=generator)
    nn.init.normal_(out.weight, 0, 1 / D**0.5, generator=generator)
    for layer in (hidden, out):
        nn.init.zeros_(layer.bias)
    optimiser = torch.optim.AdamW(net.parameters(), lr=how.learning_rate, weight_decay=how.weight_decay)
    per_epoch = len(clips) // how.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=how.learning_rate, total_steps=per_epoch * how.epochs, pct_start=0.1
    )
    loss = nn.CrossEntropyLoss(label_smoothing=how.label_smoothing)
    truth = torch.from_numpy(labels)
    for _ in range(how.epochs):
        order = torch.randperm(len(clips), generator=generator)
        for step in range(per_epoch):
            chosen = order[step * how.batch : (step + 1) * how.batch]
            scores = net(torch.cat([clips[i] for i in chosen]))
            parts = scores.split([len(clips[i]) for i in chosen])
            optimiser.zero_grad()
            loss(torch.stack([part.mean(dim=0) for part in parts]), truth[chosen]).backward()
            nn.utils.clip_grad_norm_(net.parameters(), how.clip_norm)
            optimiser.step()
            schedule.step()
    return net


def assert_same(weights: Weights, net: nn.Sequential) -> None:
    names = ("hidden.weight", "hidden.bias", "norm.weight", "norm.bias", "output.weight", "output.bias")
    for name, parameter in zip(names, net.parameters(), strict=True):
        np.testing.assert_allclose(weights[name], parameter.detach().numpy(), atol=1e-5, err_msg=name)


# torch's own schedulers and compiler warn on import and on their first step
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_pooled_loop_is_the_plain_loop(dropout: float) -> None:
    x, labels = pooled()
    net = reference([torch.from_numpy(row[None]) for row in x], labels, recipe(dropout=dropout), 3)
    assert_same(fit(training.Vectors(x), labels, dropout=dropout), net)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_the_frame_loop_is_the_plain_loop() -> None:
    values, lengths, labels = framed()
    clips = [torch.from_numpy(part) for part in np.split(values, np.cumsum(lengths)[:-1])]
    assert_same(fit(training.Frames(values, lengths), labels), reference(clips, labels, recipe(), 3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("total", [1, 2, 7, 11, 137, 1600])  # torch itself divides by zero at 10
def test_the_schedule_is_torchs(total: int) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.AdamW([parameter], lr=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-3, total_steps=total, pct_start=0.1)
    for step in range(total):
        rate, moment = training.one_cycle(step, total, 1e-3)
        group = optimiser.param_groups[0]
        assert rate == pytest.approx(group["lr"], rel=1e-9, abs=1e-15)
        assert moment == pytest.approx(group["betas"][0], rel=1e-9)
        if step < total - 1:
            optimiser.step()
            schedule.step()


def test_the_schedule_of_ten_steps_is_finite() -> None:
    rates = [training.one_cycle(step, 10, 1.0)[0] for step in range(10)]
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)


def test_a_seed_decides_everything() -> None:
    x, labels = pooled()
    once, again, other = (fit(training.Vectors(x), labels, seed=seed) for seed in (3, 3, 4))
    for name, weight in once.items():
        np.testing.assert_array_equal(weight, again[name])
    assert not np.allclose(once["hidden.weight"], other["hidden.weight"])


def test_frames_of_some_clips_are_those_clips() -> None:
    values, lengths, labels = framed()
    chosen = np.array([5, 0, 17, 30, 31, 32, 40, 41, 42, 43])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    alone = np.concatenate([values[starts[c] : starts[c + 1]] for c in chosen])
    a = fit(training.Frames(values, lengths, chosen), labels[chosen])
    b = fit(training.Frames(alone, lengths[chosen]), labels[chosen])
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    x, labels = pooled()
    weights = fit(training.Vectors(x[:5]), labels[:5])
    first = training.first_weights(D, 16, K, torch.Generator().manual_seed(3))
    assert np.abs(weights["hidden.weight"] - first[0].numpy()).max() > 1e-3
    assert recipe().steps(5) == 6
    assert recipe().steps(17) == 12


def test_it_stops_where_it_is_told() -> None:
    x, labels = pooled()
    seen: list[int] = []

    def tick(steps: int) -> None:
        seen.append(steps)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.fit_mlp(training.Vectors(x), labels, classes=K, recipe=recipe(), seed=0, tick=tick)
    assert seen == [6, 6]


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_is_scikit_learns(classes: int) -> None:
    random = np.random.default_rng(5)
    x, labels = random.normal(size=(60, D)).astype(np.float32), random.integers(0, classes, 60)
    weights = training.fit_logistic(x, labels, classes=classes, c=0.1)
    logits = x @ weights["output.weight"].T + weights["output.bias"]
    wanted = (
        LogisticRegression(C=0.1, max_iter=2000).fit(x.astype(np.float64), labels).predict_proba(x.astype(np.float64))
    )
    ours = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(ours / ours.sum(axis=1, keepdims=True), wanted, atol=1e-5)


def test_logistic_never_answers_a_class_without_clips() -> None:
    random = np.random.default_rng(5)
    x, labels = random.normal(size=(60, D)).astype(np.float32), random.integers(0, 2, 60) * 2
    weights = training.fit_logistic(x, labels, classes=3, c=0.1)
    assert set((x @ weights["output.weight"].T + weights["output.bias"]).argmax(axis=1)) == {0, 2}


def test_torch_gets_its_threads_back() -> None:
    torch.set_num_threads(2)
    with training.one_thread_each():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
