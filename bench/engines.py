"""Encoders' engines side by side: the same real clips, each engine in a process of its own, in turn, round after round.

    python -m bench.engines [--clips 15] [--rounds 5] [--corpora EmoDB,nEMO,RAVDESS] [--engines NAME,…] [--out FILE]

Needs `pip install ctranslate2 faster-whisper` for those two peers; without them their rows are left out. Features of
whole corpora, from which the heads are trained, are computed once and kept in `--cache`: with a full cache the bench
takes some ten minutes on two processors, without one an hour and more. Ends with one line of JSON.
"""

import argparse
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.engine_heads import scored as head_scored
from bench.engine_models import ENGINES, Engine, Models
from bench.engine_peers import own_frames
from bench.engine_report import Row, document, markdown, plot, speed
from bench.engine_speech import Samples, Speech, gather, pick, write_clips
from bench.engine_turns import PEAK, Measured, feature_path, features, rounds
from bench.engine_work import encoder_flops
from services.evaluator.statistics import Tables
from services.study.feature_heads import Gap, gap, macro_f1
from servox import cpus

REFERENCE, OURS = "transformers", "Servox fp32"
WINDOW = 1_500
BORDER = 2  # frames after a clip that `silence:K` computes
EQUAL = 0.02  # RMS deviation over the spread between clips, under which features count as the same


def main() -> None:
    """Features, rounds, table, one line of JSON."""
    options = _options()
    chosen = _chosen(options.engines, always={REFERENCE} if options.rounds else set())
    data, cache = Path(options.data), Path(options.cache)
    models = Models(Path(options.checkpoint or data / "models" / "whisper-base"), cache, data=data)
    corpora = gather(data, options.corpora.split(","), cache)
    clips = pick(corpora, options.clips)
    timing = cache / "speech" / f"timing-{options.clips}-{'-'.join(speech.digest[:8] for speech in corpora)}.npz"
    write_clips(timing, clips)
    scored = {} if options.no_heads else _scored(chosen, models, corpora, cache, options)
    if options.rounds == 0:
        return
    threads = options.threads or cpus.here()
    measured = _measured(chosen, models, timing, threads, options)
    rows = [_row(engine, models, clips, measured, scored, corpora) for engine in chosen]
    print(markdown(rows))
    facts = _facts(clips, corpora, measured, threads, options.rounds)
    found = document(rows, **facts)
    if options.out:
        Path(options.out).write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    if options.plot and scored:
        plot(rows, Path(options.plot))
    print(json.dumps(found, ensure_ascii=False))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=15, help="clips that are timed")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each engine; 0 only fills the cache")
    parser.add_argument("--seconds", type=float, default=2.0, help="least time of a turn")
    parser.add_argument("--corpora", default="EmoDB,nEMO,RAVDESS", help="what heads are trained on and clips come from")
    parser.add_argument("--engines", default="", help="names, separated by semicolons; default: all that are installed")
    parser.add_argument("--threads", type=int, default=0, help="processors to use; 0: what the container allows")
    parser.add_argument("--no-heads", action="store_true", help="speed only")
    parser.add_argument("--all-features", action="store_true", help="also of engines that must equal another")
    parser.add_argument("--data", default=os.environ.get("SERVOX_DATA", "data"), help="holds corpora/ and models/")
    parser.add_argument("--checkpoint", default="", help="folder; default: DATA/models/whisper-base")
    parser.add_argument("--cache", default=str(Path.home() / ".cache" / "servox-engines"), help="folder")
    parser.add_argument("--out", default="", help="JSON file")
    parser.add_argument("--plot", default="", help="PNG or SVG file")
    return parser.parse_args()


def _chosen(names: str, *, always: set[str]) -> list[Engine]:
    """`always` and what was asked for, less what is not installed."""
    wanted = [name.strip() for name in names.split(";") if name.strip()]
    unknown = set(wanted) - {engine.name for engine in ENGINES}
    if unknown:
        sys.exit(f"--engines: {', '.join(unknown)}: use {'; '.join(engine.name for engine in ENGINES)}")
    chosen = [engine for engine in ENGINES if not wanted or engine.name in {*always, *wanted}]
    needs = {"ctranslate2": ("ctranslate2", "faster_whisper"), "torch": ("faster_whisper",)}
    absent = {
        engine.name
        for engine in chosen
        if any(importlib.util.find_spec(package) is None for package in needs.get(engine.package, ()))
    }
    for name in sorted(absent):
        print(f"left out: {name}; pip install ctranslate2 faster-whisper", file=sys.stderr)
    return [engine for engine in chosen if engine.name not in absent]


def _scored(
    chosen: Sequence[Engine], models: Models, corpora: Sequence[Speech], cache: Path, options: argparse.Namespace
) -> dict[str, list[Tables]]:
    """Answers of heads on each engine's features, by corpus."""
    scored: dict[str, list[Tables]] = {}
    for engine in chosen:
        if engine.equals and not options.all_features:
            continue
        print(f"features: {engine.name}", file=sys.stderr)
        vectors = features(engine, models, corpora, cache, options.threads or cpus.here())
        paths = [feature_path(engine, models, speech, cache).with_suffix(".answers.npy") for speech in corpora]
        scored[engine.name] = [head_scored(*each) for each in zip(corpora, vectors, paths, strict=True)]
    return scored


def _measured(
    chosen: Sequence[Engine], models: Models, timing: Path, threads: int, options: argparse.Namespace
) -> Measured:
    measured: Measured = {}
    turns = rounds(chosen, models, timing, count=options.rounds, seconds=options.seconds, cpus=threads)
    for number, name, figures in turns:
        measured.setdefault(name, []).append(figures)
        if name != PEAK:
            rate = figures["clips"] / figures["wall_s"]
            print(f"round {number + 1}: {name:32} {rate:8.2f} clips/s", file=sys.stderr)
    return measured


def _row(
    engine: Engine,
    models: Models,
    clips: Sequence[Samples],
    measured: Measured,
    scored: dict[str, list[Tables]],
    corpora: Sequence[Speech],
) -> Row:
    source = engine.name if engine.name in scored else engine.equals or engine.name
    tables = scored.get(source, [])
    each = {speech.name: macro_f1(table) for speech, table in zip(corpora, tables, strict=False)}
    flops = float(np.mean([_flops(engine, models, len(clip)) for clip in clips]))
    return Row(
        engine=engine.name,
        context=engine.context,
        blocks=models.blocks(engine),
        precision=engine.precision,
        f1=float(np.mean(list(each.values()))) if each else None,
        f1_by_corpus=each,
        f1_from=source,
        to_reference=_gap(scored, source, REFERENCE),
        to_ours=_gap(scored, source, OURS),
        **speed(engine, measured, REFERENCE, flops),
    )


def _gap(scored: dict[str, list[Tables]], ours: str, theirs: str) -> Gap | None:
    if ours == theirs or ours not in scored or theirs not in scored:
        return None
    return gap(scored[ours], scored[theirs])


def _flops(engine: Engine, models: Models, samples: int) -> float:
    """What the engine computes for a clip: its own choice of context and depth, not what would have been enough."""
    own = own_frames(samples)
    kind, _, count = engine.context.partition(":")
    frames = {"padded": WINDOW, "silence": min(WINDOW, own + BORDER)}.get(kind, own)
    tokens = frames + int(count or 0)
    rows = own if engine.package == "servox" else tokens
    return encoder_flops(models.sizes(), frames=frames, tokens=tokens, rows=rows, blocks=models.blocks(engine))


def _facts(
    clips: Sequence[Samples], corpora: Sequence[Speech], measured: Measured, threads: int, count: int
) -> dict[str, object]:
    return {
        "clips": len(clips),
        "clip_s": round(float(np.mean([len(clip) for clip in clips])) / 16_000, 3),
        "corpora": [speech.name for speech in corpora],
        "rounds": count,
        "cpus": threads,
        "machine": platform.processor() or platform.machine(),
        "peak_gflops": {
            name: round(float(np.median([each[name] for each in measured[PEAK]])), 1) for name in measured[PEAK][0]
        },
    }


if __name__ == "__main__":
    main()
