"""`servox tenants` against a prober that runs: what operators see, change, take out and put in."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from services.prober.card import Card
from services.prober.heads import Head, shapes
from services.prober.registry import Registry
from services.prober.server import ProberServer
from services.prober.settings import Settings
from services.prober.tenants.calls import space_of
from services.prober.tenants.records import to_json
from services.prober.tenants.rules import Rules
from services.prober.tenants.statistics import Clip, learned, new_state
from services.tenants import tenants_app
from servox.errors import BadInput, BadSetting, NotFound, Unavailable
from servox.telemetry import Metrics

Run = Callable[..., Awaitable[Result]]
CLASSES, DIMS = ("anger", "happiness", "sadness"), 6


def head() -> Head:
    card = Card(
        name="toy",
        version="0" * 16,
        kind="logistic",
        classes=CLASSES,
        class_counts=(5, 6, 13),
        bundle="ab" * 32,
        layer=2,
        dims=DIMS,
        temperature=1.0,
        seed=0,
        settings={},
        out_of_fold=None,
        clip_set="cd" * 32,
        clips=24,
        speakers=3,
        servox="0",
        store="",
        created="2026-01-01T00:00:00+00:00",
    )
    random = np.random.default_rng(3)
    weights = {name: np.abs(random.normal(size=shape)).astype(np.float32) + 1 for name, shape in shapes(card).items()}
    return Head(card=card, weights=weights)


def exported(tenant: str, clips: int) -> str:
    """A state as another prober would give it."""
    random, state = np.random.default_rng(1), new_state(tenant, space_of(head()))
    for number in range(clips):
        clip = Clip(
            values=random.normal(size=DIMS) + 2,
            std=np.ones(DIMS),
            weight=1.0,
            head=head().card.tag,
            classes=CLASSES,
            train=(5, 6, 13),
            raw=np.full(3, 1 / 3),
            shown=np.full(3, 1 / 3),
        )
        state, _ = learned(state, clip, Rules(), now_ms=number * 3_600_000, training_mean=np.zeros(DIMS))
    return to_json([state])


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Run]:
    """Runs a command against a prober; its loop is another than the command's, as between processes."""
    Registry(tmp_path / "heads").save(head())
    folders = {"heads": tmp_path / "heads", "tenants": tmp_path / "tenants"}
    settings = {"grpc_socket": tmp_path / "p.sock", "http_port": 0, "metrics_port": 0, "drain_grace_s": 1, **folders}
    server = ProberServer(Settings.load(settings), Metrics())
    address = await server.start()

    async def call(*arguments: str, answer: str = "") -> Result:
        command = [*arguments, "--address", address]
        return await asyncio.to_thread(CliRunner().invoke, tenants_app, command, input=answer, catch_exceptions=False)

    yield call
    await server.stop()


def last(result: Result) -> list[Any]:
    found: list[Any] = json.loads(result.stdout.splitlines()[-1])["calibrations"]
    return found


async def test_a_state_goes_in_is_changed_and_comes_out(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "acme.json"
    file.write_text(exported("acme", 20))
    (state,) = last(await run("import", str(file), "--json"))
    assert (state["tenant"], state["state"], state["clips"]) == ("acme", "ready", 20)
    (state,) = last(await run("freeze", "acme", "--head", "toy", "--json"))
    assert state["state"] == "frozen"
    (state,) = last(await run("thaw", "acme", "--json"))
    assert state["state"] == "ready"
    shares = {"anger": 0.5, "happiness": 0.25, "sadness": 0.25}
    text = ",".join(f"{label}={share}" for label, share in shares.items())
    (state,) = last(await run("prior", "acme", text, "--head", "toy", "--json"))
    assert (state["prior"], state["probabilities"]) == ("explicit", shares)
    (state,) = last(await run("prior", "acme", "none", "--head", "toy", "--json"))
    assert (state["prior"], state["probabilities"]) == ("", {})
    out = tmp_path / "out.json"
    assert (await run("export", "acme", str(out))).stdout == f"wrote {out}\n"
    assert json.loads(out.read_text())["states"][0]["clips"] == 20
    await run("import", str(out), "--tenant", "twin")
    assert [each["tenant"] for each in last(await run("list", "--json"))] == ["acme", "twin"]
    assert [each["tenant"] for each in last(await run("list", "twin", "--json"))] == ["twin"]


async def test_reset_asks_first(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "acme.json"
    file.write_text(exported("acme", 20))
    await run("import", str(file))
    assert (await run("reset", "acme", answer="n\n")).exit_code == 1
    assert len(last(await run("list", "--json"))) == 1
    assert "forgot 1 of acme" in (await run("reset", "acme", answer="y\n")).stdout
    with pytest.raises(NotFound, match="no calibration"):
        await run("export", "acme", str(file))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("freeze", "nobody"), NotFound, "no calibration"),
        (("freeze", "../up"), BadInput, "use 1 to 63 letters"),
        (("import", "missing.json"), BadSetting, "missing.json"),
        (("prior", "acme", "tenant", "--head", "toy"), BadSetting, "give train, uniform"),
        (("prior", "acme", "joy=1", "--head", "toy"), BadInput, "unknown classes"),
        (("prior", "acme", "uniform", "--head", "tou"), NotFound, "tou"),
    ],
)
async def test_what_is_wrong_is_told(run: Run, arguments: tuple[str, ...], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        await run(*arguments)


async def test_nobody_there(tmp_path: Path) -> None:
    command = ["list", "--address", f"unix:{tmp_path / 'nobody.sock'}"]
    with pytest.raises(Unavailable, match="prober at unix:"):
        await asyncio.to_thread(CliRunner().invoke, tenants_app, command, catch_exceptions=False)
