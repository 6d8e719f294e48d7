"""`scripts/contracts.sh` in repositories of its own: what it refuses, and against what it compares."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMON = Path("protos/servox/v1/common.proto")
pytestmark = pytest.mark.skipif(
    not (ROOT / "node_modules/.bin/buf").exists() or shutil.which("git") is None,
    reason="buf or git is missing: run `npm install --no-save --no-package-lock --ignore-scripts`",
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit: these protos and this script."""
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/contracts.sh", tmp_path / "scripts")
    (tmp_path / "node_modules").symlink_to(ROOT / "node_modules")
    git(tmp_path, "init", "--initial-branch=main")
    commit(tmp_path)
    return tmp_path


def git(repository: Path, *arguments: str) -> None:
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *author, *arguments], cwd=repository, check=True, capture_output=True)


def commit(repository: Path) -> None:
    git(repository, "add", "protos", "scripts")
    git(repository, "commit", "--allow-empty", "--message=next")


def contracts(repository: Path, *steps: str, base: str | None = None) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "CONTRACTS_"))}
    if base is not None:
        environment["CONTRACTS_BASE"] = base
    command = [str(repository / "scripts/contracts.sh"), *steps]
    return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_the_contracts_keep_their_style(repository: Path) -> None:
    result = contracts(repository, "lint")
    assert result.returncode == 0, result.stdout


def test_a_field_in_camel_case_is_refused(repository: Path) -> None:
    replace(repository / COMMON, "int32 rate_hz", "int32 rateHz")
    result = contracts(repository, "lint")
    assert result.returncode != 0
    assert "rateHz" in result.stdout


def test_without_an_earlier_commit_it_says_that_nothing_was_compared(repository: Path) -> None:
    result = contracts(repository, "breaking")
    assert result.returncode == 0
    assert "NOT checked" in result.stderr


def test_a_new_field_breaks_nothing(repository: Path) -> None:
    replace(repository / COMMON, "int32 rate_hz = 2;", "int32 rate_hz = 2;\n  int32 bits = 9;")
    commit(repository)
    result = contracts(repository, "breaking")
    assert result.returncode == 0, result.stdout
    assert "nothing breaks" in result.stdout


def test_another_type_of_a_field_breaks(repository: Path) -> None:
    replace(repository / COMMON, "int32 rate_hz", "string rate_hz")
    commit(repository)
    result = contracts(repository, "breaking")
    assert result.returncode != 0
    assert "rate_hz" in result.stdout


def test_the_last_release_counts_and_not_the_parent(repository: Path) -> None:
    git(repository, "tag", "v0.1.0")
    replace(repository / COMMON, "int32 rate_hz", "string rate_hz")
    commit(repository)
    commit(repository)
    result = contracts(repository, "breaking")
    assert result.returncode != 0
    assert "rate_hz" in result.stdout


def test_a_parent_without_contracts_cannot_be_broken(repository: Path) -> None:
    git(repository, "rm", "-r", "--cached", "protos")
    git(repository, "commit", "--message=no contracts")
    commit(repository)
    result = contracts(repository, "breaking")
    assert result.returncode == 0, result.stderr
    assert "has no protos/" in result.stdout


def test_a_base_that_does_not_exist_is_an_error(repository: Path) -> None:
    result = contracts(repository, "breaking", base="no-such-commit")
    assert result.returncode == 2
    assert "no-such-commit" in result.stderr


def test_an_unknown_step_is_an_error(repository: Path) -> None:
    assert contracts(repository, "compile").returncode == 2
