"""What a canary and a shadow show of a new head, and what is true: clips of a corpus that neither head has heard.

- Two heads of one name are trained: the old one on some corpora, the new one on more. Both are evaluated on the corpus
  that is held out, the old one is promoted, the new one becomes canary and shadow.
- Clips are then sent to a real prober with a real embedder, by callers who each keep their session. What the prober's
  figures say is printed beside the truth, which no operator has: macro-F1 of what was answered, and of both heads.

python -m bench.canary --bundle BUNDLE --store FOLDER --data FOLDER
"""

import argparse
import asyncio
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from rich.console import Console
from rich.table import Table

from services.demo import data_root
from services.embedder import bundle as bundles
from services.evaluator.dataset import Corpus, Sample, load
from services.evaluator.protocols import SOUND
from services.evaluator.scoring import confusion, macro_scores
from services.judging import judge, served
from services.prober.specs import settings_of
from servox.arrays import write_clip_set
from servox.errors import BadSetting
from servox.rpc import channel, translated
from servox.v1 import common_pb2, prober_pb2, prober_pb2_grpc

NAME = "rolled-out"
IN_FLIGHT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One clip that was answered.

    Attributes:
        caller: their session.
        stage: as what the head answered.
        truth: label of the clip.
        answer: label that was answered; empty for none.
    """

    caller: str
    stage: str
    truth: str
    answer: str


def macro_f1(pairs: Sequence[tuple[str, str]]) -> float:
    """Of (truth, answer), over the classes of the truth."""
    classes = sorted({label for pair in pairs for label in pair})
    truth, answers = (np.array([classes.index(label) for label in side]) for side in zip(*pairs, strict=True))
    return float(macro_scores(confusion(truth, answers, classes=len(classes)))["macro_f1"])


async def trained(stub: Any, corpora: Sequence[Corpus], store: str, bundle: bundles.Bundle) -> str:  # noqa: ANN401
    """Version of a head on all clips of some corpora.

    Raises:
        ServoxError: it cannot be trained.
    """
    clips = [clip for corpus in corpora for clip in corpus.labelled]
    spec = prober_pb2.HeadSpec(
        name=NAME,
        kind=prober_pb2.HEAD_KIND_MLP,
        bundle_digest=bundle.digest,
        layer=bundle.default_layer,
        clip_set_url=write_clip_set(f"{store.rstrip('/')}/sets", clips),
        calibrate=True,
        settings=settings_of("mlp", {}),
    )
    async for event in stub.Train(prober_pb2.TrainRequest(store_url=store, heads=[spec])):
        if event.WhichOneof("event") == "failed":
            raise BadSetting(event.failed.failure.message)
        if event.WhichOneof("event") == "trained":
            version = str(event.trained.head.version)
    return version


async def replay(stub: Any, samples: Sequence[Sample], head: str, callers: int) -> list[Answered]:  # noqa: ANN401
    """Sends clips, each by one of the callers; clips that cannot be heard are left out."""
    gate, draw = asyncio.Semaphore(IN_FLIGHT), random.Random(0)
    turns = [(sample, f"caller {draw.randrange(callers)}") for sample in samples]

    async def one(sample: Sample, caller: str) -> Answered | None:
        config = prober_pb2.RecognizeConfig(head=head, session=caller)
        audio = common_pb2.Audio(container=await asyncio.to_thread(sample.clip.file.read_bytes))
        async with gate:
            try:
                answer = await stub.Recognize(prober_pb2.RecognizeRequest(audio=audio, config=config))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                    raise
                return None
        stage = prober_pb2.Stage.Name(answer.stage).removeprefix("STAGE_").lower()
        return Answered(caller=caller, stage=stage, truth=sample.clip.label, answer=answer.overall.label)

    return [each for each in await asyncio.gather(*(one(*turn) for turn in turns)) if each is not None]


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Trains, rolls out, replays; prints tables, returns what goes into the line of JSON."""
    bundle = bundles.load(options.bundle)
    keys = {name: [key.strip() for key in getattr(options, name).split(",")] for name in ("old", "new", "test")}
    wanted = sorted({key for each in keys.values() for key in each})
    found = {corpus.key: corpus for corpus in load(options.data, protocol=SOUND, wanted=wanted).corpora}
    sets = {name: [found[key] for key in each] for name, each in keys.items()}
    with tempfile.TemporaryDirectory() as heads:
        async with served(options.bundle, heads=Path(heads)) as (_, address), channel(address) as opened:
            stub = prober_pb2_grpc.ProberStub(opened)  # type: ignore[no-untyped-call]
            with translated(address):
                versions = {name: await trained(stub, sets[name], options.store, bundle) for name in ("old", "new")}
                evaluations = {}
                for name, version in versions.items():
                    evaluations[name], _ = await judge(
                        f"{NAME}:{version}",
                        data=options.data,
                        bundle=options.bundle,
                        corpora=keys["test"],
                        store=options.store,
                        prober=address,
                    )
                await stub.Promote(prober_pb2.PromoteRequest(head=f"{NAME}:{versions['old']}", reason="the old one"))
                rollout = prober_pb2.Rollout(
                    canary=versions["new"], canary_share=options.share, shadow=versions["new"], shadow_share=1.0
                )
                await stub.SetRollout(prober_pb2.SetRolloutRequest(name=NAME, rollout=rollout))
                samples = drawn(sets["test"], options.clips)
                answered = await replay(stub, samples, NAME, options.callers)
                shown = await stub.GetRollout(prober_pb2.GetRolloutRequest(name=NAME))
                truth = {name: await replay(stub, samples, f"{NAME}:{versions[name]}", 1) for name in versions}
    document = report(shown, answered, truth)
    document["evaluations"] = {name: json.loads(each.to_json())["corpora"] for name, each in evaluations.items()}
    return {"bench": "canary", **{name: keys[name] for name in keys}, "share": options.share, **document}


def drawn(corpora: Sequence[Corpus], clips: int) -> list[Sample]:
    """Clips in an order that is always the same."""
    samples = [sample for corpus in corpora for sample in corpus.samples]
    random.Random(0).shuffle(samples)
    return samples[:clips]


def report(shown: Any, answered: Sequence[Answered], truth: dict[str, list[Answered]]) -> dict[str, Any]:  # noqa: ANN401
    """Prints what the prober's figures show and what is true; the same for machines."""
    rows = [row_of(figures, answered) for figures in shown.stages]
    labels = sorted({label for row in rows for label in row["answers"]})
    table = Table("stage", *(row["stage"] for row in rows), box=None, pad_edge=False)
    for name in ("callers", "calls", "failed", "abstained", "confidence"):
        table.add_row(name, *(str(row[name]) for row in rows))
    for label in labels:
        table.add_row(f"answered {label}", *(f"{row['answers'].get(label, 0.0):.3f}" for row in rows))
    table.add_row("macro-F1 (truth)", *(str(row["macro_f1"]) for row in rows))
    shadow = shown.shadow
    compared = {
        "windows": shadow.windows,
        "disagreed": round(shadow.disagreed / max(1, shadow.windows), 4),
        "divergence_nats": round(shadow.divergence, 4),
        "confidence_difference": round(shadow.confidence_difference, 4),
        "dropped": shadow.dropped,
        "unfit": shadow.unfit,
    }
    true = {name: scored(each) for name, each in truth.items()}
    stages: dict[str, set[str]] = {}
    for each in answered:
        stages.setdefault(each.caller, set()).add(each.stage)
    both = sum(len(met) > 1 for met in stages.values())
    console = Console(width=120)
    console.print(table)
    console.print("shadow:", ", ".join(f"{name} {value}" for name, value in compared.items()))
    console.print(f"truth: macro-F1 old {true['old']}, new {true['new']}; callers who met both: {both}")
    return {"stages": rows, "shadow": compared, "truth": true, "callers_who_met_both": both}


def row_of(figures: Any, answered: Sequence[Answered]) -> dict[str, Any]:  # noqa: ANN401 -- of the stubs
    """One stage: what the prober's figures say, and what is true of its answers."""
    stage = prober_pb2.Stage.Name(figures.stage).removeprefix("STAGE_").lower()
    own = [each for each in answered if each.stage == stage]
    total = max(1, sum(figures.labels.values()))
    return {
        "stage": stage,
        "version": figures.version,
        "callers": len({each.caller for each in own}),
        "calls": figures.calls,
        "failed": figures.failed,
        "abstained": figures.abstained,
        "confidence": round(figures.confidence, 4),
        "answers": {label: round(count / total, 3) for label, count in sorted(figures.labels.items())},
        "macro_f1": scored(own),
    }


def scored(answered: Sequence[Answered]) -> float | None:
    """Macro-F1 of what has an answer."""
    pairs = [(each.truth, each.answer) for each in answered if each.answer]
    return round(macro_f1(pairs), 4) if pairs else None


def parsed() -> argparse.Namespace:
    """What the command line asks for.

    Raises:
        BadSetting: no data folder was named, and there is none.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="of embedder and heads")
    parser.add_argument("--store", required=True, help="where embeddings are kept between runs")
    parser.add_argument("--data", type=Path, default=data_root(), help="folder with corpora/")
    parser.add_argument("--old", default="ravdess", help="corpora of the head in production, with commas")
    parser.add_argument("--new", default="nemo,ravdess,turev-db,urdu", help="corpora of the new one")
    parser.add_argument("--test", default="emodb", help="corpora that callers send")
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--clips", type=int, default=535)
    parser.add_argument("--callers", type=int, default=60)
    options = parser.parse_args()
    if options.data is None:
        raise BadSetting("--data: no folder with corpora/ was found; name one")
    return options


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(parsed())), ensure_ascii=False))
