"""Heads on each engine's features, kept in the cache: the same features give the same answers."""

from pathlib import Path

import numpy as np

from bench.engine_speech import Speech
from services.evaluator.statistics import Tables
from services.study.feature_heads import Features, answers, counted


def scored(speech: Speech, features: Features, kept: Path) -> Tables:
    """Answers of heads that never heard the speaker; kept at `kept`."""
    if not kept.is_file():
        np.save(kept, answers(speech, features))
    return counted(speech, np.load(kept))
