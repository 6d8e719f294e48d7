import dataclasses
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.embedder.bundle import GRAPH, MANIFEST, Bundle, Figure, load
from services.embedder.contexts import Context
from servox.errors import BadSetting, BundleError


def sample(folder: Path, **changes: object) -> Bundle:
    fields: dict[str, Any] = {
        "folder": folder,
        "family": "whisper",
        "source": "openai/whisper-base",
        "source_sha256": "ab" * 32,
        "context": Context.parse("silence:32"),
        "blocks": 3,
        "source_blocks": 6,
        "precision": "fp32",
        "rate_hz": 16_000,
        "frame_samples": 320,
        "dims": 512,
        "layers": (0, 1, 2, 3),
        "layer_names": ("conv", "block 1", "block 2", "block 3"),
        "default_layer": 3,
        "max_duration_ms": 30_000,
        "files": {GRAPH: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"},
        "parity": (Figure(name="hidden", value=1e-4, bound=1e-3), Figure(name="context", value=0.8, bound=None)),
        "parity_clips": "16 clips of EmoDB",
        "exporter": {"torch": "2.13.0"},
        "created": "2026-11-23T00:00:00+00:00",
    }
    return Bundle(**{**fields, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / GRAPH).write_bytes(b"test")
    sample(tmp_path).write_manifest()
    return tmp_path


def test_a_bundle_is_read_as_it_was_written(folder: Path) -> None:
    bundle = load(folder)
    assert bundle == sample(folder)
    assert bundle.graph == folder / GRAPH
    assert (bundle.frame_rate_hz, bundle.max_samples) == (50.0, 480_000)
    assert [bundle.frames(n) for n in (1, 320, 321)] == [1, 1, 2]


def test_a_window_is_part_of_a_newer_schema_and_changes_no_older_digest(tmp_path: Path) -> None:
    """Bundles of encoders that pad their last frame stay what they were, digest and all."""
    plain, windowed = sample(tmp_path), sample(tmp_path, window_samples=400)
    assert "window_samples" not in plain.manifest()
    assert (plain.manifest()["schema"], windowed.manifest()["schema"]) == (1, 2)
    assert plain.digest != windowed.digest
    (tmp_path / GRAPH).write_bytes(b"test")
    windowed.write_manifest()
    assert load(tmp_path) == windowed
    assert [windowed.frames(n) for n in (1, 399, 400, 719, 720, 16_000)] == [1, 1, 1, 1, 2, 49]
    assert (plain.min_duration_ms, windowed.min_duration_ms) == (1, 25)


def test_a_policy_that_older_versions_do_not_know_is_of_a_newer_schema(tmp_path: Path) -> None:
    cached = sample(tmp_path, context=Context(kind="cached", tokens=16))
    (tmp_path / GRAPH).write_bytes(b"test")
    cached.write_manifest()
    assert cached.manifest()["schema"] == 3
    assert load(tmp_path) == cached


@given(st.integers(1, 480_000), st.sampled_from([(400, 320), (560, 320), (1, 320), (1, 160)]))
def test_frames_are_what_stacked_convolutions_give(samples: int, sizes: tuple[int, int]) -> None:
    window, step = sizes
    bundle = sample(Path("nowhere"), window_samples=window, frame_samples=step)
    if sizes == (400, 320):
        count = samples
        for kernel, stride in ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)):
            count = (count - kernel) // stride + 1
    elif sizes == (560, 320):
        count = ((samples - 400) // 160 + 1) // 2
    else:
        count = -(-samples // step)
    assert bundle.frames(samples) == max(1, count)


def test_layers_are_found_or_refused(folder: Path) -> None:
    bundle = load(folder)
    assert [bundle.layer_index(layer) for layer in (0, 3)] == [0, 3]
    with pytest.raises(BadSetting, match=r"layer 4 is not in this bundle.*0 to 3"):
        bundle.layer_index(4)


@pytest.mark.parametrize(
    "changes",
    [
        {"context": Context.parse("padded")},
        {"precision": "bf16"},
        {"blocks": 2},
        {"source_sha256": "cd" * 32},
        {"files": {GRAPH: "0" * 64}},
        {"layers": (0, 1)},
        {"default_layer": 2},
    ],
)
def test_whatever_changes_the_embedding_changes_the_digest(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert sample(tmp_path, **changes).digest != sample(tmp_path).digest


@pytest.mark.parametrize("changes", [{"source": "a copy"}, {"created": "later"}, {"parity": ()}, {"exporter": {}}])
def test_where_and_when_it_was_made_does_not(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert sample(tmp_path, **changes).digest == sample(tmp_path / "elsewhere").digest


def edit(folder: Path, **changes: object) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    content.update(changes)
    (folder / MANIFEST).write_text(json.dumps(content))


def drop(folder: Path, key: str) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    del content[key]
    (folder / MANIFEST).write_text(json.dumps(content))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "the folder is missing": (shutil.rmtree, "there is no bundle at .*`servox export"),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "no bundle.json"),
    "no graph": (lambda f: (f / GRAPH).unlink(), f"lacks its file {GRAPH}"),
    "a changed graph": (lambda f: (f / GRAPH).write_bytes(b"tess"), "damaged: its sha256"),
    "a cut graph": (lambda f: (f / GRAPH).write_bytes(b"te"), "damaged: its sha256"),
    "a cut manifest": (lambda f: (f / MANIFEST).write_text((f / MANIFEST).read_text()[:200]), "not readable JSON"),
    "a binary manifest": (lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe\x00"), "not readable JSON"),
    "a list": (lambda f: (f / MANIFEST).write_text("[]"), "no schema number"),
    "a newer schema": (lambda f: edit(f, schema=4), "has schema 4 and this Servox reads schemas up to 3"),
    "no schema": (lambda f: drop(f, "schema"), "no schema number"),
    "a missing field": (lambda f: drop(f, "dims"), "corrupt at 'dims'"),
    "a wrong number": (lambda f: edit(f, rate_hz="fast"), "corrupt"),
    "a wrong policy": (lambda f: edit(f, context="loud"), "corrupt"),
    "a wrong precision": (lambda f: edit(f, precision="fp8"), "corrupt at precision 'fp8'"),
    "files that are a list": (lambda f: edit(f, files=[GRAPH]), "corrupt"),
    "layers without names": (lambda f: edit(f, layer_names=[]), "corrupt at layers"),
    "a file outside": (lambda f: edit(f, files={GRAPH: "9f" * 32, "../x": "00"}), "outside it|damaged"),
    "no graph named": (lambda f: edit(f, files={}), f"names no {GRAPH}"),
    "another policy by hand": (lambda f: edit(f, context="padded"), "changed after export"),
    "another digest by hand": (lambda f: edit(f, digest="0" * 64), "changed after export"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_bundle_says_what_is_wrong_and_what_to_do(folder: Path, name: str) -> None:
    damage, words = DAMAGE[name]
    damage(folder)
    with pytest.raises(BundleError, match=words) as caught:
        load(folder)
    assert "export" in str(caught.value) or "give" in str(caught.value)


@given(cut=st.integers(0, 1500), byte=st.integers(0, 255))
def test_a_manifest_with_any_byte_changed_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, cut: int, byte: int
) -> None:
    folder = tmp_path_factory.mktemp("bundle", numbered=True)
    (folder / GRAPH).write_bytes(b"test")
    sample(folder).write_manifest()
    content = bytearray((folder / MANIFEST).read_bytes())
    content[cut % len(content)] = byte
    (folder / MANIFEST).write_bytes(content)
    with suppress(BundleError):
        load(folder)


@pytest.mark.parametrize(
    ("value", "bound", "at_most", "passed"),
    [
        (1e-4, 1e-3, True, True),
        (1e-2, 1e-3, True, False),
        (0.95, 0.9, False, True),
        (0.85, 0.9, False, False),
        (float("nan"), 1e-3, True, False),
        (float("nan"), 0.9, False, False),
        (0.1, None, False, True),
    ],
)
def test_a_figure_keeps_its_bound_or_does_not(value: float, bound: float | None, at_most: bool, passed: bool) -> None:
    assert Figure(name="x", value=value, bound=bound, at_most=at_most).passed is passed


def test_bundles_are_frozen(folder: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load(folder).blocks = 1  # type: ignore[misc]
