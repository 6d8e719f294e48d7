"""Files to emotions through a prober, and how they are shown: a table, CSV, or JSON.

Whole files go to the prober in one call; windows are streamed, so a file may last for hours. Some files are under way
at a time, their answers come in the order of the files, and a file that cannot be heard does not stop the others.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from servox.answers import Recognition, Row, Window, csv_of
from servox.client import Client, Prior, together
from servox.errors import BadSetting, ServoxError, Unavailable

IN_FLIGHT = 4
NAMED: dict[str, Prior] = {
    "train": "train",
    "uniform": "uniform",
    "estimated": "estimated",
    "estimated-em": "estimated-em",
    "tenant": "tenant",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is wanted of each file; see `Client.recognize`. `window_ms` 0 is the whole file."""

    head: str
    prior: Prior = "train"
    window_ms: int = 0
    hop_ms: int = 0
    every_window: bool = False
    tenant: str = ""
    uncalibrated: bool = False
    purpose: str = ""
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of one file: a recognition, or why there is none."""

    path: Path
    recognition: Recognition | None = None
    error: ServoxError | None = None


def prior_of(text: str) -> Prior:
    """One of `NAMED`, or `label=probability,…`.

    Raises:
        BadSetting: anything else.
    """
    if text in NAMED:
        return NAMED[text]
    try:
        pairs = [part.split("=") for part in text.split(",")]
        return {label.strip(): float(value) for label, value in pairs}
    except ValueError:
        raise BadSetting(
            f"prior = {text!r}: give {', '.join(NAMED)}, or label=probability,label=probability,…"
        ) from None


async def hear(client: Client, files: Sequence[Path], asked: Asked) -> AsyncGenerator[Answer, None]:
    """Answers in the order of the files.

    Raises:
        Unavailable: the prober stays away.
    """
    slots = asyncio.Semaphore(IN_FLIGHT)
    waiting = [asyncio.ensure_future(_one(client, path, asked, slots)) for path in files]
    try:
        for task in waiting:
            yield await task
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _one(client: Client, path: Path, asked: Asked, slots: asyncio.Semaphore) -> Answer:
    async with slots:
        try:
            return Answer(path=path, recognition=await _recognized(client, path, asked))
        except Unavailable:
            raise
        except ServoxError as error:
            return Answer(path=path, error=error)


async def _recognized(client: Client, path: Path, asked: Asked) -> Recognition:
    options: dict[str, Any] = {
        "head": asked.head,
        "prior": asked.prior,
        "window_ms": asked.window_ms,
        "hop_ms": asked.hop_ms,
        "every_window": asked.every_window,
        "tenant": asked.tenant,
        "uncalibrated": asked.uncalibrated,
        "purpose": asked.purpose,
        "timeout_s": asked.timeout_s,
    }
    if not asked.window_ms:
        return await client.recognize(path, **options)
    return together([heard async for heard in client.stream(path, **options)])


def table_of(answers: Sequence[Answer]) -> Table:
    """Every window of every file, the most probable emotion first."""
    table = Table("file", "from", "to", "emotion", "probability", "next")
    for answer in answers:
        name = escape(answer.path.name)
        if answer.recognition is None:
            why = f"[red]{type(answer.error).__name__}[/red]"
            table.add_row(name, "", "", why, "", escape(str(answer.error)))  # "[n, 512]" is no markup
            continue
        for window in answer.recognition.windows:
            start, end = f"{window.start_ms / 1000:.2f} s", f"{window.end_ms / 1000:.2f} s"
            table.add_row(name, start, end, *map(escape, _said(window)))
    return table


def _said(window: Window) -> tuple[str, str, str]:
    """Label, probability and what comes next; a window that abstains says why."""
    ranked = sorted(window.probabilities.items(), key=lambda pair: -pair[1])
    others = ", ".join(f"{name} {value:.2f}" for name, value in ranked[1:3])
    share = "" if window.confidence is None else f"{window.confidence:.2f}"
    why = window.abstention.value.replace("_", " ") if window.abstention else ""
    label = f"{window.label}?" if window.label and why else window.label or "–"
    return label, share, "; ".join(filter(None, (why, others)))


def document_of(answer: Answer) -> Row:
    """One file for `--json`."""
    if answer.recognition is None:
        return {"file": str(answer.path), "error": type(answer.error).__name__, "message": str(answer.error)}
    found = answer.recognition
    return {
        "file": str(answer.path),
        **found.overall.to_dict(),
        "windows": [window.to_dict() for window in found.windows],
        "head": found.head.tag,
        "head_digest": found.head.digest,
        "bundle": found.bundle.digest,
        "prior": dict(found.prior),
        "calibration": asdict(found.calibration),
        "stage": found.stage.value,
        "notice": found.notice,
    }


def json_text(answers: Sequence[Answer]) -> str:
    """All files as one line of JSON."""
    return json.dumps({"files": [document_of(answer) for answer in answers]}, ensure_ascii=False) + "\n"


def ndjson_text(answers: Sequence[Answer]) -> str:
    """One line a window, then one for the file as a whole; one for a file that has no answer."""
    lines: list[Row] = []
    for answer in answers:
        document = document_of(answer)
        windows = document.pop("windows", [])
        lines += [{"file": str(answer.path), **window} for window in windows]
        lines.append(document if answer.error else {"file": document.pop("file"), "overall": document})
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def csv_text(answers: Sequence[Answer]) -> str:
    """One row a window, the file before it; files that have no answer are left out."""
    rows = [
        {"file": str(answer.path), **row}
        for answer in answers
        if answer.recognition is not None
        for row in answer.recognition.to_rows()
    ]
    return csv_of(rows)


def table_text(answers: Sequence[Answer]) -> str:
    """The table, as wide as the terminal."""
    console = Console()
    with console.capture() as shown:
        console.print(table_of(answers))
    return shown.get()


FORMATS: dict[str, Callable[[Sequence[Answer]], str]] = {
    "table": table_text,
    "csv": csv_text,
    "json": json_text,
    "ndjson": ndjson_text,
}
