import json
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner, Result

from services.embedder.embedding_command import embed
from services.embedder.embedding_files import write_embeddings
from servox.answers import Bundle, Embedding, Timings
from servox.errors import BadSetting, StorageFull

RATE = 16_000
APP = typer.Typer()
APP.command()(embed)


@pytest.fixture
def clips(tmp_path: Path, speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]) -> list[Path]:
    folder = tmp_path / "clips"
    folder.mkdir()
    paths = []
    for number, seconds in enumerate((0.5, 1.25, 0.8)):
        paths.append(folder / f"clip {number}.wav")
        paths[-1].write_bytes(encoded(speech(seconds, seed=number)))
    return paths


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(APP, [str(argument) for argument in arguments])


def _summary(result: Result) -> dict[str, object]:
    found: dict[str, object] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


def test_files_become_one_npz_in_their_order(
    tiny_bundle: Path,
    clips: list[Path],
    tmp_path: Path,
    speech: Callable[..., np.ndarray],
    reference: Callable[..., np.ndarray],
) -> None:
    out = tmp_path / "out.npz"
    result = _run(*clips, "--bundle", tiny_bundle, "--layers", "all", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    summary = _summary(result)
    assert (summary["embedded"], summary["failed"], summary["layers"]) == (3, {}, [0, 1])
    with np.load(out) as content:
        assert content["files"].tolist() == [str(path) for path in clips]
        assert content["layers"].tolist() == [0, 1]
        assert str(content["bundle"]) == summary["bundle"]
        for number, seconds in enumerate((0.5, 1.25, 0.8)):
            expected = reference(speech(seconds, seed=number))[:, 0]
            np.testing.assert_allclose(content["embeddings"][number], expected, atol=1e-4)
    assert list(tmp_path.glob(".*")) == [], "no half file is left behind"


def test_frames_lie_end_to_end(tiny_bundle: Path, clips: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "frames.npz"
    assert _run(*clips, "--bundle", tiny_bundle, "--pooling", "frames", "--out", out).exit_code == 0
    with np.load(out) as content:
        assert content["offsets"].tolist() == [0, 50, 175, 255]
        assert content["embeddings"].shape == (255, 4)


def test_parquet_holds_a_row_a_file(tiny_bundle: Path, clips: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    assert _run(*clips, "--bundle", tiny_bundle, "--pooling", "mean_std", "--out", out).exit_code == 0
    rows = pq.read_table(out).to_pylist()
    assert [row["file"] for row in rows] == [str(path) for path in clips]
    assert all(row["shape"] == [1, 2, 4] and len(row["values"]) == 8 for row in rows)
    assert [row["duration_ms"] for row in rows] == [500, 1250, 800]


def test_a_bad_file_fails_alone_and_shows_in_the_exit_code(
    tiny_bundle: Path, clips: list[Path], tmp_path: Path
) -> None:
    (text := tmp_path / "notes.wav").write_text("no audio at all")
    absent = tmp_path / "absent.wav"
    result = _run(clips[0], text, absent, clips[1], "--bundle", tiny_bundle, "--json")
    assert result.exit_code == 1
    summary = _summary(result)
    assert summary["embedded"] == 2
    failed = summary["failed"]
    assert isinstance(failed, dict)
    assert set(failed) == {str(text), str(absent)}
    assert "No such file" in failed[str(absent)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--pooling", "max", "--bundle", "b"], "--pooling 'max'"),
        (["--out", "x.csv", "--bundle", "b"], r"\.npz or \.parquet"),
        ([], "--bundle: none given"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_starts(
    clips: list[Path], arguments: list[str], says: str
) -> None:
    result = _run(clips[0], *arguments)
    assert isinstance(result.exception, BadSetting)
    with pytest.raises(BadSetting, match=says):
        raise result.exception


def test_layers_are_numbers_or_all(tiny_bundle: Path, clips: list[Path]) -> None:
    result = _run(clips[0], "--bundle", tiny_bundle, "--layers", "last")
    assert isinstance(result.exception, BadSetting)
    assert "'last'" in str(result.exception)


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files may not grow over a kilobyte, as on a full disk."""
    signals = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, signals)


def _embedding(size: int) -> Embedding:
    return Embedding(
        id="a.wav",
        array=np.random.default_rng(0).normal(size=(1, size)).astype(np.float32),
        layers=(1,),
        bundle=Bundle(digest="d", source="", family="", context="", blocks=1, precision="fp32"),
        timings=Timings(decode_us=0, queue_us=0, inference_us=0, total_us=0),
        duration_ms=10,
        truncated=False,
    )


@pytest.mark.parametrize("name", ["x.npz", "x.parquet"])
@pytest.mark.usefixtures("small_files")
def test_a_full_disk_leaves_nothing_behind_and_says_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageFull, match=name):
        write_embeddings(tmp_path / name, [_embedding(10_000)], frames=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["none", "file"])
def test_a_folder_that_is_not_there_is_a_setting_to_correct(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadSetting, match="cannot write"):
        write_embeddings(tmp_path / folder / "x.npz", [_embedding(4)], frames=False)
