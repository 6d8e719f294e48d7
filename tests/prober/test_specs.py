"""What may be asked of a training."""

import dataclasses

import pytest

from services.prober.specs import DEFAULTS, Spec, classes_of, recipe_of, settings_of, version_of
from servox.arrays import LabelledClip
from servox.errors import BadInput, BadSetting

SPEC = Spec(
    name="toy",
    kind="mlp",
    bundle="ab" * 32,
    layer=3,
    clip_set_url="x",
    classes=(),
    seed=0,
    calibrate=True,
    settings=DEFAULTS["mlp"],
)


def clips(*labels: str) -> list[LabelledClip]:
    return [LabelledClip(key=f"{row:064x}", label=label, speaker="s") for row, label in enumerate(labels)]


def test_the_frame_head_is_the_papers() -> None:
    recipe = recipe_of(dataclasses.replace(SPEC, kind="frame-mlp", settings=settings_of("frame-mlp", {})))
    assert dataclasses.asdict(recipe) == {
        "hidden": 512,
        "epochs": 100,
        "learning_rate": 1e-4,
        "weight_decay": 0.1,
        "label_smoothing": 0.1,
        "dropout": 0.1,
        "batch": 32,
        "clip_norm": 0.5,
        "steps_an_epoch": 1,
        "components": 0,
        "mix": False,
        "class_weights": 0.0,
        "logit_adjustment": 0.0,
        "patience": 0,
        "validation": 0.2,
    }


def test_settings_are_the_given_ones_over_the_defaults() -> None:
    assert settings_of("mlp", {"epochs": 3}) == {**DEFAULTS["mlp"], "epochs": 3}


def test_several_layers_are_those_up_to_the_heads_own() -> None:
    several = dataclasses.replace(SPEC, settings=settings_of("mlp", {"layers": 3}))
    assert several.layers == (1, 2, 3)
    assert SPEC.layers == (3,)
    with pytest.raises(BadInput, match="5 layers up to layer 3"):
        dataclasses.replace(SPEC, settings=settings_of("mlp", {"layers": 5}))
    with pytest.raises(BadSetting, match="kind frame-mlp has no such setting"):
        settings_of("frame-mlp", {"layers": 2})


def test_one_layer_is_no_setting_so_that_older_heads_keep_their_version() -> None:
    assert settings_of("logistic", {"layers": 1}) == DEFAULTS["logistic"]
    several = dataclasses.replace(SPEC, settings=settings_of("mlp", {"layers": 2}))
    assert version_of(several, "d" * 64, ("a", "b")) != version_of(SPEC, "d" * 64, ("a", "b"))


def test_an_unknown_setting_gets_a_hint() -> None:
    with pytest.raises(BadSetting, match=r"'learning_rat' = 0.1.*did you mean 'learning_rate'"):
        settings_of("mlp", {"learning_rat": 0.1})
    with pytest.raises(BadSetting, match=r"kind logistic has no such setting.*calibration_folds"):
        settings_of("logistic", {"epochs": 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("epochs", 2.5), ("dropout", 1.0), ("learning_rate", float("nan")), ("hidden", 1e9)],
)
def test_a_setting_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(BadSetting, match=f"setting {name} = "):
        settings_of("mlp", {name: value})


@pytest.mark.parametrize("name", ["", "Toy", "a b", "../up", "-a", "a-", "x" * 64, "a:b"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="head name"):
        dataclasses.replace(SPEC, name=name)


def test_a_bad_digest_layer_or_class_list_is_refused() -> None:
    with pytest.raises(BadInput, match="bundle digest 'abc'"):
        dataclasses.replace(SPEC, bundle="abc")
    with pytest.raises(BadInput, match="layer -1"):
        dataclasses.replace(SPEC, layer=-1)
    with pytest.raises(BadInput, match="hold one twice"):
        dataclasses.replace(SPEC, classes=("a", "a"))


def test_classes_are_those_of_the_clips_unless_named() -> None:
    assert classes_of(SPEC, clips("b", "a", "b")) == ("a", "b")
    assert classes_of(dataclasses.replace(SPEC, classes=("b", "a")), clips("a", "b")) == ("b", "a")


def test_classes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadInput, match=r"no clips of \['fear'\]"):
        classes_of(dataclasses.replace(SPEC, classes=("a", "b", "fear")), clips("a", "b"))
    with pytest.raises(BadInput, match=r"holds \['b'\], not among its classes"):
        classes_of(dataclasses.replace(SPEC, classes=("a", "c")), clips("a", "b", "c"))
    with pytest.raises(BadInput, match=r"one class only \(a\)"):
        classes_of(SPEC, clips("a", "a"))


def test_the_papers_head_may_have_classes_without_clips() -> None:
    paper = dataclasses.replace(SPEC, kind="frame-mlp", classes=("a", "b", "fear"), settings=DEFAULTS["frame-mlp"])
    assert classes_of(paper, clips("a", "b")) == ("a", "b", "fear")


def test_a_version_changes_with_everything_that_decides_the_head() -> None:
    data = "d" * 64
    changes = [
        {},
        {"kind": "frame-mlp"},
        {"bundle": "cd" * 32},
        {"layer": 2},
        {"seed": 1},
        {"calibrate": False},
        {"settings": {**DEFAULTS["mlp"], "epochs": 3.0}},
    ]
    versions = [version_of(dataclasses.replace(SPEC, **change), data, ("a", "b")) for change in changes]  # type: ignore[arg-type]
    versions += [version_of(SPEC, data, ("b", "a")), version_of(SPEC, "e" * 64, ("a", "b"))]
    assert len(set(versions)) == len(versions)
    assert all(len(version) == 16 for version in versions)
    elsewhere = dataclasses.replace(SPEC, name="other", clip_set_url="y")
    assert version_of(elsewhere, data, ("a", "b")) == versions[0]


def test_a_mix_needs_layers() -> None:
    with pytest.raises(BadSetting, match="nothing to mix"):
        settings_of("mlp", {"mix": 1})
    assert settings_of("mlp", {"mix": 1, "layers": 2})["mix"] == 1
    assert "mix" not in settings_of("mlp", {"mix": 0})


def test_a_small_set_is_learned_in_small_batches() -> None:
    recipe = recipe_of(SPEC)
    assert [recipe.width(clips) for clips in (1, 2, 36, 300, 428, 10_000)] == [1, 1, 12, 100, 128, 128]
    assert [recipe.steps(clips) // recipe.epochs for clips in (1, 36, 300, 428, 10_000)] == [1, 3, 3, 3, 78]
