"""The replays of tenants: who calls is never who is scored, streams are what they say, the state is the real one."""

import numpy as np
import pytest

from bench.tenant_replay import PLAIN, Replay, Tenant, drawn, halves, true_prior
from bench.tenants import ATTACKS, KINDS, Figures, attack_rows, attacked, curve, gain_rows, gains, prior_rows, priors
from services.prober.card import Card
from services.prober.heads import Floats, Head
from services.prober.tenants.rules import Rules

DIMS, CLASSES = 10, ("anger", "happiness", "neutral", "sadness")


@pytest.fixture(scope="module")
def tenant() -> Tenant:
    """A tenant in another room than their head was trained in, and the head that is best there."""
    random = np.random.default_rng(2)
    centres = random.normal(size=(len(CLASSES), DIMS)) * 2
    labels = np.tile(np.arange(len(CLASSES)), 60)
    vectors = (centres[labels] + random.normal(size=(len(labels), DIMS)) + 4).astype(np.float32)
    card = Card(
        name="toy",
        version="0" * 16,
        kind="logistic",
        classes=CLASSES,
        class_counts=(40, 30, 20, 10),
        bundle="ab" * 32,
        layer=3,
        dims=DIMS,
        temperature=1.0,
        seed=0,
        settings={},
        out_of_fold=None,
        clip_set="cd" * 32,
        clips=100,
        speakers=4,
        servox="0",
        store="",
        created="2026-01-01T00:00:00+00:00",
        novelty_limit=2.0,
    )
    weights: dict[str, Floats] = {
        "mean": centres.mean(axis=0).astype(np.float32),
        "std": np.full(DIMS, 2.0, dtype=np.float32),
        "output.weight": (2 * (centres - centres.mean(axis=0))).astype(np.float32),
        "output.bias": (-((centres - centres.mean(axis=0)) ** 2).sum(axis=1) / 2).astype(np.float32),
    }
    callers, scored = halves([f"s{number // 40}" for number in range(len(labels))], 0)
    return Tenant(
        head=Head(card=card, weights=weights),
        kind=KINDS[0],
        corpus="toy",
        vectors=vectors,
        labels=labels,
        callers=callers,
        scored=scored,
    )


def test_halves_share_no_speaker() -> None:
    speakers = [f"s{number % 7}" for number in range(70)]
    first, second = halves(speakers, 3)
    assert sorted([*first, *second]) == list(range(70))
    assert not {speakers[row] for row in first} & {speakers[row] for row in second}


def test_streams_hold_what_they_say(tenant: Tenant) -> None:
    random = np.random.default_rng(0)
    only = drawn(tenant.labels, tenant.callers, "one class", 90, random, 2)
    assert set(tenant.labels[only]) == {2}
    counts = np.bincount(tenant.labels[drawn(tenant.labels, tenant.callers, "skewed 4:1", 4000, random)])
    assert counts.max() / counts.min() == pytest.approx(4, rel=0.2)
    balanced = drawn(tenant.labels, tenant.callers, "balanced", 60, random)
    assert set(balanced) <= set(tenant.callers)
    assert len(set(balanced)) == 60


def test_a_replay_calibrates_as_the_prober_would(tenant: Tenant) -> None:
    replay = Replay(tenant=tenant, rules=Rules())
    before, far = replay.f1(), replay.novel(calibrated=True)
    heard = drawn(tenant.labels, tenant.callers, "balanced", 128, np.random.default_rng(1))
    points = curve(replay, tenant.vectors[heard])
    assert [ready for _, ready, _ in points][:2] == [0, 0]
    assert points[-1][1:] == (1, 1)
    assert points[0][0] == points[1][0] == before < 0.7 < points[-1][0]
    assert replay.novel(calibrated=True) < far
    assert sum(true_prior(tenant, tenant.scored).probabilities.values()) == pytest.approx(1)


def test_tables_of_a_tenant(tenant: Tenant) -> None:
    figures = Figures()
    gains(tenant, 0, figures)
    rows = gain_rows(figures)
    assert len(rows) == len(KINDS) * 4 * 2
    assert float(rows[0][-4]) > float(rows[0][3]) + 0.2  # 64 clips against none
    priors(tenant, 0, figures)
    assert float(prior_rows(figures)[0][3]) > 0.5


def test_an_attack_on_a_tenant(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.tenants.ATTACKS", [(*attack[:3], 200, attack[4]) for attack in ATTACKS])
    figures = Figures()
    attacked(tenant, 0, figures)
    guarded, plain = (figures.mean(name, KINDS[0], 64, "moved") for name in ("servox, an hour", "plain, an hour"))
    assert guarded < plain / 2
    assert figures.mean("servox, an hour", KINDS[0], 64, "counted") <= 20
    assert len(attack_rows(figures)) == 12
    assert PLAIN.hourly_clips > 1000
