"""schemathesis against a real server: what the API's description promises holds for whatever it comes up with."""
# ruff: noqa: ANN401 -- types of a conftest cannot be imported

import asyncio
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EXAMPLES = os.environ.get("SERVOX_SCHEMA_EXAMPLES", "4")
# 504 is what a deadline of 1 ms deserves; 422 is for rules between two parameters, which a schema cannot say.
CONFIG = """
[parameters]
"query.head" = "toy"
"path.name" = "toy"

[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]

[checks.positive_data_acceptance]
expected-statuses = ["2xx", "404", "422", "504"]

[[operations]]
include-name = "GET /v1/stream"
checks.positive_data_acceptance.expected-statuses = ["426"]
"""


async def test_the_whole_schema_holds(opened: Any, tmp_path: Path, hold_port: Callable[[], int]) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    async with opened(http_socket=None, http_port=hold_port()) as face:
        command = [
            "--config-file",
            str(config),
            "run",
            f"{face.server.http}/openapi.json",
            "--checks=all",
            f"--max-examples={EXAMPLES}",
            "--seed=1",
            "--no-color",
            "--workers=1",
            "--request-timeout=30",
        ]
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).parent / "schemathesis"),
            *command,
            env={
                **os.environ,
                "SCHEMATHESIS_HOOKS": "schema_hooks",
                "PYTHONPATH": str(HERE),
                "PYTHONWARNINGS": "ignore",
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=tmp_path,
        )
        said = (await process.communicate())[0].decode()
    if "SERVOX_SCHEMA_EXAMPLES" in os.environ:
        print(said)
    assert process.returncode == 0, said
    assert int(re.findall(r"(\d+) generated", said)[0]) > 50
