"""Each container's own command with the manifest's settings, as a process: its probes, its metrics, its end.

What differs from the cluster: free ports, no waiting for endpoints, and volumes that are folders here.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.embedder.export import export
from servox.errors import Unauthenticated
from servox.key_file import create
from servox.keys import Key
from servox.rpc import channel, translated
from servox.v1 import prober_pb2, prober_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "deploy/k8s/base"
STATE, SECRETS = "/var/lib/servox", "/etc/servox"
READY_WITHIN_S = 120

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("containers")]  # one export for all


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that needs no weights."""
    folder = tmp_path_factory.mktemp("bundle") / "default"
    export("logmel", folder)
    return folder


def container(service: str) -> dict[str, Any]:
    """The container of a service's Deployment."""
    parts = yaml.safe_load_all((BASE / f"{service}.yaml").read_text())
    (deployment,) = [part for part in parts if part["kind"] == "Deployment"]
    found: dict[str, Any] = deployment["spec"]["template"]["spec"]["containers"][0]
    return found


def grace_s(service: str) -> int:
    parts = yaml.safe_load_all((BASE / f"{service}.yaml").read_text())
    (deployment,) = [part for part in parts if part["kind"] == "Deployment"]
    return int(deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"])


def settings(service: str) -> dict[str, str]:
    """The variables of a service's ConfigMap."""
    maps = yaml.safe_load((BASE / "kustomization.yaml").read_text())["configMapGenerator"]
    (found,) = [entry for entry in maps if entry["name"] == service]
    return dict(literal.split("=", 1) for literal in found["literals"])


def command(service: str) -> list[str]:
    """The image's entry point, with our own `servox`."""
    dockerfile = (ROOT / "services" / service / "Dockerfile").read_text()
    (entry,) = re.findall(r"^ENTRYPOINT (.+)$", dockerfile, flags=re.MULTILINE)
    program, *arguments = json.loads(entry)
    return [str(Path(sys.executable).with_name(program)), *arguments]


def image_variables(service: str) -> dict[str, str]:
    dockerfile = (ROOT / "services" / service / "Dockerfile").read_text()
    return dict(
        re.findall(r"((?:SERVOX|PYTHON|BENTOML)_?[A-Z_]*)=(\S+)", dockerfile.split("\nENV ")[1].split("\nWORKDIR")[0])
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A service at work."""

    process: "subprocess.Popen[bytes]"
    ports: dict[str, int]  # by the manifest's names
    log: Path
    cwd: Path

    def health(self, service: str) -> int:
        with grpc.insecure_channel(f"127.0.0.1:{self.ports['grpc']}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer: health_pb2.HealthCheckResponse = stub.Check(
                health_pb2.HealthCheckRequest(service=service), timeout=5
            )
            return int(answer.status)

    def wait_ready(self, service: str) -> None:
        """What the startup probe does."""
        give_up_s = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < give_up_s:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if self.health(service) == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
            time.sleep(0.2)
        pytest.fail(f"{service} is not ready after {READY_WITHIN_S} s: {self.log.read_text()}")

    def terminate(self, within_s: float) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)


def secrets_at(folder: Path) -> Path:
    """What README.md has an operator put into the cluster's Secrets, where the pods see it."""
    if not folder.exists():
        (folder / "keys").mkdir(parents=True)
        (folder / "peers").mkdir()
        for name, scopes in (("prober", ("embed",)), ("evaluator", ("embed", "train", "evaluate"))):
            text, _ = create(folder / "keys/keys.json", Key(id="", name=name, sha256="", scopes=scopes))
            (folder / "peers" / name).write_text(text)
    return folder


Start = Callable[[str], Running]


@pytest.fixture
def start(tmp_path: Path, bundle: Path, hold_port: Callable[[], int]) -> Iterator[Start]:
    """Starts a service as its container would be."""
    begun: list[Running] = []

    def begin(service: str) -> Running:
        volumes, cwd, scratch = tmp_path / "volumes", tmp_path / "cwd", tmp_path / "tmp"
        for folder in (volumes, cwd, scratch):
            folder.mkdir(exist_ok=True)
        for mount in container(service)["volumeMounts"]:
            if mount["mountPath"].startswith(STATE):
                (volumes / Path(mount["mountPath"]).relative_to(STATE)).mkdir(exist_ok=True)
        if service == "embedder" and not (volumes / "bundles/default").exists():
            (volumes / "bundles/default").symlink_to(bundle)
        ports = {port["name"]: hold_port() for port in container(service)["ports"]}
        prefix = f"SERVOX_{service.upper()}_"
        variables = image_variables(service) | settings(service)
        variables |= {f"{prefix}{name.upper()}_PORT": str(port) for name, port in ports.items()}
        variables |= {
            f"{prefix}DRAIN_WAIT_S": "0",
            "OMP_NUM_THREADS": "1",
            "HOME": str(scratch),
            "TMPDIR": str(scratch),
        }
        secrets = secrets_at(tmp_path / "secrets")
        variables = {
            name: value.replace(STATE, str(volumes)).replace(SECRETS, str(secrets)) for name, value in variables.items()
        }
        log = tmp_path / f"{service}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command(service), env={"PATH": os.environ["PATH"], **variables}, cwd=cwd, stdout=sink, stderr=sink
            )
        begun.append(Running(process=process, ports=ports, log=log, cwd=cwd))
        return begun[-1]

    yield begin
    for running in begun:
        running.process.kill()
        running.process.wait()


@pytest.mark.parametrize("service", ["embedder", "prober", "evaluator"])
def test_it_answers_its_probes_shows_its_metrics_and_ends_on_sigterm(start: Start, service: str) -> None:
    running = start(service)
    running.wait_ready(container(service)["startupProbe"]["grpc"]["service"])
    for kind in ("readinessProbe", "livenessProbe"):
        probe = container(service)[kind]["grpc"]
        assert running.health(probe.get("service", "")) == health_pb2.HealthCheckResponse.SERVING
    with urllib.request.urlopen(f"http://127.0.0.1:{running.ports['metrics']}/metrics", timeout=30) as answer:
        assert f"# HELP servox_{service}_" in answer.read().decode()
    assert running.terminate(grace_s(service)) == 0, running.log.read_text()
    # In a container the working folder is on the read-only image.
    assert list(running.cwd.iterdir()) == []


async def test_a_pod_asks_for_a_key_and_has_one_for_its_peers(start: Start, tmp_path: Path) -> None:
    embedder, prober = start("embedder"), start("prober")
    embedder.wait_ready("servox.v1.Embedder")
    prober.wait_ready("servox.v1.Prober")
    address = f"127.0.0.1:{prober.ports['grpc']}"
    text, _ = create(tmp_path / "secrets/keys/keys.json", Key(id="", name="reader", sha256="", scopes=("heads",)))
    request = prober_pb2.ListHeadsRequest()
    async with channel(address) as stranger, channel(address, key=text) as known:
        with pytest.raises(Unauthenticated), translated("prober"):
            await prober_pb2_grpc.ProberStub(stranger).ListHeads(request)  # type: ignore[no-untyped-call]
        for _ in range(50):  # within a second
            try:
                with translated("prober"):
                    await prober_pb2_grpc.ProberStub(known).ListHeads(request)  # type: ignore[no-untyped-call]
            except Unauthenticated:
                await asyncio.sleep(0.1)
            else:
                break
        else:
            pytest.fail("a key that was added does not count")


def test_a_pod_without_keys_says_what_to_set_and_ends(start: Start, tmp_path: Path) -> None:
    secrets_at(tmp_path / "secrets")
    (tmp_path / "secrets/keys/keys.json").unlink()
    running = start("prober")
    assert running.process.wait(READY_WITHIN_S) == 1
    assert "make it with `servox keys create`" in running.log.read_text()


def test_an_embedder_without_its_bundle_says_so_and_ends(start: Start, tmp_path: Path) -> None:
    (tmp_path / "volumes/bundles").mkdir(parents=True)
    (tmp_path / "volumes/bundles/default").mkdir()
    running = start("embedder")
    assert running.process.wait(READY_WITHIN_S) == 1
    assert str(tmp_path / "volumes/bundles/default") in running.log.read_text()
