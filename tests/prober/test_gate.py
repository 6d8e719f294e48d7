"""The gate: the file of rules, and each rule failing alone."""

import dataclasses
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.prober.card import OutOfFold
from services.prober.evaluations import CorpusScores, Evaluation, evaluation_from_json
from services.prober.gate import DEFAULTS, Known, Rules, judge, load_rules, refused
from services.prober.settings import Settings
from servox.errors import BadInput, BadSetting
from tests.prober.test_registry import GOOD, head

NOW = datetime(2026, 6, 1, tzinfo=UTC)
SCORES = CorpusScores(
    key="ravdess",
    digest="aa" * 32,
    classes=("anger", "sadness"),
    clips=400,
    speakers=24,
    macro_f1=0.6,
    low=0.55,
    high=0.65,
    floor=0.5,
    uar=0.6,
    accuracy=0.6,
    ece=0.1,
    nll=0.6,
    interval="95 % percentile bootstrap over 24 speakers",
)
EVALUATION = Evaluation(
    head=head().card.tag,
    digest=head().digest,
    bundle=head().card.bundle,
    created="2026-05-01T00:00:00+00:00",
    servox="0.6.0",
    corpora=(SCORES, dataclasses.replace(SCORES, key="nemo", digest="bb" * 32)),
    left_out={"urdu": "12 of its 400 clips trained the head"},
)


def known(
    scores: OutOfFold | None = GOOD, evaluation: Evaluation | None = EVALUATION, production: Evaluation | None = None
) -> Known:
    made = head(out_of_fold=scores)
    return Known(card=made.card, digest=head().digest, evaluation=evaluation, production=production, now=NOW)


def scored(**changes: object) -> Evaluation:
    """The evaluation with something else on its first corpus."""
    first = dataclasses.replace(EVALUATION.corpora[0], **changes)  # type: ignore[arg-type]  # by name
    return dataclasses.replace(EVALUATION, corpora=(first, EVALUATION.corpora[1]))


def alone(**changes: object) -> Evaluation:
    """The first corpus alone."""
    return dataclasses.replace(EVALUATION, corpora=scored(**changes).corpora[:1])


def everywhere(**changes: object) -> Evaluation:
    """The same change on every corpus."""
    corpora = (dataclasses.replace(each, **changes) for each in EVALUATION.corpora)  # type: ignore[arg-type]  # by name
    return dataclasses.replace(EVALUATION, corpora=tuple(corpora))


def strict(text: str, folder: Path) -> Rules:
    file = folder / "gate.toml"
    file.write_text(text)
    return load_rules(file)


def failed(what: Known, rules: Rules) -> list[str]:
    return [result.rule for result in judge(what, rules) if not result.passed]


def test_a_good_head_passes_every_rule() -> None:
    results = judge(known(), load_rules())
    assert refused(results) == ""
    names = [result.rule for result in results]
    assert names[0] == "out_of_fold.margin"
    assert names[-1] == "evaluation.max_regression"
    assert len(names) == len(set(names)) == 14


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        ("out_of_fold.required", known(None)),
        ("out_of_fold.margin", known(dataclasses.replace(GOOD, macro_f1=0.5))),
        ("out_of_fold.min_clips", known(dataclasses.replace(GOOD, clips=49))),
        ("out_of_fold.min_speakers", known(dataclasses.replace(GOOD, speakers=2))),
        ("out_of_fold.min_speakers", known(dataclasses.replace(GOOD, speakers=90, grouped_by="clip"))),
        ("out_of_fold.max_ece", known(dataclasses.replace(GOOD, ece_after=0.2))),
        ("evaluation.of_this_head", known(evaluation=dataclasses.replace(EVALUATION, digest="00" * 32))),
        ("evaluation.of_this_head", known(evaluation=dataclasses.replace(EVALUATION, bundle="00" * 32))),
        ("evaluation.max_age_days", known(evaluation=dataclasses.replace(EVALUATION, created="2025-01-01T00:00:00Z"))),
        ("evaluation.min_clips", known(evaluation=alone(clips=60))),
        ("evaluation.min_speakers", known(evaluation=alone(speakers=3))),
        ("evaluation.worst_margin", known(evaluation=scored(macro_f1=0.44))),
        ("evaluation.max_ece", known(evaluation=scored(ece=0.95))),
        ("evaluation.max_regression", known(production=scored(macro_f1=0.9))),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_each_rule_fails_alone(rule: str, what: Known) -> None:
    assert failed(what, load_rules()) == [rule]
    assert rule in refused(judge(what, load_rules()))


def test_rules_about_several_corpora_fail_alone(tmp_path: Path) -> None:
    none = dataclasses.replace(EVALUATION, corpora=())
    assert "evaluation.min_corpora" in failed(known(evaluation=none), load_rules())
    rules = strict("[evaluation]\nmin_corpora = 3", tmp_path)
    assert failed(known(), rules) == ["evaluation.min_corpora"]
    for low in (0.49, None):  # what has no interval is not above
        assert failed(known(evaluation=everywhere(low=low)), load_rules()) == ["evaluation.share_above_floor"]
    assert failed(known(), strict("[evaluation]\nmean_margin = 0.2", tmp_path)) == ["evaluation.mean_margin"]


def test_an_evaluation_can_be_demanded(tmp_path: Path) -> None:
    assert failed(known(evaluation=None), load_rules()) == []
    said = judge(known(evaluation=None), load_rules())[-1]
    assert (said.rule, said.passed) == ("evaluation.required", True)
    assert "nothing is known of other corpora" in said.found
    assert failed(known(evaluation=None), strict("[evaluation]\nrequired = true", tmp_path)) == ["evaluation.required"]
    assert failed(known(None), strict("[out_of_fold]\nrequired = false", tmp_path)) == []


def test_a_regression_is_told_on_the_same_clips_only() -> None:
    other = dataclasses.replace(SCORES, digest="cc" * 32, macro_f1=0.99)
    production = dataclasses.replace(EVALUATION, corpora=(other,))
    result = judge(known(production=production), load_rules())[-1]
    assert result.passed
    assert "not scored on the same clips" in result.found
    narrower = dataclasses.replace(SCORES, classes=("anger", "fear"), macro_f1=0.99)
    assert judge(known(production=dataclasses.replace(EVALUATION, corpora=(narrower,))), load_rules())[-1].passed


def test_a_file_may_leave_rules_out(tmp_path: Path) -> None:
    rules = strict("[out_of_fold]\nmargin = 0.1\nmin_clips = 0", tmp_path)
    assert (rules.out_of_fold.margin, rules.out_of_fold.min_clips) == (0.1, 0)
    assert rules.evaluation == load_rules().evaluation
    assert strict("", tmp_path) == load_rules()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[out_of_fold]\nmin_clip = 3", r"unknown rule out_of_fold\.min_clip.*min_clips.*Known are required, margin"),
        ("[evalution]\nrequired = true", r"'evalution' is no table of rules.*evaluation"),
        ("margin = 1", r"'margin' is no table"),
        ("out_of_fold = 3", r"out_of_fold = 3 is no table"),
        ("[out_of_fold]\nmargin = 'much'", r"out_of_fold\.margin = 'much': give a number"),
        ("[out_of_fold]\nmin_clips = 2.5", r"out_of_fold\.min_clips = 2\.5: give a whole number"),
        ("[out_of_fold]\nmin_clips = true", r"min_clips = True: give a whole number"),
        ("[out_of_fold]\nrequired = 1", r"required = 1: give true or false"),
        ("[evaluation]\nmax_ece = 3.0", r"evaluation\.max_ece = 3\.0: give 0 to 1"),
        ("[evaluation]\nworst_margin = nan", r"worst_margin = nan: give -1 to 1"),
        ("[evaluation]\nmin_corpora = -1", r"min_corpora = -1: give 0 to inf"),
        ("[evaluation", r"give a readable TOML file"),
    ],
)
def test_a_file_that_is_no_gate_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadSetting, match=said):
        strict(text, tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="readable TOML"):
        load_rules(tmp_path / "nothing.toml")


async def test_a_prober_does_not_start_with_an_unknown_rule(tmp_path: Path) -> None:
    from services.prober.server import ProberServer
    from servox.telemetry import Metrics

    (tmp_path / "gate.toml").write_text("[out_of_fold]\nmacro = 0.5")
    flags = {"grpc_socket": tmp_path / "p.sock", "http_port": 0, "metrics_port": 0, "heads": tmp_path / "heads"}
    server = ProberServer(Settings.load({**flags, "gate": tmp_path / "gate.toml"}), Metrics())
    with pytest.raises(BadSetting, match=r"unknown rule out_of_fold\.macro"):
        await server.start()


def test_an_evaluation_survives_its_document() -> None:
    assert evaluation_from_json(EVALUATION.to_json()) == EVALUATION


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[:-2], "not JSON"),
        (lambda _: "[]", "schema None"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "schema 2"),
        (lambda text: text.replace('"bundle"', '"bundles"'), "missing or unknown"),
        (lambda text: text.replace('"uar"', '"UAR"'), "missing or unknown"),
        (lambda text: text.replace("0.6,", "1.6,"), "no shares"),
        (lambda text: text.replace("0.6,", "NaN,"), "no shares"),
        (lambda text: text.replace("0.6,", '"much",'), "make it again"),
        (lambda text: text.replace("+00:00", ""), "no offset"),
        (lambda text: text.replace('"nemo"', '"ravdess"'), "twice"),
        (lambda text: text.replace('"clips": 400', '"clips": 0'), "0 clips"),
        (lambda text: text.replace("2026-05-01", "yesterday"), "make it again"),
    ],
)
def test_a_document_that_is_no_evaluation_is_refused(damage: Callable[[str], str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        evaluation_from_json(damage(EVALUATION.to_json()))


@given(macro_f1=st.floats(0, 1), floor=st.floats(0, 1), margin=st.floats(-1, 1))
def test_the_margin_is_what_decides(macro_f1: float, floor: float, margin: float) -> None:
    rules = load_rules()
    rules = dataclasses.replace(rules, out_of_fold=dataclasses.replace(rules.out_of_fold, margin=margin))
    what = known(dataclasses.replace(GOOD, macro_f1=macro_f1, floor=floor))
    passed = "out_of_fold.margin" not in failed(what, rules)
    assert passed == (macro_f1 > floor + margin)


@given(days=st.floats(-1000, 2000))
def test_only_an_old_evaluation_is_too_old(days: float) -> None:
    created = (NOW - timedelta(days=days)).isoformat()
    what = known(evaluation=dataclasses.replace(EVALUATION, created=created))
    assert ("evaluation.max_age_days" in failed(what, load_rules())) == (days > 365)


def test_the_page_has_every_rule_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "promotion.md").read_text()
    for table, rules in tomllib.loads(DEFAULTS.read_text()).items():
        for rule, value in rules.items():
            assert f"| `{table}.{rule}` | {str(value).lower()} |" in page
