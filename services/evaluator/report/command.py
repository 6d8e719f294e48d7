"""`servox evaluate report DIR`: writes the report of a run again from its results, and prints its tables.

Errors of the tree pass through: `BadInput` where the folder holds no run, `StorageFull` where the disk refuses. The
composition root turns them into a message and an exit code, as for every command; the docstring below is the help.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from services.evaluator.report import figures
from services.evaluator.report.page import render
from services.evaluator.report.run import Run, load
from services.evaluator.report.tables import tables


def report_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run: holds run.json and results/.")],
    json_line: Annotated[bool, typer.Option("--json", help="Print one machine-readable line last.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Print the matrix of every correction.")] = False,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
) -> None:
    """Write the report of a run again from its results, and print its tables."""
    path = render(folder, title=title)
    run = load(folder)
    console = Console()
    if run.manifest["synthetic"]:
        console.print("Smoke run on synthetic speech: these figures are worth nothing as evidence.", style="bold red")
    for table in tables(run, every=every):
        console.print(table.rich())
    console.print(f"report: {path}", soft_wrap=True, markup=False, highlight=False)
    if json_line:
        typer.echo(json.dumps(summary(run, path)))


def summary(run: Run, path: Path) -> dict[str, object]:
    """The leaderboard and where the report lies, as data; published rows are left out."""
    return {
        "report": str(path),
        "synthetic": run.manifest["synthetic"],
        "cells": sum(len(series.cells) for series in run.series),
        "series": [
            {
                "key": row.series.key,
                "backbone": row.name,
                "protocol": row.series.protocol,
                "head": row.series.head,
                "in_domain": row.in_domain.value,
                "corpora": row.corpora,
                "out_of_domain": {name: estimate.value for name, estimate in row.out_of_domain.items()},
                "pairs": row.pairs,
            }
            for row in figures.leaderboard(run)
            if row.series
        ],
    }
