"""The command line: what is shown, what is imported, how errors read, how a process of services starts and ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services import cli
from servox import __version__
from servox.errors import BadInput

SERVOX = Path(sys.executable).parent / "servox"
pytestmark = pytest.mark.xdist_group("benchmark")


def _servox(*arguments: object, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SERVOX_HOME": str(home), "COLUMNS": "200"}
    command = [str(SERVOX), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_version_is_the_packages(tmp_path: Path) -> None:
    assert _servox("--version", home=tmp_path).stdout.strip() == __version__


def test_help_names_every_command_and_imports_none_of_what_they_need(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['servox', '--help']\n"
        "from services.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'openvino', 'onnxruntime', 'bentoml', 'sklearn', 'pyarrow', 'pydantic'}\n"
        "sys.exit(f'imported {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("export", "embed", "recognize", "heads", "demo", "corpora", "evaluate", "serve"):
        assert command in done.stdout


def test_a_command_without_its_packages_names_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['openvino'] = None; sys.modules['torch'] = None\n"
        "sys.argv = ['servox', 'export', 'logmel', '--out', 'x']\n"
        "from services.cli import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "pip install 'servox[embedder,export]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bug_of_ours_is_not_taken_for_a_missing_package() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"services\.nothing"):
        cli._load("services.nothing:command", "dev")


def test_a_missing_package_is_said_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bentoml", None)
    monkeypatch.delitem(sys.modules, "services.prober.registry", raising=False)
    monkeypatch.delitem(sys.modules, "services.prober.heads_command", raising=False)
    monkeypatch.delitem(sys.modules, "services.prober.exchange", raising=False)
    monkeypatch.delitem(sys.modules, "services.prober.archives", raising=False)
    with pytest.raises(BadInput, match=r"'servox\[prober\]'"):
        cli._load("services.prober.heads_command:heads_app", "prober")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "embedder"], "bundle: missing; give --bundle, SERVOX_EMBEDDER_BUNDLE"),
        (["serve", "embedder", "--bundle", "nowhere"], "servox export"),
        (["serve", "evaluator", "--grpc-port", "123456"], "grpc_port = '123456' (from flag)"),
        (["serve", "prober", "--tls-certificate", "c.pem"], "set both or neither"),
        (["serve", "evaluator", "--config", "nothing.toml"], "nothing.toml"),
        (["serve", "evaluator", "--database", "no url"], "no url"),
        (["evaluate", "report", "nowhere"], "nowhere"),
        (["evaluate", "run", "--data", "."], "--bundle: none given"),
        (["export", "nowhere/at/all", "--out", "b"], "nowhere/at/all"),
        (["export", "logmel", "--out", "b", "--context", "endless"], "endless"),
        (["recognize", "a.wav", "--head", "nobody"], "nobody"),
        (["heads", "show", "nobody"], "nobody"),
        (["heads", "import", "nowhere"], "nowhere"),
        (["demo", "--protocol", "sounder"], "sound, ser-evals"),
        (["corpora", "check", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input_gets_one_line_that_names_it(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = _servox(*arguments, home=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr


def test_serve_all_answers_health_on_three_sockets_and_drains_on_sigterm(tmp_path: Path) -> None:
    bundle = tmp_path / "logmel"
    assert _servox("export", "logmel", "--out", bundle, home=tmp_path).returncode == 0
    sockets = tmp_path / "s"
    command = [str(SERVOX), "serve", "all", "--bundle", str(bundle), "--sockets", str(sockets), "--http-port", "0"]
    environment = {**os.environ, "SERVOX_HOME": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        for name, service in (("embedder", "Embedder"), ("prober", "Prober"), ("evaluator", "Evaluator")):
            _wait_serving(f"unix:{sockets / name}.sock", f"servox.v1.{service}", process)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert '"level": "error"' not in said


def _wait_serving(address: str, service: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        with grpc.insecure_channel(address) as opened:
            stub = health_pb2_grpc.HealthStub(opened)
            try:
                answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            except grpc.RpcError:
                time.sleep(0.2)
                continue
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
            time.sleep(0.2)
    pytest.fail(f"{service} never served on {address}")
