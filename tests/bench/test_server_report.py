"""The tables and plots of made-up cells."""

import math
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from bench.load import Figures
from bench.server_report import Cell, print_cells, write_plots


def cell(server: str, kind: str, load: float, *, goodput: float, p99_ms: float = 100.0) -> Cell:
    return Cell(
        server=server,
        kind=kind,
        load=load,
        figures=Figures(
            goodput=goodput,
            answers=goodput,
            sent=load,
            p50_ms=50.0,
            p95_ms=90.0,
            p99_ms=p99_ms,
            refused=0,
            refusal_p99_ms=math.nan,
            late=0,
            failed=0,
            lag_p99_ms=1.0,
            generator_cores=0.2,
        ),
        server_cores=1.5,
        recovery_s=0.0,
    )


CELLS = [
    cell("servox", "closed", 4, goodput=60),
    cell("mosec", "closed", 4, goodput=50),
    cell("servox", "closed", 16, goodput=80),
    cell("mosec", "closed", 16, goodput=64),
    cell("servox", "own 300%", 240, goodput=76),
    cell("mosec", "own 300%", 192, goodput=32, p99_ms=math.inf),
    cell("mosec", "ours 300%", 240, goodput=30, p99_ms=math.inf),
]


def test_the_summary_relates_capacity_to_no_server_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    print_cells(
        CELLS,
        in_process={"files": 100.0, "decoded": 120.0},
        peaks={"servox": 1 << 30, "mosec": 1 << 29},
        cores=2,
        deadline_s=1.0,
    )
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()[-3:-1]}
    # capacity, of what runs without a server, of what the generator leaves, peak, at 300 %, kept, MiB, ours over its
    assert rows["servox"] == ["servox", "80.0", "0.80", "0.89", "80.0", "76.0", "0.95", "1024", "1.00"]
    assert rows["mosec"] == ["mosec", "64.0", "0.64", "0.71", "64.0", "32.0", "0.50", "512", "1.25"]


def test_an_answer_that_never_came_is_late_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_cells(
        CELLS, in_process={"files": 1.0, "decoded": 1.0}, peaks={"servox": 1, "mosec": 1}, cores=2, deadline_s=1
    )
    overloaded = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:2] == ["mosec", "192.0"])
    assert overloaded.split()[5] == "late"


def test_the_plot_is_written(tmp_path: Path) -> None:
    write_plots(CELLS, tmp_path, deadline_s=1.0)
    pixels = plt.imread(tmp_path / "servers.png")
    assert pixels.shape[1] > 2 * pixels.shape[0], "three panels side by side"
    assert pixels[..., :3].std() > 0.05, "with something drawn"
