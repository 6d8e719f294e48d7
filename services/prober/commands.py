"""What `servox recognize` does: files in, emotions out, through a prober that runs somewhere."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from servox.errors import BadInput, BadSetting, ServoxError, Unavailable
from servox.rpc import channel, translated
from servox.v1 import common_pb2, prober_pb2, prober_pb2_grpc

IN_FLIGHT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What came of one file: an answer, or why there is none."""

    path: Path
    answer: prober_pb2.RecognizeResponse | None
    error: ServoxError | None


def prior_of(text: str) -> prober_pb2.Prior:
    """`train`, `uniform`, or `label=probability,…` as a message.

    Raises:
        BadSetting: anything else.
    """
    named = {"train": prober_pb2.Prior.KIND_TRAIN, "uniform": prober_pb2.Prior.KIND_UNIFORM}
    if text in named:
        return prober_pb2.Prior(kind=named[text])
    try:
        pairs = [part.split("=") for part in text.split(",")]
        values = {label.strip(): float(value) for label, value in pairs}
    except ValueError:
        raise BadSetting(f"prior = {text!r}: give train, uniform or label=probability,label=probability,…") from None
    return prober_pb2.Prior(kind=prober_pb2.Prior.KIND_EXPLICIT, probabilities=values)


async def recognize(
    files: Sequence[Path],
    *,
    head: str,
    address: str,
    window_ms: int = 0,
    hop_ms: int = 0,
    prior: str = "train",
) -> AsyncGenerator[Heard]:
    """Emotions of files, in their order, some at a time; a file that cannot be heard does not stop the others.

    Args:
        files: audio in any container that the embedder reads.
        head: name, or name:version.
        address: of a prober.
        window_ms: 0 for the whole file.
        hop_ms: 0 for windows side by side.
        prior: see `prior_of`.

    Raises:
        BadSetting: a prior that cannot be read.
        Unavailable: the prober does not answer.
    """
    config = prober_pb2.RecognizeConfig(head=head, prior=prior_of(prior), window_ms=window_ms, hop_ms=hop_ms)
    async with channel(address) as connection:
        stub = prober_pb2_grpc.ProberStub(connection)  # type: ignore[no-untyped-call]
        slots = asyncio.Semaphore(IN_FLIGHT)
        waiting = [asyncio.ensure_future(_one(stub, file, config, slots, address)) for file in files]
        try:
            for task in waiting:
                yield await task
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


async def _one(
    stub: Any,  # noqa: ANN401 -- gRPC's stubs have no types
    path: Path,
    config: prober_pb2.RecognizeConfig,
    slots: asyncio.Semaphore,
    address: str,
) -> Heard:
    async with slots:
        try:
            try:
                data = await asyncio.to_thread(path.read_bytes)
            except OSError as error:
                raise BadInput(f"{path}: {error.strerror}; give a readable audio file") from None
            request = prober_pb2.RecognizeRequest(audio=common_pb2.Audio(container=data), config=config)
            with translated(f"prober at {address}"):
                return Heard(path=path, answer=await stub.Recognize(request), error=None)
        except Unavailable:
            raise
        except ServoxError as error:
            return Heard(path=path, answer=None, error=error)


def document_of(heard: Heard) -> dict[str, Any]:
    """One file for `--json`."""
    if heard.answer is None:
        return {"file": str(heard.path), "error": type(heard.error).__name__, "message": str(heard.error)}
    answer = heard.answer
    return {
        "file": str(heard.path),
        **_window(answer.overall),
        "windows": [_window(window) for window in answer.windows],
        "head": f"{answer.head.name}:{answer.head.version}",
        "head_digest": answer.head.digest,
        "bundle": answer.bundle.digest,
        "prior": dict(answer.prior.probabilities),
    }


def _window(window: prober_pb2.Window) -> dict[str, Any]:
    return {
        "start_ms": window.start_ms,
        "end_ms": window.end_ms,
        "label": window.label,
        "confidence": round(window.confidence, 4),
        "probabilities": {each.label: round(each.probability, 4) for each in window.probabilities},
    }


def table_of(results: Sequence[Heard]) -> Table:
    """Every window of every file, the most probable emotion first."""
    table = Table("file", "from", "to", "emotion", "probability", "next")
    for heard in results:
        name = escape(heard.path.name)
        if heard.answer is None:
            why = f"[red]{type(heard.error).__name__}[/red]"
            table.add_row(name, "", "", why, "", escape(str(heard.error)))  # "[n, 512]" is no markup
            continue
        for window in heard.answer.windows:
            ranked = sorted(window.probabilities, key=lambda each: -each.probability)
            others = ", ".join(f"{each.label} {each.probability:.2f}" for each in ranked[1:3])
            start, end = f"{window.start_ms / 1000:.2f} s", f"{window.end_ms / 1000:.2f} s"
            table.add_row(name, start, end, window.label, f"{window.confidence:.2f}", others)
    return table


def show(results: Sequence[Heard], *, as_json: bool) -> int:
    """Prints results; with `as_json` one machine-readable line last.

    Returns:
        The exit code: 1 if any file failed.
    """
    Console().print(table_of(results))
    if as_json:
        typer.echo(json.dumps({"files": [document_of(heard) for heard in results]}, ensure_ascii=False))
    return int(any(heard.error for heard in results))
