"""Environments for the peers, whose packages no extra of the product has.

    python -m bench.peers.environment FOLDER

makes FOLDER/http (LitServe, mosec, BentoML) and FOLDER/triton (PyTriton, which pins an older numpy), each with what
the product's own decoder and runtime need. The product's source is found by PYTHONPATH, so nothing of it is installed.
An environment that exists is left as it is.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

NEEDED = ("av", "grpcio", "numpy", "openvino", "soundfile", "soxr")
PACKAGES = {
    "http": ("litserve==0.2.19", "mosec==0.9.8", "bentoml==1.4.39"),
    "triton": ("nvidia-pytriton==0.7.0",),
}
TIMEOUT_S = 900.0


def python_of(folder: Path, name: str) -> Path:
    """The interpreter of one environment."""
    return folder / name / "bin" / "python"


def make(folder: Path, name: str) -> str:
    """Makes one environment where it is missing; why it cannot be made, or nothing."""
    python = python_of(folder, name)
    if python.exists():
        return ""
    base = _base(name)
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv:
        commands = [
            [uv, "venv", "--quiet", "--python", base, str(folder / name)],
            [uv, "pip", "install", "--quiet", "--python", str(python), *PACKAGES[name], *NEEDED],
        ]
    else:
        commands = [
            [base, "-m", "venv", str(folder / name)],
            [str(python), "-m", "pip", "install", "--quiet", *PACKAGES[name], *NEEDED],
        ]
    for command in commands:
        if why := _failure(command):
            shutil.rmtree(folder / name, ignore_errors=True)
            return why
    return ""


def _base(name: str) -> str:
    """Triton's stub loads the system's libpython, so its packages must be of the system's Python; else this one."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    system = Path("/usr/bin") / version
    return str(system) if name == "triton" and system.exists() else sys.executable


def _failure(command: Sequence[str]) -> str:
    environment = {"UV_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", ""), **os.environ}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{Path(command[0]).name}: {error}"
    return "" if done.returncode == 0 else (done.stderr.strip() or done.stdout.strip())[-300:]


def main() -> None:
    """Makes both."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        why = make(folder, name)
        print(f"{name}: {why or python_of(folder, name)}")


if __name__ == "__main__":
    main()
