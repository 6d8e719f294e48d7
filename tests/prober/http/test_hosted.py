"""The app under an ASGI server of one's own: plain uvicorn, in a process of its own."""
# ruff: noqa: ANN401 -- types of a conftest cannot be imported

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx


def test_plain_uvicorn_serves_the_app(opened: Any, tmp_path: Path) -> None:
    assert opened  # a registry with heads lies in the folder
    path = tmp_path / "u.sock"
    variables = {"SERVOX_PROBER_HEADS": str(tmp_path / "heads"), "SERVOX_PROBER_EMBEDDER": f"unix:{tmp_path}/none"}
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()  # so that the first call waits instead of failing
        command = ["-m", "uvicorn", "--factory", "services.prober.http.hosted:hosted", "--log-level", "warning"]
        process = subprocess.Popen(
            [sys.executable, *command, "--fd", str(listening.fileno())],
            env={**os.environ, **variables, "OMP_NUM_THREADS": "1"},
            pass_fds=[listening.fileno()],
            stderr=subprocess.PIPE,
        )
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://x", timeout=60) as client:
            assert client.get("/readyz").status_code == 200
            assert [head["head"]["name"] for head in client.get("/v1/heads").json()["heads"]] == ["other", "toy"]
            refused = client.post("/v1/recognize?head=nobody", headers={"content-type": "audio/wav"}, content=b"x")
            assert (refused.status_code, refused.headers["content-type"]) == (404, "application/problem+json")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
        assert b"Traceback" not in said, said.decode()
    finally:
        process.kill()
        process.wait()
