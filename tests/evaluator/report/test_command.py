import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from services.evaluator.report import figures, words
from services.evaluator.report.command import report_command
from services.evaluator.report.figures import Estimate
from services.evaluator.report.run import load
from services.evaluator.report.tables import Table, matrix, tables
from servox.errors import BadInput

app = typer.Typer()
app.command()(report_command)


def printed(table: Table, width: int) -> str:
    console = Console(width=width, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    with console.capture() as capture:
        console.print(table.rich())
    console.file.close()
    return capture.get()


def test_prints_the_figures_and_where_the_report_lies(sample_run: Path) -> None:
    result = CliRunner().invoke(app, [str(sample_run), "--json"])
    assert result.exit_code == 0, result.output
    assert f"report: {sample_run / 'report.html'}" in result.output
    row = figures.leaderboard(load(sample_run))[0]
    assert words.figure(row.in_domain.value) in result.output
    assert "synthetic" not in result.output.rsplit("\n", 2)[0]
    summary = json.loads(result.output.splitlines()[-1])
    assert summary["report"] == str(sample_run / "report.html")
    assert summary["cells"] == 52
    assert [entry["head"] for entry in summary["series"]] == ["mlp", "logistic", "frame-mlp"]
    assert summary["series"][0]["in_domain"] == row.in_domain.value
    assert (sample_run / "report.html").is_file()


def test_a_smoke_run_is_called_one(build_run: Callable[..., Path], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(build_run(tmp_path, synthetic=True))])
    assert "worth nothing as evidence" in result.output


def test_a_folder_without_a_run_fails_with_the_reason(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path)])
    assert isinstance(result.exception, BadInput)
    assert str(tmp_path / "run.json") in str(result.exception)


def test_all_prints_a_matrix_for_every_correction(sample_run: Path) -> None:
    run = load(sample_run)
    few, many = list(tables(run)), list(tables(run, every=True))
    assert len(many) - len(few) == 2 * (len(run.series[0].corrections) - 1)
    assert all(len(row) == len(table.columns) for table in many for row in table.rows)


def test_tables_fit_a_terminal_of_eighty_columns(sample_run: Path) -> None:
    for table in tables(load(sample_run)):
        text = printed(table, 80)
        assert "…" not in text
        for row in table.rows:
            assert any(all(value in line for value in row) for line in text.splitlines()), (table.title, row)


def test_matrix_marks_the_diagonal(sample_run: Path) -> None:
    run = load(sample_run)
    table = matrix(run.series[0], "standardise-all")
    scores = figures.matrix(run.series[0], "standardise-all")
    assert table.columns == ("macro-F1", *run.series[0].corpora)
    for i, row in enumerate(table.rows):
        assert row[i + 1].startswith("[")
        assert [value for j, value in enumerate(row[1:]) if j != i] == [
            f"{score:.3f}" for j, score in enumerate(scores[i]) if j != i
        ]


def test_names_are_not_markup(tmp_path: Path) -> None:
    table = Table(title="[red]x[/red]", columns=("[b]a", "b"), rows=[("[link=x]", "[/]")])
    assert all(text in printed(table, 80) for text in ("[red]x[/red]", "[b]a", "[link=x]", "[/]"))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (words.figure(0.41249), "0.412"),
        (words.figure(None), "–"),
        (words.figure(-0.02), "−0.020"),
        (words.signed(0.1), "+0.100"),
        (words.signed(-0.1), "−0.100"),
        (words.interval(Estimate(value=0.5, low=0.4, high=0.61)), "0.400–0.610"),
        (words.interval(Estimate(value=0.5)), ""),
        (words.signed_interval(Estimate(value=0.0, low=-0.1, high=0.1)), "−0.100 to +0.100"),
        (words.duration(7.6), "8 s"),
        (words.duration(492.4), "8 min 12 s"),
        (words.duration(3840), "1 h 4 min"),
        (words.moment("2026-03-01T14:05:09+00:00"), "2026-03-01 14:05 UTC"),
        (words.moment("2026-03-01T14:05:09Z"), "2026-03-01 14:05 UTC"),
        (words.moment("yesterday"), "yesterday"),
        (words.count(25636), "25\u202f636"),
        (words.correction_name("something-new"), "something new"),
        (words.correction_words("something-new"), ""),
    ],
)
def test_wording(written: str, expected: str) -> None:
    assert written == expected
