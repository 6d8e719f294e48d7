"""The main job from end to end, as its user runs it: real processes, generated speech, the log-mel backbone."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from services import synthesis

SERVOX = Path(sys.executable).parent / "servox"
# One worker runs these one after another: each starts the three services and trains heads.
pytestmark = pytest.mark.xdist_group("benchmark")


def _servox(*arguments: object, home: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SERVOX), *map(str, arguments)],
        env=_environment(home),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def _environment(home: Path) -> dict[str, str]:
    return {**os.environ, "SERVOX_HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    synthesis.write(root)
    return root


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "logmel"
    done = _servox("export", "logmel", "--out", folder, "--clips", data, home=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


def _run(data: Path, bundle: Path, home: Path, *more: object) -> subprocess.CompletedProcess[str]:
    return _servox(
        "evaluate",
        "run",
        "--data",
        data,
        "--bundle",
        bundle,
        "--seeds",
        1,
        "--out",
        home / "out",
        "--json",
        *more,
        home=home,
    )


def _cells(home: Path) -> dict[str, bytes]:
    root = home / "out" / "results"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.json")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path, bundle: Path) -> Path:
    """The home of a run that was never disturbed."""
    home = tmp_path_factory.mktemp("finished")
    done = _run(data, bundle, home)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert Path(said["report"]).is_file()
    return home


def test_every_corpus_and_pair_is_scored_with_both_heads(finished: Path) -> None:
    cells = _cells(finished)
    corpora = ("emodb", "nemo", "ravdess")
    digest = next(iter(cells)).split("/")[1]
    wanted = {f"sound/{digest}/{head}/{a}→{b}.json" for head in ("mlp", "logistic") for a in corpora for b in corpora}
    assert set(cells) == wanted
    pair = json.loads(cells[f"sound/{digest}/logistic/emodb→ravdess.json"])
    assert set(pair["classes"]) == {"happiness", "sadness", "fear", "anger", "neutral"}
    assert pair["dropped"] == {"surprise": 18}
    assert set(pair["corrections"]) >= {"none", "oracle-prior", "em-prior", "standardise-16", "standardise-all"}
    assert 0 <= pair["corrections"]["none"]["macro_f1"]["mean"] <= 1


def test_the_generated_emotions_are_told_apart_better_than_by_any_floor(finished: Path) -> None:
    for path, text in _cells(finished).items():
        cell = json.loads(text)
        if cell["train"] == cell["test"]:
            assert cell["corrections"]["none"]["macro_f1"]["mean"] > max(cell["floor"].values()) + 0.2, path


def test_a_run_on_generated_speech_says_so(finished: Path) -> None:
    assert json.loads((finished / "out" / "run.json").read_text())["synthetic"] is True
    assert "synthetic" in (finished / "out" / "report.html").read_text().lower()


def test_a_second_run_computes_nothing_again(finished: Path, data: Path, bundle: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "out" / "results").rglob("*.json")}
    parts = {path: path.stat().st_mtime_ns for path in (finished / "store").rglob("*.parquet")}
    done = _run(data, bundle, finished)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in (finished / "out" / "results").rglob("*.json")} == before
    assert {path: path.stat().st_mtime_ns for path in (finished / "store").rglob("*.parquet")} == parts


# The command, killed with all its processes when it opens or renames a file and so many that fit a pattern are there.
KILLED = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path

    home, pattern, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

    def look(event, arguments):
        if event in ("open", "os.rename") and str(arguments[0]).startswith(str(home)):
            try:
                found = len(list(home.glob(pattern)))
            except OSError:
                return
            if found >= count:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(look)
    sys.argv[:4] = ["servox"]
    from services.cli import main

    main()
""")


def test_killed_at_any_point_it_goes_on_and_ends_with_the_same_results(
    finished: Path, data: Path, bundle: Path, tmp_path: Path
) -> None:
    arguments = ["evaluate", "run", "--data", data, "--bundle", bundle, "--seeds", 1, "--out", tmp_path / "out"]
    signs = [
        ("store/**/mean/part-*.parquet", 2),
        ("heads/models/*/*/weights.safetensors", 3),
        ("out/results/**/*.json", 4),
    ]
    for pattern, count in signs:
        ended = subprocess.run(
            [sys.executable, "-c", KILLED, *map(str, (tmp_path, pattern, count, *arguments))],
            env=_environment(tmp_path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            timeout=240,
            check=False,
        )
        assert ended.returncode == -signal.SIGKILL, "the run ended before it could be killed"
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("part-*.parquet")}
    done = _run(data, bundle, tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    assert _cells(tmp_path) == _cells(finished)


def test_one_seed_gives_one_result_in_any_home(finished: Path, data: Path, bundle: Path, tmp_path: Path) -> None:
    done = _run(data, bundle, tmp_path)
    assert done.returncode == 0, done.stderr
    assert _cells(tmp_path) == _cells(finished)


def test_three_processes_over_tcp_give_what_one_process_gives(
    finished: Path, data: Path, bundle: Path, tmp_path: Path, hold_port: Callable[[], int]
) -> None:
    port_of = {name: hold_port() for name in ("embedder", "prober", "evaluator")}
    peers = [f"--{name}=127.0.0.1:{port_of[name]}" for name in ("embedder", "prober")]
    flags = {"embedder": [f"--bundle={bundle}"], "prober": [peers[0], "--http-port=0"], "evaluator": peers}
    running = [
        subprocess.Popen(
            [str(SERVOX), "serve", name, f"--grpc-port={port_of[name]}", "--metrics-port=0", *flags[name]],
            env=_environment(tmp_path),
            stderr=subprocess.DEVNULL,
        )
        for name in port_of
    ]
    try:
        address = f"127.0.0.1:{port_of['evaluator']}"
        out = tmp_path / "out"
        done = _servox(
            "evaluate", "run", "--data", data, "--evaluator", address, "--seeds", 1, "--out", out, home=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert _cells(tmp_path) == _cells(finished)
    finally:
        for process in running:
            process.terminate()
        assert [process.wait(timeout=60) for process in running] == [0, 0, 0]


def test_the_papers_recipe_runs_on_the_papers_corpora(data: Path, bundle: Path, tmp_path: Path) -> None:
    done = _run(data, bundle, tmp_path, "--protocol", "ser-evals")
    assert done.returncode == 0, done.stderr
    (path,) = _cells(tmp_path)
    assert path.endswith("frame-mlp/emodb→emodb.json")
    cell = json.loads(_cells(tmp_path)[path])
    assert len(cell["classes"]) == 8
    assert cell["seeds"] == [34]
    manifest = json.loads((tmp_path / "out" / "run.json").read_text())
    assert "not one of the paper's corpora" in manifest["refused"]["nemo"]


def test_a_bad_clip_is_reported_and_left_out(data: Path, bundle: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    synthesis.write(root, seed=3)
    clips = sorted((root / "corpora" / "EmoDB" / "wav").glob("*.wav"))
    clips[0].write_bytes(clips[0].read_bytes()[:400])
    clips[1].write_bytes(b"this is no audio at all, though its name says so" * 50)
    done = _run(root, bundle, tmp_path, "--corpora", "emodb")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "run.json").read_text())
    said = " ".join(manifest["warnings"])
    assert clips[0].name in said
    assert clips[1].name in said
    assert manifest["corpora"][0]["clips"] == len(clips) - 2
    assert manifest["corpora"][0]["skipped"] == 2


@pytest.mark.parametrize(("file_bytes", "what"), [(20_000, "store"), (60_000, "head")])
def test_a_full_disk_ends_the_run_with_what_could_not_be_written(
    data: Path, bundle: Path, tmp_path: Path, file_bytes: int, what: str
) -> None:
    command = ["evaluate", "run", "--data", data, "--bundle", bundle, "--seeds", 1, "--out", tmp_path / "out"]
    process = subprocess.Popen(
        [str(SERVOX), *map(str, command)],
        env={**_environment(tmp_path), "SERVOX_EMBEDDER_DECODE_WORKERS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # The limit stands for a full disk; memory that the decode process shares counts as a file for it, so it comes
        # once that process is there, seconds before anything is written.
        _wait_for_child(process, "decode_worker")
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        _, stderr = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 1
    said = " ".join(stderr.split("error:")[-1].split())
    assert said.startswith("cannot write")
    assert what in said
    assert "free space or choose another place" in said
    assert "Traceback" not in stderr


def _wait_for_child(process: subprocess.Popen[str], name: str) -> None:
    while process.poll() is None:
        for listed in Path(f"/proc/{process.pid}/task").glob("*/children"):
            with suppress(OSError):  # threads and children come and go
                for child in listed.read_text().split():
                    if name in Path(f"/proc/{child}/cmdline").read_text():
                        return
        time.sleep(0.05)
    pytest.fail(f"the run ended before it had a {name}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--corpora", "emodbb"], "no such key"),
        (["--corpora", "urdu"], "not below"),
        (["--protocol", "sounder"], "sound, ser-evals"),
        (["--seeds", "-3"], "seeds = -3"),
    ],
)
def test_bad_arguments_are_named(data: Path, bundle: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    done = _run(data, bundle, tmp_path, *arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_data_folder_says_what_to_do(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "corpora").mkdir()
    done = _run(tmp_path, bundle, tmp_path)
    assert done.returncode == 1
    assert "servox corpora" in done.stderr


def test_a_bundle_that_is_not_there_says_how_to_make_one(data: Path, tmp_path: Path) -> None:
    done = _run(data, tmp_path / "nothing", tmp_path)
    assert done.returncode == 1
    assert "servox export" in done.stderr
