"""The client of operators, with and without an event loop, against a prober with real heads."""
# ruff: noqa: ANN401 -- fixtures' types

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from services.prober.heads_command import heads_app
from services.prober.rollout import position
from servox.client import Client, Rollout, SyncClient, pcm
from servox.errors import Forbidden, NotFound, Refused, Unauthenticated, Unavailable
from tests.prober.conftest import paired
from tests.prober.test_rollout import DARK, NEW, OLD, asked, rolled_out
from tests.servox.test_keys import made, written


async def test_an_operator_promotes_and_rolls_back(pair: Any, corpus: Any) -> None:
    await rolled_out(pair, corpus)
    async with Client(prober=pair.address) as client:
        promoted = await client.promote(f"toy:{NEW}", replaces=OLD, reason="better")
        assert promoted.summary.production
        assert ("out_of_fold.margin", True) in {(each.rule, each.passed) for each in promoted.gate}
        with pytest.raises(Refused, match=f"version {NEW} is in production, not {OLD}"):
            await client.promote(f"toy:{DARK}", replaces=OLD)
        assert (await client.rollback("toy", replaces=NEW, reason="worse")).head.version == OLD
        wanted = Rollout(canary=NEW, canary_share=0.1, shadow=DARK, shadow_share=0.5)
        await client.set_rollout("toy", wanted, reason="try")
        found = await client.rollout("toy")
        assert (found.production, found.canary, found.canary_share, found.shadow) == (OLD, NEW, 0.1, DARK)
        events = await client.history("toy")
        assert [event.action for event in events][-3:] == ["promoted", "rolled_back", "rolled_out"]
        assert (events[-3].version, events[-3].replaced, events[-3].reason) == (NEW, OLD, "better")
        with pytest.raises(NotFound):
            await client.history("nobody")


async def test_the_same_without_an_event_loop(pair: Any, corpus: Any) -> None:
    await rolled_out(pair, corpus)

    def work() -> list[str]:
        with SyncClient(prober=pair.address) as client:
            client.promote(f"toy:{NEW}", reason="better")
            client.rollback("toy")
            client.set_rollout("toy", Rollout(shadow=DARK, shadow_share=1.0))
            assert client.rollout("toy").shadow == DARK
            return [event.action for event in client.history("toy")]

    actions = await asyncio.to_thread(work)
    assert actions == ["promoted", "rolled_out", "promoted", "rolled_back", "rolled_out"]


async def test_the_command_compares(pair: Any, corpus: Any) -> None:
    await rolled_out(pair, corpus, canary=NEW, canary_share=0.5, shadow=DARK, shadow_share=1.0)
    at = ["compare", "toy", "--address", pair.address, "--json"]
    nothing = await asyncio.to_thread(CliRunner().invoke, heads_app, at)
    assert f"nothing to compare yet; canary {NEW}, shadow {DARK}" in nothing.output
    for session in map(str, range(8)):
        await asked(pair, session=session)
    done = await asyncio.to_thread(CliRunner().invoke, heads_app, at, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    found = json.loads(done.output.splitlines()[-1])
    assert {figures["stage"]: figures["version"] for figures in found["stages"]} == {"canary": NEW, "production": OLD}
    assert sum(figures["calls"] for figures in found["stages"]) == 8
    assert f"production {OLD}: " in done.output
    assert f"shadow {DARK}: " in done.output


async def test_who_may_and_who_did(tmp_path: Path, corpus: Any) -> None:
    async with paired(tmp_path) as open_to_all:
        await rolled_out(open_to_all, corpus, canary=NEW, canary_share=0.5)
    (ana, first), (bob, second) = (
        made(name="ana", scopes=("promote", "heads")),
        made(name="bob", scopes=("recognize", "heads")),
    )
    async with paired(tmp_path, keys=written(tmp_path / "keys.json", first, second)) as pair:
        async with Client(prober=pair.address, key=bob) as client:
            for change in (client.promote(f"toy:{NEW}"), client.rollback("toy"), client.set_rollout("toy", Rollout())):
                with pytest.raises(Forbidden, match="promote"):
                    await change
            sound = pcm(np.random.default_rng(0).normal(scale=0.1, size=8000).astype(np.float32), 16_000)
            met = {(await client.recognize(sound, head="toy")).head.version for _ in range(6)}
            assert met == {NEW if position("toy", "bob") < 0.5 else OLD}, "a key is somebody who stays"
        async with Client(prober=pair.address, key=ana) as client:
            await client.promote(f"toy:{NEW}", reason="better")
        async with Client(prober=pair.address) as client:
            with pytest.raises(Unauthenticated):
                await client.history("toy")
        async with Client(prober=pair.address, key=bob) as client:
            last = (await client.history("toy"))[-1]
    assert (last.action, last.actor, last.reason) == ("promoted", "ana", "better")


async def test_a_change_is_sent_once(tmp_path: Any) -> None:
    async with Client(prober=f"unix:{tmp_path / 'nobody.sock'}") as client:
        with pytest.raises(Unavailable):
            await client.rollback("toy", timeout_s=20)
