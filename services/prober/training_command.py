"""What `servox train` asks of a prober, and how the answer is shown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table

from servox.errors import BadSetting, ServoxError
from servox.keys import key_of_environment
from servox.rpc import channel, translated
from servox.v1 import prober_pb2, prober_pb2_grpc
from servox.wire import failure_from_proto

from .card import Card, Kind, card_from_json
from .specs import settings_of

WIRE_KINDS: dict[str, tuple[Kind, prober_pb2.HeadKind]] = {
    "mlp": ("mlp", prober_pb2.HEAD_KIND_MLP),
    "logistic": ("logistic", prober_pb2.HEAD_KIND_LOGISTIC),
}

Tell = Callable[[float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A head, and whether it had been trained before."""

    card: Card
    digest: str
    reused: bool


def settings_from(kind: str, given: Sequence[str]) -> dict[str, float]:
    """What `--set name=value` asks for.

    Raises:
        BadSetting: an unknown kind or setting, or a value that is no number or out of range.
    """
    if kind not in WIRE_KINDS:
        raise BadSetting(f"--kind {kind!r}: use {' or '.join(WIRE_KINDS)}")
    found = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise BadSetting(f"--set {text!r}: give NAME=NUMBER, such as hidden=128") from None
    settings_of(WIRE_KINDS[kind][0], found)
    return found


async def train_head(address: str, request: prober_pb2.TrainRequest, *, tell: Tell) -> Trained:
    """Has a prober train one head, and reads its card.

    Args:
        address: of the prober.
        request: with one head.
        tell: called with the share of the work that is done.

    Raises:
        ServoxError: the head cannot be trained.
        Unavailable: the prober does not answer.
    """
    async with channel(address, key=key_of_environment()) as connection:
        stub = prober_pb2_grpc.ProberStub(connection)  # type: ignore[no-untyped-call]
        with translated(f"prober at {address}"):
            async for event in stub.Train(request, wait_for_ready=True):
                match event.WhichOneof("event"):
                    case "progress":
                        tell(event.progress.fraction)
                    case "failed":
                        raise failure_from_proto(event.failed.failure)
                    case "trained":
                        return await _described(stub, event.trained)
    raise ServoxError(f"the prober at {address} ended the training without an answer; look into its log")


async def _described(stub: prober_pb2_grpc.ProberStub, trained: prober_pb2.TrainedHead) -> Trained:
    head = trained.head
    answer = await stub.GetHead(prober_pb2.GetHeadRequest(head=f"{head.name}:{head.version}"))
    return Trained(card=card_from_json(answer.card_json), digest=head.digest, reused=trained.reused)


def table_of(card: Card) -> Table:
    """A head's card for people."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _lines(card):
        table.add_row(f"[bold]{name}[/]", value)
    return table


def _lines(card: Card) -> list[tuple[str, str]]:
    counts = zip(card.classes, card.class_counts, strict=True)
    layers = ", ".join(map(str, card.layers))
    lines = [
        ("head", f"{card.tag} ({card.kind})"),
        ("classes", ", ".join(f"{label} {count}" for label, count in counts)),
        ("learned from", f"{card.clips} clips, {card.speakers or 'unknown'} speakers"),
        ("reads", f"bundle {card.bundle[:12]}, layer {layers}, {card.dims} values"),
    ]
    if card.epoch is not None:
        lines.append(("epochs", f"{card.epoch}"))
    if (scores := card.out_of_fold) is None:
        return [*lines, ("scores", "none: it was not calibrated")]
    return [
        *lines,
        ("macro-F1", f"{scores.macro_f1:.3f} by {scores.grouped_by} in {scores.folds} folds; floor {scores.floor:.3f}"),
        ("calibration", f"{card.calibration}, T = {card.temperature:.2f}"),
        ("ECE", f"{scores.ece_before:.3f} → {scores.ece_after:.3f}"),
        ("NLL", f"{scores.nll_before:.3f} → {scores.nll_after:.3f}"),
        ("Brier", f"{scores.brier_before or 0:.3f} → {scores.brier_after or 0:.3f}"),
    ]
