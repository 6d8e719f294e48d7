"""What a caller may ask to be trained: the checked form of a head's specification, and its identity.

- Defaults. `frame-mlp` is SER Evals' recipe. `mlp` was chosen by speaker on EmoDB, nEMO and RAVDESS: without label
  smoothing the pooled head gains 1.5 points of macro-F1, and its temperature does what the smoothing was for; strong
  decay and half the width cost nothing in domain and help across corpora; in 96 components, with larger and fewer
  steps, it scores the same as in all dimensions at a tenth of the work; 6 epochs score
  what 8 scored (docs/training.md). `logistic`: C between .03 and .1 is flat.
- An optional setting is among a head's settings only where it is not at its rest, so that a head without it is what it
  was before the setting existed.
- A version is the digest of everything that decides the weights. The same specification is the same head.
"""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from servox.arrays import LabelledClip
from servox.errors import BadInput, BadSetting

from .card import Kind, layers_of

CODE = 3  # of the training: raised when the same settings begin to give other weights
VERSION_DIGITS = 16
STEPS_AN_EPOCH = 3  # at least, of an `mlp`: a small set is learned in small batches, or it would be left half learned
NAME = re.compile(r"[a-z0-9]([-._a-z0-9]{0,61}[a-z0-9])?")  # what the model store takes as a tag

_MLP = {
    "hidden": 256.0,
    "epochs": 6.0,
    "learning_rate": 2.4e-2,
    "weight_decay": 4.0,
    "label_smoothing": 0.0,
    "dropout": 0.3,
    "batch": 128.0,
    "clip_norm": 0.5,
    "components": 96.0,
}
_SER_EVALS = {
    "hidden": 512.0,
    "epochs": 100.0,
    "learning_rate": 1e-4,
    "weight_decay": 0.1,
    "label_smoothing": 0.1,
    "dropout": 0.1,
    "batch": 32.0,
    "clip_norm": 0.5,
}
DEFAULTS: dict[Kind, dict[str, float]] = {
    "mlp": {**_MLP, "calibration_folds": 5.0},
    "frame-mlp": {**_SER_EVALS, "calibration_folds": 3.0},
    "logistic": {"c": 0.1, "calibration_folds": 5.0},
}
# layers: read one after the other, up to the head's; mix: 1 for their mean, with learned shares, in place of that;
# class_weights: 0 none, 1 balanced; logit_adjustment: tau; patience: epochs without a better loss on the speakers held
# back, 0 never stops early; validation: their share; calibration_bias: 1 for a bias a class beside the temperature.
_LOSS = {"class_weights": 0.0, "logit_adjustment": 0.0, "patience": 0.0, "validation": 0.2, "calibration_bias": 0.0}
OPTIONAL: dict[Kind, dict[str, float]] = {
    "mlp": {"layers": 1.0, "mix": 0.0, **_LOSS},
    "frame-mlp": _LOSS,
    "logistic": {"layers": 1.0, "calibration_bias": 0.0},
}
# smallest, largest, whole number
_RANGES: dict[str, tuple[float, float, bool]] = {
    "hidden": (1, 8192, True),
    "epochs": (1, 10_000, True),
    "learning_rate": (1e-8, 1.0, False),
    "weight_decay": (0.0, 100.0, False),
    "label_smoothing": (0.0, 0.9, False),
    "dropout": (0.0, 0.95, False),
    "batch": (1, 65_536, True),
    "clip_norm": (1e-6, 1e6, False),
    "calibration_folds": (2, 100, True),
    "components": (1, 65_536, True),
    "layers": (1, 64, True),
    "mix": (0, 1, True),
    "class_weights": (0.0, 1.0, False),
    "logit_adjustment": (0.0, 4.0, False),
    "patience": (0, 10_000, True),
    "validation": (0.02, 0.5, False),
    "calibration_bias": (0, 1, True),
    "c": (1e-8, 1e8, False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One head to train, checked but for what its clip set holds.

    Attributes:
        classes: order of the outputs; empty for the labels of the clip set, sorted.
        settings: every setting of the kind, the defaults too.
    """

    name: str
    kind: Kind
    bundle: str
    layer: int
    clip_set_url: str
    classes: tuple[str, ...]
    seed: int
    calibrate: bool
    settings: Mapping[str, float]

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise BadInput(
                f"head name {self.name!r}: use 1 to 63 lower-case letters, digits, '.', '-' and '_', "
                "with a letter or digit at both ends"
            )
        if not re.fullmatch(r"[0-9a-f]{64}", self.bundle):
            raise BadInput(f"bundle digest {self.bundle!r} of head {self.name}: give the 64 hex digits of Describe")
        if self.layer < 0 or not 0 <= self.seed < 1 << 63:
            raise BadInput(f"head {self.name}: layer {self.layer} and seed {self.seed} must not be negative")
        if self.layers[0] < 0:
            raise BadInput(
                f"head {self.name}: {len(self.layers)} layers up to layer {self.layer}: there are not so many"
            )
        if len(set(self.classes)) != len(self.classes):
            raise BadInput(f"head {self.name}: classes {list(self.classes)} hold one twice; name each once")

    @property
    def layers(self) -> tuple[int, ...]:
        """What the head reads, one after the other."""
        return layers_of(self.layer, self.settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How an MLP is fitted; see `DEFAULTS` and `OPTIONAL`."""

    hidden: int
    epochs: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    dropout: float
    batch: int
    clip_norm: float
    steps_an_epoch: int = 1
    components: int = 0
    mix: bool = False
    class_weights: float = 0.0
    logit_adjustment: float = 0.0
    patience: int = 0
    validation: float = 0.0

    def width(self, clips: int) -> int:
        """Clips in a batch of a set of this size: fewer than `batch` where an epoch would have too few steps."""
        return min(self.batch, max(1, clips // self.steps_an_epoch))

    def steps(self, clips: int) -> int:
        """Optimiser steps on a set of this size."""
        return self.epochs * (clips // self.width(clips))


def recipe_of(spec: Spec) -> Recipe:
    """The recipe in the settings of an MLP's specification."""
    settings = {**OPTIONAL[spec.kind], **spec.settings}
    return Recipe(
        hidden=int(settings["hidden"]),
        epochs=int(settings["epochs"]),
        learning_rate=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
        label_smoothing=settings["label_smoothing"],
        dropout=settings["dropout"],
        batch=int(settings["batch"]),
        clip_norm=settings["clip_norm"],
        steps_an_epoch=STEPS_AN_EPOCH if spec.kind == "mlp" else 1,
        components=int(settings.get("components", 0)),
        mix=bool(settings.get("mix", 0)),
        class_weights=settings["class_weights"],
        logit_adjustment=settings["logit_adjustment"],
        patience=int(settings["patience"]),
        validation=settings["validation"],
    )


def settings_of(kind: Kind, given: Mapping[str, float]) -> dict[str, float]:
    """Every setting of `kind`: what was given, and the defaults.

    Raises:
        BadSetting: an unknown name, or a value out of range.
    """
    known = [*DEFAULTS[kind], *OPTIONAL[kind]]
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(sorted(known))}"
            raise BadSetting(f"setting {name!r} = {value:g}: a head of kind {kind} has no such setting; {hint}")
        low, high, whole = _RANGES[name]
        if not (math.isfinite(value) and low <= value <= high) or (whole and value != int(value)):
            what = "a whole number" if whole else "a number"
            raise BadSetting(f"setting {name} = {value:g}: give {what} from {low:g} to {high:g}")
    if given.get("mix") and given.get("layers", 1) == 1:
        raise BadSetting("setting mix = 1 with one layer: there is nothing to mix; set layers to 2 or more")
    plain = {name: value for name, value in given.items() if OPTIONAL[kind].get(name) != value}
    return {**DEFAULTS[kind], **plain}


def classes_of(spec: Spec, clips: Sequence[LabelledClip]) -> tuple[str, ...]:
    """The classes of a head, in the order of its outputs.

    SER Evals' heads have eight outputs whatever the corpus holds, so `frame-mlp` may name classes without clips.

    Raises:
        BadInput: one class only, a class without clips, or clips of a class that is not named.
    """
    held = sorted({clip.label for clip in clips})
    classes = spec.classes or tuple(held)
    if strangers := [label for label in held if label not in classes]:
        raise BadInput(f"head {spec.name}: the clip set holds {strangers}, not among its classes; name or drop them")
    empty = [label for label in classes if label not in held]
    if empty and spec.kind != "frame-mlp":
        raise BadInput(f"head {spec.name}: the clip set has no clips of {empty}; it holds {held}; drop the classes")
    if len(held) < 2:
        raise BadInput(f"head {spec.name}: the clip set holds one class only ({held[0]}); a head needs at least two")
    return classes


def version_of(spec: Spec, clip_set: str, classes: Sequence[str]) -> str:
    """First 16 hex digits of the digest of all that decides the head's weights and card; `clip_set` is a digest."""
    identity = {
        "code": CODE,
        "kind": spec.kind,
        "bundle": spec.bundle,
        "layer": spec.layer,
        "classes": list(classes),
        "seed": spec.seed,
        "calibrate": spec.calibrate,
        "settings": dict(spec.settings),
        "clip_set": clip_set,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:VERSION_DIGITS]
