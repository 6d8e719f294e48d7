"""The two protocols: what each trains, how it splits, what it reports.

- `sound`: speaker-disjoint folds, classes that both corpora have, smoothed priors, several seeds, intervals clustered
  by speaker.
- `ser-evals`: the paper's recipe with its faults (arXiv 2408.07851): 80/20 by utterance under one seed, the last
  layer's frames, eight classes with `other`, the target's true prior as an oracle. Only the paper's own corpora and
  pairs (same cluster) are eligible.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from servox.errors import BadSetting
from servox.v1 import embedder_pb2, evaluator_pb2, prober_pb2

Name = Literal["sound", "ser-evals"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRecipe:
    """One kind of head of a protocol."""

    name: str  # as in results and head names
    kind: "prober_pb2.HeadKind"
    calibrate: bool  # with a temperature from out-of-fold speakers


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What a run does."""

    name: Name
    heads: tuple[HeadRecipe, ...]
    pooling: "embedder_pb2.Pooling"
    pooling_name: str  # in the store
    seeds: tuple[int, ...]  # the default ones
    needs_speakers: bool
    paper_only: bool  # corpora outside the paper are not eligible
    folds: int  # in domain; 1: a single 80/20 split

    def with_seeds(self, count: int) -> tuple[int, ...]:
        """The default seeds, or the first `count` of the sequence that they begin.

        Raises:
            BadSetting: a negative count.
        """
        if count < 0:
            raise BadSetting(f"seeds = {count}: give a positive number, or 0 for the protocol's default")
        return self.seeds if count == 0 else tuple(range(self.seeds[0], self.seeds[0] + count))


SOUND = Protocol(
    name="sound",
    heads=(
        HeadRecipe(name="mlp", kind=prober_pb2.HEAD_KIND_MLP, calibrate=True),
        HeadRecipe(name="logistic", kind=prober_pb2.HEAD_KIND_LOGISTIC, calibrate=True),
    ),
    pooling=embedder_pb2.POOLING_MEAN,
    pooling_name="mean",
    seeds=(0, 1, 2),
    needs_speakers=True,
    paper_only=False,
    folds=5,
)

SER_EVALS = Protocol(
    name="ser-evals",
    heads=(HeadRecipe(name="frame-mlp", kind=prober_pb2.HEAD_KIND_FRAME_MLP, calibrate=False),),
    pooling=embedder_pb2.POOLING_FRAMES,
    pooling_name="frames",
    seeds=(34,),
    needs_speakers=False,
    paper_only=True,
    folds=1,
)

PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (SOUND, SER_EVALS)}
_WIRE = {evaluator_pb2.PROTOCOL_SOUND: SOUND, evaluator_pb2.PROTOCOL_SER_EVALS: SER_EVALS}


def from_wire(value: "evaluator_pb2.Protocol") -> Protocol:
    """The protocol that a request names.

    Raises:
        BadSetting: none, or one of a later version.
    """
    if value not in _WIRE:
        raise BadSetting(f"protocol = {value}: give PROTOCOL_SOUND or PROTOCOL_SER_EVALS")
    return _WIRE[value]


def to_wire(name: str) -> "evaluator_pb2.Protocol":
    """The wire value of a protocol's name.

    Raises:
        BadSetting: no such protocol.
    """
    for value, protocol in _WIRE.items():
        if protocol.name == name:
            return value
    raise BadSetting(f"protocol = {name!r}: give one of {', '.join(PROTOCOLS)}")


def head_names(protocol: Protocol) -> Sequence[str]:
    """Names of the kinds of heads, in the order of the report."""
    return [recipe.name for recipe in protocol.heads]
