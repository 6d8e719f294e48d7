"""Follows each Dockerfile as far as that goes without a container: the same files, the same install, the same command.

For every service (or those named): copies what its build stage copies, installs its extra as it does into a new virtual
environment (with uv, for speed), and there loads the server and asks the entry point for its help. Says what may not
be importable and is, and how large the environment is; the last line is JSON. Exit code 1 when an image would not work.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What an image must do without: none but the prober trains, and only `servox export` reads checkpoints.
ABSENT = {
    "embedder": ("torch", "transformers", "bentoml", "sklearn", "sqlalchemy", "pip"),
    "prober": ("transformers", "openvino", "sqlalchemy", "pip"),
    "evaluator": ("torch", "transformers", "bentoml", "openvino", "onnxruntime", "pip"),
}
PROBE = """
import importlib, importlib.util, sys
importlib.import_module(sys.argv[1])
print(",".join(name for name in sys.argv[2:] if importlib.util.find_spec(name)))
"""


def extra_of(dockerfile: str) -> str:
    """The extra that a Dockerfile installs."""
    found: list[str] = re.findall(r'install --no-cache-dir -c constraints\.txt "\.\[([a-z,]+)\]"', dockerfile)
    if len(found) != 1:
        raise SystemExit(f"images: one install of an extra expected, {len(found)} found")
    return found[0]


def copied(dockerfile: str) -> list[str]:
    """Files and folders that the build stage copies from the repository, each to its own place."""
    stage = dockerfile.split("\nFROM ")[1]
    lines = re.findall(r"^COPY (?!--from)(.+)$", stage, flags=re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def stage(dockerfile: str, context: Path) -> None:
    """Lays out what the image's build sees."""
    for source in copied(dockerfile):
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, context / source, ignore=shutil.ignore_patterns("__pycache__", "Dockerfile"))
        else:
            shutil.copy(ROOT / source, context / source)


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command, run as in a container: without our environment."""
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME") or k.startswith(("UV_", "SSL_"))}
    kept.setdefault("UV_FIND_LINKS", os.environ.get("PIP_FIND_LINKS", ""))
    arguments = [str(part) for part in command]
    done = subprocess.run(arguments, cwd=cwd, env=kept, capture_output=True, text=True, check=False)  # noqa: S603 -- ours
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def size_mb(folder: Path) -> int:
    """Megabytes below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink()) // 10**6


def dry_run(service: str, scratch: Path) -> dict[str, object]:
    """Installs and loads one service.

    Raises:
        RuntimeError: the install, the import or the command failed, or a package is there that may not be.
    """
    began_s = time.monotonic()
    dockerfile = (ROOT / "services" / service / "Dockerfile").read_text()
    context, venv, elsewhere = scratch / "src", scratch / "venv", scratch / "cwd"
    context.mkdir()
    elsewhere.mkdir()
    stage(dockerfile, context)
    uv, python = Path(sys.executable).with_name("uv"), venv / "bin/python"
    run(uv, "venv", "--quiet", "--python", sys.executable, venv, cwd=context)
    install = ("-c", "constraints.txt", f".[{extra_of(dockerfile)}]")
    run(uv, "pip", "install", "--quiet", "--python", python, *install, cwd=context)
    there = run(python, "-c", PROBE, f"services.{service}.server", *ABSENT[service], cwd=elsewhere).strip()
    if there:
        raise RuntimeError(f"services/{service}/Dockerfile brings {there}, which that image must do without")
    run(venv / "bin/servox", "serve", service, "--help", cwd=elsewhere)
    return {"venv_mb": size_mb(venv), "took_s": round(time.monotonic() - began_s, 1)}


def main(services: list[str]) -> int:
    """Dry runs of all or the named services; the exit code."""
    report: dict[str, object] = {}
    failed = False
    for service in services or sorted(ABSENT):
        with tempfile.TemporaryDirectory(prefix="servox-image-") as folder:
            try:
                report[service] = dry_run(service, Path(folder))
                sys.stdout.write(f"images: {service}: {report[service]}\n")
            except RuntimeError as error:
                failed = True
                report[service] = {"error": str(error).splitlines()[-1]}
                sys.stderr.write(f"images: {service}: {error}\n")
    sys.stdout.write(json.dumps(report) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
