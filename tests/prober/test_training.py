"""The training loop against plain torch, scikit-learn and itself."""
# ruff: noqa: ANN401 -- arrays and gRPC stubs have no types worth naming here

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from services.prober import fits, training
from services.prober.heads import Floats, Weights
from services.prober.inputs import Frames, Inputs, Vectors
from services.prober.logistic import fit_logistic
from services.prober.losses import loss_of
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


def ordered(
    inputs: Inputs, labels: Any, *, seed: int = 3, held_back: Any = (), classes: int = K, **changes: Any
) -> fits.Fit:
    return fits.Fit(
        inputs=inputs,
        labels=labels,
        classes=classes,
        recipe=recipe(**changes),
        seed=seed,
        held_back=np.array(held_back, dtype=np.int64),
    )


def fit(inputs: Inputs, labels: Any, **changes: Any) -> Weights:
    return training.fit_mlps([ordered(inputs, labels, **changes)], tick=lambda _: None)[0].weights


class Masked(nn.Module):
    """Dropout whose mask comes from the generator of the head, as ours does."""

    def __init__(self, share: float, generator: np.random.Generator) -> None:
        super().__init__()
        self.share, self.generator = share, generator

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.share == 0:
            return x
        raw = self.generator.bit_generator.random_raw(-(-x.numel() // 8))
        drawn = np.frombuffer(raw.tobytes(), dtype=np.uint8)[: x.numel()].reshape(x.shape)
        return x * torch.from_numpy(drawn >= round(256 * self.share)) / (1 - round(256 * self.share) / 256)


def reference(clips: list[torch.Tensor], labels: Any, how: Recipe, seed: int) -> nn.Sequential:
    """The recipe in torch's own words: nn, optim.AdamW, OneCycleLR, clip_grad_norm_, one clip at a time."""
    generator = np.random.default_rng(seed)
    hidden, out = nn.Linear(D, how.hidden), nn.Linear(how.hidden, K)
    net = nn.Sequential(hidden, nn.LayerNorm(how.hidden), nn.GELU(), Masked(how.dropout, generator), out)
    first = fits.first_weights(D, how.hidden, K, generator)
    for parameter, values in zip(
        (hidden.weight, hidden.bias, out.weight, out.bias), (first[at] for at in (0, 1, 4, 5)), strict=True
    ):
        parameter.data = torch.from_numpy(values)
    optimiser = torch.optim.AdamW(net.parameters(), lr=how.learning_rate, weight_decay=how.weight_decay)
    per_epoch = len(clips) // how.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=how.learning_rate, total_steps=per_epoch * how.epochs, pct_start=0.1
    )
    counts = np.bincount(labels, minlength=K)
    weight = torch.tensor((len(labels) / (K * counts)) ** how.class_weights, dtype=torch.float32)
    offset = torch.tensor(how.logit_adjustment * np.log(counts / counts.sum()), dtype=torch.float32)
    loss = nn.CrossEntropyLoss(weight=weight, label_smoothing=how.label_smoothing)
    truth = torch.from_numpy(labels)
    for _ in range(how.epochs):
        order = generator.permutation(len(clips))
        for step in range(per_epoch):
            chosen = order[step * how.batch : (step + 1) * how.batch]
            scores = net(torch.cat([clips[i] for i in chosen]))
            parts = scores.split([len(clips[i]) for i in chosen])
            optimiser.zero_grad()
            loss(torch.stack([part.mean(dim=0) for part in parts]) + offset, truth[chosen]).backward()
            nn.utils.clip_grad_norm_(net.parameters(), how.clip_norm)
            optimiser.step()
            schedule.step()
    moved = offset - torch.log(weight)
    out.bias.data += moved - moved.mean()  # a head's logits assume the shares of its training set
    return net


def assert_same(weights: Weights, net: nn.Sequential) -> None:
    names = ("hidden.weight", "hidden.bias", "norm.weight", "norm.bias", "output.weight", "output.bias")
    for name, parameter in zip(names, net.parameters(), strict=True):
        np.testing.assert_allclose(weights[name], parameter.detach().numpy(), atol=1e-5, err_msg=name)


# torch's own schedulers and compiler warn on import and on their first step
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0.0},
        {"dropout": 0.1},
        {"class_weights": 1.0},
        {"class_weights": 0.5, "label_smoothing": 0.0},
        {"logit_adjustment": 1.0},
        {"logit_adjustment": 0.5, "class_weights": 1.0, "dropout": 0.0},
    ],
)
def test_the_pooled_loop_is_the_plain_loop(changes: dict[str, float]) -> None:
    x, labels = pooled()
    net = reference([torch.from_numpy(row[None]) for row in x], labels, recipe(**changes), 3)
    assert_same(fit(Vectors(x), labels, **changes), net)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_the_frame_loop_is_the_plain_loop() -> None:
    values, lengths, labels = framed()
    clips = [torch.from_numpy(part) for part in np.split(values, np.cumsum(lengths)[:-1])]
    assert_same(fit(Frames(values, lengths), labels), reference(clips, labels, recipe(), 3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("total", [1, 2, 7, 11, 137, 1600])  # torch itself divides by zero at 10
def test_the_schedule_is_torchs(total: int) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.AdamW([parameter], lr=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-3, total_steps=total, pct_start=0.1)
    for step in range(total):
        rate, moment = fits.one_cycle(step, total, 1e-3)
        group = optimiser.param_groups[0]
        assert rate == pytest.approx(group["lr"], rel=1e-9, abs=1e-15)
        assert moment == pytest.approx(group["betas"][0], rel=1e-9)
        if step < total - 1:
            optimiser.step()
            schedule.step()


def test_the_schedule_of_ten_steps_is_finite() -> None:
    rates = [fits.one_cycle(step, 10, 1.0)[0] for step in range(10)]
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)


def test_a_seed_decides_everything() -> None:
    x, labels = pooled()
    once, again, other = (fit(Vectors(x), labels, seed=seed) for seed in (3, 3, 4))
    for name, weight in once.items():
        np.testing.assert_array_equal(weight, again[name])
    assert not np.allclose(once["hidden.weight"], other["hidden.weight"])


def test_frames_of_some_clips_are_those_clips() -> None:
    values, lengths, labels = framed()
    chosen = np.array([5, 0, 17, 30, 31, 32, 40, 41, 42, 43])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    alone = np.concatenate([values[starts[c] : starts[c + 1]] for c in chosen])
    a = fit(Frames(values, lengths, chosen), labels[chosen])
    b = fit(Frames(alone, lengths[chosen]), labels[chosen])
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_gradient_is_autograds(owned: bool, layers: int) -> None:
    """Of two heads with different targets and offsets, in double precision."""
    torch.manual_seed(0)
    heads, rows, clips, hidden = 2, 12, 5 if owned else 12, 7

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(heads, *shape, dtype=torch.float64)

    parameters = [normal(hidden, D), normal(hidden), normal(hidden), normal(hidden), normal(K, hidden), normal(K)]
    lesson = training.Lesson(
        rows=normal(rows, layers, D) if layers > 1 else normal(rows, D),
        kept=(torch.rand(heads, rows, hidden) > 0.3) * torch.full((), 10 / 7, dtype=torch.float64),
        targets=normal(K, clips).abs(),
        offset=normal(K, 1),
        owner=torch.tensor([0, 0, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4]) if owned else None,
    )
    if layers > 1:
        parameters.append(normal(layers) / fits.MIX_SPEED)
    into, bias, scale, shift, out, out_bias, *mix = (each.requires_grad_() for each in parameters)
    mixed = lesson.rows
    if mix:
        mixed = (mixed * torch.softmax(mix[0] * fits.MIX_SPEED, dim=1)[:, None, :, None]).sum(dim=2)
    normed = nn.functional.layer_norm(mixed @ into.mT + bias[:, None], (hidden,)) * scale[:, None] + shift[:, None]
    logits = (nn.functional.gelu(normed) * lesson.kept) @ out.mT + out_bias[:, None]
    if lesson.owner is not None:
        logits = torch.stack([logits[:, lesson.owner == clip].mean(dim=1) for clip in range(clips)], dim=1)
    loss = -(lesson.targets * torch.log_softmax(logits.mT + lesson.offset, dim=1)).sum()
    wanted = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        found = training.gradients(parameters, lesson)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    x, labels = pooled()
    weights = fit(Vectors(x[:5]), labels[:5])
    first = fits.first_weights(D, 16, K, np.random.default_rng(3))
    assert np.abs(weights["hidden.weight"] - first[0]).max() > 1e-3
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
        training.fit_mlps([ordered(Vectors(x), labels)], tick=tick)
    assert seen == [6, 6]


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_is_scikit_learns(classes: int) -> None:
    random = np.random.default_rng(5)
    x, labels = random.normal(size=(60, D)).astype(np.float32), random.integers(0, classes, 60)
    weights = fit_logistic(x, labels, classes=classes, c=0.1)
    logits = x @ weights["output.weight"].T + weights["output.bias"]
    wanted = (
        LogisticRegression(C=0.1, max_iter=2000).fit(x.astype(np.float64), labels).predict_proba(x.astype(np.float64))
    )
    ours = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(ours / ours.sum(axis=1, keepdims=True), wanted, atol=1e-5)


def test_logistic_never_answers_a_class_without_clips() -> None:
    random = np.random.default_rng(5)
    x, labels = random.normal(size=(60, D)).astype(np.float32), random.integers(0, 2, 60) * 2
    weights = fit_logistic(x, labels, classes=3, c=0.1)
    assert set((x @ weights["output.weight"].T + weights["output.bias"]).argmax(axis=1)) == {0, 2}


def test_torch_gets_its_threads_back() -> None:
    torch.set_num_threads(2)
    with training.one_thread_each():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_a_head_does_not_depend_on_what_is_trained_beside_it() -> None:
    sets = [pooled(seed) for seed in range(5)]
    fits = [
        ordered(Vectors(x[: 50 - 7 * at]), labels[: 50 - 7 * at], seed=at, epochs=3 + at, learning_rate=0.01 * (1 + at))
        for at, (x, labels) in enumerate(sets)
    ]
    together = training.fit_mlps(fits, tick=lambda _: None)
    for one, found in zip(fits, together, strict=True):
        alone = training.fit_mlps([one], tick=lambda _: None)[0]
        assert found.epoch == alone.epoch == one.recipe.epochs
        for name, weight in alone.weights.items():
            np.testing.assert_array_equal(found.weights[name], weight, err_msg=name)


def test_every_step_of_every_head_is_counted() -> None:
    counted: list[int] = []
    sizes = (50, 30, 9)
    fits = [ordered(Vectors(x[:size]), labels[:size]) for size in sizes for x, labels in [pooled()]]
    training.fit_mlps(fits, tick=counted.append)
    assert sum(counted) == sum(each.recipe.steps(size) for each, size in zip(fits, sizes, strict=True))


def test_training_stops_where_clips_held_back_get_no_better() -> None:
    """Labels that say nothing: the first epochs are the best on clips that are not learned from."""
    x, labels = pooled()
    back = np.arange(0, N, 4)
    how = ordered(Vectors(x), labels, held_back=back, patience=3, epochs=60, label_smoothing=0.0)
    found = training.fit_mlps([how], tick=lambda _: None)[0]
    assert 1 <= found.epoch < 30
    other = training.fit_mlps([how], tick=lambda _: None)[0]
    assert found.epoch == other.epoch
    np.testing.assert_array_equal(found.weights["hidden.weight"], other.weights["hidden.weight"])


def test_the_weights_kept_are_those_of_the_best_epoch() -> None:
    """With a patience longer than the training, the epoch on the card is the best of all of them."""
    x, labels = pooled()
    back = np.arange(0, N, 4)
    learned = np.setdiff1d(np.arange(N), back)
    losses = []

    def loss(weights: Weights) -> float:
        hidden = nn.functional.layer_norm(
            torch.from_numpy(x[back] @ weights["hidden.weight"].T + weights["hidden.bias"]), (16,)
        )
        normed = hidden * torch.from_numpy(weights["norm.weight"]) + torch.from_numpy(weights["norm.bias"])
        scores = nn.functional.gelu(normed).numpy() @ weights["output.weight"].T + weights["output.bias"]
        return float(nn.functional.cross_entropy(torch.from_numpy(scores), torch.from_numpy(labels[back])))

    how = ordered(Vectors(x), labels, held_back=back, patience=99, epochs=12)
    best = training.fit_mlps([how], tick=lambda _: None)[0]
    losses = [loss(best.weights)]
    whole = training.fit_mlps([ordered(Vectors(x[learned]), labels[learned], epochs=12)], tick=lambda _: None)[0]
    losses.append(loss(whole.weights))
    assert losses[0] <= losses[1]
    assert best.epoch <= 12


@pytest.mark.parametrize("name", ["class_weights", "logit_adjustment"])
def test_rare_classes_gain_under_a_uniform_prior_and_the_training_prior_is_kept(name: str) -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], [180, 20])
    x = (random.normal(size=(200, D)) + labels[:, None] * 0.5).astype(np.float32)
    plain, moved = (
        fit(Vectors(x), labels, classes=2, epochs=20, dropout=0.0, label_smoothing=0.0, **{name: value})
        for value in (0.0, 1.0)
    )
    shift = np.log(np.bincount(labels) / len(labels))
    correction = loss_of(recipe(**{name: 1.0}), labels, classes=2).correction
    np.testing.assert_allclose(correction, shift - shift.mean(), atol=1e-5)
    assert plain["output.bias"][0] - plain["output.bias"][1] < moved["output.bias"][0] - moved["output.bias"][1]


def test_a_class_without_clips_has_finite_weights() -> None:
    loss = loss_of(recipe(class_weights=1.0, logit_adjustment=1.0), np.array([0, 0, 1]), classes=3)
    assert all(np.isfinite(each).all() for each in (loss.targets, loss.weights, loss.offset, loss.correction))


def test_dropout_drops_its_share() -> None:
    kept = np.empty((401, 255), dtype=np.float32)  # no multiple of the eight bytes that a draw gives
    fits.drop_units(np.random.default_rng(0), 0.3, kept)
    assert set(np.unique(kept)) == {0.0, np.float32(256 / 179)}
    assert kept.mean() == pytest.approx(1, abs=0.01)


def test_a_mix_of_layers_finds_the_one_that_says_something() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, K, 200)
    x = random.normal(size=(200, 3, D)).astype(np.float32)
    x[:, 1] += 2 * np.eye(D, dtype=np.float32)[labels]
    found = training.fit_mlps([ordered(Vectors(x), labels, epochs=12)], tick=lambda _: None)[0]
    assert found.mix.shape == (3,)
    assert found.mix.sum() == pytest.approx(1)
    assert found.mix[1] > 0.6
    assert set(found.weights) == {
        "hidden.weight",
        "hidden.bias",
        "norm.weight",
        "norm.bias",
        "output.weight",
        "output.bias",
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_the_mix_learns_as_torchs_own_optimiser_does() -> None:
    """One step from the start, where all shares are equal: AdamW moves each by the learning rate."""
    x, labels = pooled()
    layers = np.stack([x, -x, np.roll(x, 1, axis=0)], axis=1)
    how = ordered(Vectors(layers), labels, epochs=1, batch=N, dropout=0.0, weight_decay=0.0, clip_norm=1e6)
    found = training.fit_mlps([how], tick=lambda _: None)[0]
    random = np.random.default_rng(3)
    net, mix = [torch.from_numpy(each) for each in fits.first_weights(D, 16, K, random)], torch.zeros(1, 3)
    parameters = [each[None].requires_grad_() for each in net] + [mix.requires_grad_()]
    scores = training.forward(parameters, torch.from_numpy(layers)[None])[0].T
    nn.functional.cross_entropy(scores, torch.from_numpy(labels), label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]
    assert mix.grad is not None
    rate = fits.one_cycle(0, 1, 1e-2)[0]
    wanted = torch.softmax(-rate * fits.MIX_SPEED * torch.sign(mix.grad), dim=1)[0].numpy()
    np.testing.assert_allclose(found.mix, wanted, atol=1e-4)
