import base64
import hashlib
import json
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.evaluator.report import page, render
from services.evaluator.report.grid import embedded
from services.evaluator.report.run import Run
from servox.errors import BadInput, StorageFull

VOID = {"meta", "link", "line", "circle", "path", "br"}


class Outline(HTMLParser):
    """Elements with their attributes and the text right inside them; checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and data.strip():
            self.text.setdefault(self._open[-1], []).append(data)

    def attributes(self, name: str) -> list[str]:
        return [value for _, attrs in self.elements if (value := attrs.get(name)) is not None]

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.elements)


@contextmanager
def largest_file(limit_bytes: int) -> Iterator[None]:
    """Lets the kernel refuse to write past a size, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def edited(run: Path, **fields: object) -> Path:
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(manifest | fields))
    return run


def test_one_file_that_asks_for_nothing(sample_run: Path) -> None:
    path = render(sample_run)
    text = path.read_text()
    outline = Outline(text)
    assert path == sample_run / "report.html"
    links = outline.attributes("href") + outline.attributes("src")
    assert [link for link in links if not link.startswith(("#", "data:"))] == []
    assert re.findall(r"@import|url\(|https?://", text) == []
    ids = set(outline.attributes("id"))
    assert len(ids) == len(outline.attributes("id"))
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    assert set(outline.attributes("aria-labelledby")) <= ids
    assert sorted(entry.name for entry in sample_run.iterdir()) == ["report.html", "results", "run.json", "tables"]


def test_policy_allows_the_script_and_nothing_else(sample_run: Path) -> None:
    text = render(sample_run).read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_tables_have_captions_scopes_and_the_figures(sample_run: Path) -> None:
    outline = Outline(render(sample_run).read_text())
    assert outline.count("table") == outline.count("caption") == 10
    assert all(attrs.get("scope") for tag, attrs in outline.elements if tag == "th")
    figures = outline.text["span"]
    for path in (sample_run / "results" / "sound").glob("*/mlp/*.json"):
        cell = json.loads(path.read_text())
        own = cell["train"] == cell["test"]
        scores = cell["corrections"]["none"]
        if own:
            for name in ("macro_f1", "uar", "accuracy", "ece"):
                assert f"{scores[name]['mean']:.3f}" in figures
                assert f"{scores[name]['low']:.3f}–{scores[name]['high']:.3f}" in figures
        assert f"{scores['macro_f1']['mean']:.2f}" in outline.text["td"]
    for corpus, licence in (("EmoDB", "CC0-1.0"), ("URDU", "none stated")):
        assert corpus in outline.text["th"]
        assert licence in outline.text["td"]
    assert {"0.782", "0.194"} <= set(figures)
    assert outline.text["span"].count("published") == 11


def test_what_was_run_is_told(sample_run: Path) -> None:
    text = render(sample_run).read_text()
    for told in (
        "7c" * 32, "silence:32", "2026-03-01 14:05 UTC", "8 min 12 s", "torch 2.13.0",
        "thorsten", "run it under ser-evals",
        "skipped", "&lt;truncated&gt;", "2 warnings", "5 folds, no speaker on both sides",
    ):  # fmt: skip
        assert told in text


@pytest.mark.parametrize("synthetic", [False, True])
def test_a_smoke_run_says_so_loudly(build_run: Callable[..., Path], tmp_path: Path, synthetic: bool) -> None:
    text = render(build_run(tmp_path, synthetic=synthetic)).read_text()
    assert ("worth nothing as evidence" in text) is synthetic
    assert ('class="banner"' in text) is synthetic


def test_names_cannot_break_out(build_run: Callable[..., Path], tmp_path: Path) -> None:
    nasty = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
    run = build_run(tmp_path, heads=("mlp",))
    for path in (run / "results").glob("*/*/*/emodb→*.json"):
        cell = json.loads(path.read_text())
        cell["train_facts"]["name"] = nasty
        cell["split"] = cell["interval"] = nasty
        path.write_text(json.dumps(cell))
    manifest = json.loads((run / "run.json").read_text())
    manifest["corpora"][0]["name"] = manifest["corpora"][0]["licence"] = nasty
    edited(run, corpora=manifest["corpora"], refused={nasty: nasty}, warnings=[nasty], versions={nasty: nasty})
    text = render(run, title=nasty).read_text()
    outline = Outline(text)
    assert outline.count("script") == 2
    assert outline.count("img") == 0
    assert text.count("</script>") == 2
    (data,) = re.findall(r'id="figures">(.*?)</script>', text, re.DOTALL)
    assert json.loads(data)["names"]["emodb"] == nasty


@given(st.text())
def test_embedded_data_is_the_data_and_safe(name: str) -> None:
    run = Run(folder=Path(), manifest=MANIFEST, series=(), names={"x": name})
    text = embedded(run)
    assert not set("<>&") & set(text)
    assert json.loads(text)["names"] == {"x": name}


def test_a_run_without_cells_still_has_a_page(build_run: Callable[..., Path], tmp_path: Path) -> None:
    run = build_run(tmp_path)
    for path in (run / "results").glob("*/*/*/*.json"):
        path.unlink()
    text = render(run, title="Just begun").read_text()
    Outline(text)
    assert "No cell is finished yet." in text
    assert "<h1>Just begun</h1>" in text
    assert "Whisper large-v2" in text


def test_pairs_only_in_part(sample_run: Path) -> None:
    for path in (sample_run / "results" / "sound").glob("*/*/urdu→*.json"):
        path.unlink()
    edited(sample_run, refused={"urdu → nemo": "urdu → nemo: too few"})
    text = render(sample_run).read_text()
    assert '<td class="own void" data-train="urdu" data-test="urdu">–</td>' in text
    assert "<strong>URDU → nEMO</strong>: too few" in text


def test_the_same_run_gives_the_same_page(sample_run: Path) -> None:
    assert render(sample_run).read_bytes() == render(sample_run).read_bytes()


def test_a_full_disk_leaves_the_old_page(sample_run: Path) -> None:
    before = render(sample_run).read_bytes()
    with largest_file(len(before) // 2), pytest.raises(StorageFull, match=r"report\.html|csv"):
        render(sample_run, title="Another")
    assert (sample_run / "report.html").read_bytes() == before
    assert [path for path in sample_run.rglob(".*") if path.is_file()] == []


def test_no_run_no_page(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"run\.json"):
        render(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_plots_stay_in_their_axis() -> None:
    assert [page._plot_x(value) for value in (-0.2, 0.0, 0.5, 1.0, 1.3)] == ["4.0", "4.0", "68.0", "132.0", "132.0"]


MANIFEST: Any = {"refused": {}, "corpora": []}
