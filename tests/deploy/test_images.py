"""The Dockerfiles: linted, and in step with the package, the settings and the manifests."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from servox import __version__

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("embedder", "prober", "evaluator")
EXTRAS = {
    "embedder": {"embedder", "tracing"},
    "prober": {"prober", "train", "tracing", "vad"},
    "evaluator": {"evaluator", "tracing"},
}


def text(service: str) -> str:
    return (ROOT / "services" / service / "Dockerfile").read_text()


def instructions(service: str) -> list[tuple[str, str]]:
    """Instruction and argument of every line, continuations joined."""
    joined = re.sub(r"\\\n\s*", "", text(service))
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def last(service: str, name: str) -> str:
    return [argument for instruction, argument in instructions(service) if instruction == name][-1]


def variables(service: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in last(service, "ENV").split())


def test_hadolint_has_nothing_to_say() -> None:
    files = [str(ROOT / "services" / service / "Dockerfile") for service in SERVICES]
    command = [str(Path(sys.executable).with_name("hadolint")), "--config", str(ROOT / ".hadolint.yaml"), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("service", SERVICES)
def test_the_install_takes_one_service_s_extras_at_pinned_versions(service: str) -> None:
    (extras,) = re.findall(r'-c constraints\.txt "\.\[([a-z,]+)\]"', text(service))
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) == EXTRAS[service]
    assert EXTRAS[service] <= declared.keys()


@pytest.mark.parametrize("service", SERVICES)
def test_the_three_differ_only_in_what_they_must(service: str) -> None:
    def skeleton(name: str) -> list[str]:
        return [instruction for instruction, _ in instructions(name)]

    assert skeleton(service) == skeleton("embedder")


@pytest.mark.parametrize("service", SERVICES)
def test_it_runs_the_service_as_a_number_without_rights(service: str) -> None:
    assert last(service, "USER") == "10001:10001"
    assert last(service, "ENTRYPOINT") == f'["servox", "serve", "{service}"]'
    assert last(service, "STOPSIGNAL") == "SIGTERM"


@pytest.mark.parametrize("service", SERVICES)
def test_variables_are_fields_of_the_settings(service: str) -> None:
    settings = importlib.import_module(f"services.{service}.settings").Settings
    prefix = settings.model_config["env_prefix"]
    ours = {name: value for name, value in variables(service).items() if name.startswith("SERVOX_")}
    assert ours.pop("SERVOX_HOME") == "/var/lib/servox"
    hosts = {name for name in settings.model_fields if name.endswith("_host")}
    assert {name.removeprefix(prefix).lower() for name in ours} == hosts
    assert set(ours.values()) == {"0.0.0.0"}


@pytest.mark.parametrize("service", SERVICES)
def test_exposed_ports_are_those_of_the_manifest(service: str) -> None:
    parts = yaml.safe_load_all((ROOT / "deploy/k8s/base" / f"{service}.yaml").read_text())
    (deployment,) = [part for part in parts if part["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert sorted(map(int, last(service, "EXPOSE").split())) == sorted(p["containerPort"] for p in container["ports"])


@pytest.mark.parametrize("service", SERVICES)
def test_the_label_carries_the_version_of_the_package(service: str) -> None:
    arguments = dict(a.split("=", 1) for i, a in instructions(service) if i == "ARG" and "=" in a)
    assert arguments["VERSION"] == __version__
    assert re.fullmatch(r"python:3\.11-slim-[a-z]+", arguments["BASE"])


@pytest.mark.parametrize("service", SERVICES)
def test_what_is_copied_exists_and_is_not_ignored(service: str) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = [argument for instruction, argument in instructions(service) if instruction == "COPY"]
    sources = {source for copy in copies if "--from" not in copy for source in copy.split()[:-1]}
    assert sources == allowed
    assert all((ROOT / source).exists() for source in sources)
