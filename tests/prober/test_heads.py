"""Hosting in numpy against torch; what a head refuses."""
# ruff: noqa: ANN401 -- arrays and gRPC stubs have no types worth naming here

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import erf as exact_erf
from torch.nn import functional

from services.prober.card import Card, Kind, OutOfFold, card_from_json
from services.prober.heads import Head, Standardisation, decode, encode, erf, gelu, shapes
from servox.errors import BadInput, HeadMismatch

D, H, K = 12, 8, 3


def card(kind: Kind = "mlp", **changes: Any) -> Card:
    given: dict[str, Any] = {
        "name": "toy",
        "version": "0123456789abcdef",
        "kind": kind,
        "classes": ("anger", "happiness", "sadness"),
        "class_counts": (5, 6, 7),
        "bundle": "ab" * 32,
        "layer": 3,
        "dims": D,
        "temperature": 0.8,
        "seed": 0,
        "settings": {} if kind == "logistic" else {"hidden": float(H)},
        "out_of_fold": None,
        "clip_set": "cd" * 32,
        "clips": 18,
        "speakers": 3,
        "servox": "0.1.0",
        "store": "/somewhere",
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Card(**{**given, **changes})


def head(kind: Kind = "mlp", **changes: Any) -> Head:
    random = np.random.default_rng(3)
    facts = card(kind, **changes)
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes(facts).items()}
    if "std" in weights:
        weights["std"] = (np.abs(weights["std"]) + 0.5).astype(np.float32)
    return Head(card=facts, weights=weights)


def embeddings(rows: int = 40) -> Any:
    return (np.random.default_rng(4).normal(size=(rows, D)) * 3).astype(np.float32)


def in_torch(of: Head, x: Any) -> Any:
    w = {name: torch.from_numpy(array) for name, array in of.weights.items()}
    rows = torch.from_numpy(x)
    if of.card.kind != "frame-mlp":
        rows = (rows - w["mean"]) / w["std"]
    if of.card.kind != "logistic":
        rows = functional.linear(rows, w["hidden.weight"], w["hidden.bias"])
        rows = functional.gelu(functional.layer_norm(rows, (H,), w["norm.weight"], w["norm.bias"]))
    logits = functional.linear(rows, w["output.weight"], w["output.bias"])
    return (logits.mean(dim=0, keepdim=True) if of.card.kind == "frame-mlp" else logits).numpy()


@pytest.mark.parametrize("kind", ["mlp", "logistic", "frame-mlp"])
def test_numpy_hosts_what_torch_computes(kind: Kind) -> None:
    x = embeddings()
    np.testing.assert_allclose(head(kind).logits(x), in_torch(head(kind), x), atol=1e-5)


@given(st.floats(-20, 20, width=32))
def test_gelu_and_erf_are_exact(value: float) -> None:
    x = np.array([value], dtype=np.float32)
    assert erf(x)[0] == pytest.approx(float(exact_erf(np.float64(x[0]))), abs=5e-7)
    assert gelu(x)[0] == pytest.approx(float(functional.gelu(torch.from_numpy(x).double())[0]), abs=5e-6)


def test_variants_replace_the_training_statistics() -> None:
    x, of = embeddings(), head()
    mean, std = x.mean(axis=0), x.std(axis=0)
    other = Head(card=of.card, weights={**of.weights, "mean": mean, "std": std})
    np.testing.assert_allclose(of.logits(x, Standardisation(mean=mean, std=std)), other.logits(x), atol=1e-6)
    centred = Head(card=of.card, weights={**of.weights, "mean": mean})
    np.testing.assert_allclose(of.logits(x, Standardisation(mean=mean)), centred.logits(x), atol=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "logistic", "frame-mlp"])
def test_a_head_survives_its_bytes(kind: Kind) -> None:
    scores = OutOfFold(
        macro_f1=0.7, floor=0.3, ece_before=0.2, ece_after=0.1, nll_before=1.0, nll_after=0.9,
        clips=18, left_out=0, speakers=3, folds=3, grouped_by="speaker",
    )  # fmt: skip
    before = head(kind, out_of_fold=scores)
    after = decode(*encode(before))
    assert after.card == before.card
    assert after.digest == before.digest
    np.testing.assert_array_equal(after.logits(embeddings()), before.logits(embeddings()))


def test_the_digest_covers_what_matters_and_not_where_or_when() -> None:
    plain = head()
    elsewhere = Head(card=dataclasses.replace(plain.card, store="s3://x", created="2027"), weights=plain.weights)
    hotter = Head(card=dataclasses.replace(plain.card, temperature=2.0), weights=plain.weights)
    other = Head(card=plain.card, weights={**plain.weights, "output.bias": plain.weights["output.bias"] + 1})
    assert elsewhere.digest == plain.digest
    assert len({plain.digest, hotter.digest, other.digest}) == 3


def test_another_bundle_is_refused_by_both_digests() -> None:
    with pytest.raises(HeadMismatch, match=f"{'ab' * 32}.*{'ef' * 32}"):
        head().check_bundle("ef" * 32)
    head().check_bundle("ab" * 32)


@pytest.mark.parametrize("shape", [(4, D + 1), (D,), (0, D), (2, 2, D)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match=r"toy:0123456789abcdef reads \[n, 12\]"):
        head().logits(np.zeros(shape, dtype=np.float32))


def test_values_that_are_not_finite_are_refused() -> None:
    x = embeddings()
    x[3, 2] = np.nan
    with pytest.raises(BadInput, match="not finite"):
        head().logits(x)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (Standardisation(mean=np.zeros(D - 1, dtype=np.float32)), "give 12 finite figures"),
        (Standardisation(std=np.zeros(D, dtype=np.float32)), "give positive figures"),
        (Standardisation(std=np.full(D, np.inf, dtype=np.float32)), "give 12 finite figures"),
    ],
)
def test_bad_statistics_are_refused(statistics: Standardisation, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        head().logits(embeddings(), statistics)


def test_a_frame_head_has_no_statistics_to_replace() -> None:
    with pytest.raises(BadInput, match="standardises nothing"):
        head("frame-mlp").logits(embeddings(), Standardisation(mean=np.zeros(D, dtype=np.float32)))


def test_damaged_bytes_are_refused() -> None:
    weights, text = encode(head())
    with pytest.raises(BadInput, match="damaged"):
        decode(weights[: len(weights) // 2], text)
    narrower = json.dumps({**json.loads(text), "dims": 5})
    with pytest.raises(BadInput, match="do not fit its card"):
        decode(weights, narrower)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("layer"),
        lambda d: d.update(extra=1),
        lambda d: d.update(schema=99),
        lambda d: d.update(kind="forest"),
        lambda d: d.update(class_counts=[1]),
        lambda d: d.update(out_of_fold={"macro_f1": 1}),
        lambda d: d.update(out_of_fold=[], schema=1),
        lambda d: d.update(bias=[1.0]),
        lambda d: d.pop("bias"),
    ],
)
def test_a_damaged_card_is_refused(damage: Any) -> None:
    document = json.loads(card().to_json())
    damage(document)
    with pytest.raises(BadInput, match="head card"):
        card_from_json(json.dumps(document))


def test_a_card_of_schema_1_is_read_and_its_head_keeps_its_digest() -> None:
    """As version 1 wrote it: without bias, epoch, limit of novelty and Brier scores, in the card and in the digest."""
    scores = {
        "macro_f1": 0.7, "floor": 0.3, "ece_before": 0.2, "ece_after": 0.1, "nll_before": 1.0, "nll_after": 0.9,
        "clips": 18, "left_out": 0, "speakers": 3, "folds": 3, "grouped_by": "speaker",
    }  # fmt: skip
    later = ("bias", "epoch", "novelty_limit")
    plain = head()
    facts = {k: v for k, v in dataclasses.asdict(plain.card).items() if k not in later} | {"out_of_fold": scores}
    read = card_from_json(json.dumps({"schema": 1, **facts}))
    assert (read.bias, read.epoch, read.novelty_limit, read.calibration) == ((), None, None, "temperature")
    assert read.out_of_fold is not None
    assert read.out_of_fold.brier_after is None
    identity = {k: v for k, v in facts.items() if k not in ("store", "created")}
    assert read.identity() == json.dumps(identity, sort_keys=True)
    again = card_from_json(read.to_json())
    assert again == read
    assert Head(card=again, weights=plain.weights).digest == Head(card=read, weights=plain.weights).digest


def test_biases_are_part_of_the_digest_and_of_the_scaling() -> None:
    plain = head()
    biased = Head(card=dataclasses.replace(plain.card, bias=(0.5, 0.0, -0.5)), weights=plain.weights)
    assert biased.digest != plain.digest
    assert decode(*encode(biased)).card.scaling.bias == (0.5, 0.0, -0.5)


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_what_is_no_card_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="head card"):
        card_from_json(text)
