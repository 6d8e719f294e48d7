"""What the pages of security and responsible use name is there: scopes, purposes, settings, tests."""

import re
from functools import cache
from pathlib import Path

import pytest

from services.embedder.settings import Settings as Embedder
from services.evaluator.settings import Settings as Evaluator
from services.prober.http.entrance import KEY_PROTOCOL, PROTOCOL
from services.prober.purposes import PURPOSES
from services.prober.settings import Settings as Prober
from servox.keys import Key
from servox.scopes import METHODS, ROUTES, SCOPES

ROOT = Path(__file__).resolve().parents[2]
SECURITY = (ROOT / "docs/security.md").read_text()
USE = (ROOT / "docs/responsible-use.md").read_text()
FIELDS = {*Embedder.model_fields, *Prober.model_fields, *Evaluator.model_fields, *Key.__dataclass_fields__}


@cache
def written() -> frozenset[str]:
    pages = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    return frozenset(name for page in pages for name in re.findall(r"^(?:async )?def (test_\w+)\(", page, re.MULTILINE))


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+)`", SECURITY))))
def test_each_control_has_the_test_that_is_named(name: str) -> None:
    assert name in written()


def test_each_threat_has_a_control_and_a_test() -> None:
    table = SECURITY.split("## Threats, controls, tests")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    assert all(len(row.split(" | ")) == 3 and re.search(r"`test|`tests/|\]\(", row.rsplit(" | ", 1)[1]) for row in rows)


def test_scopes_and_what_they_open_are_all_told() -> None:
    table = SECURITY.split("## Scopes")[1].split("\nOpen to all")[0]
    assert set(re.findall(r"^\| `([a-z*]+)` \|", table, re.MULTILINE)) == set(SCOPES)
    for method, scope in METHODS.items():
        row = next((line for line in table.splitlines() if line.startswith(f"| `{scope}` |")), SECURITY)
        service, name = method[1:].split("/")
        told = ("embedder" in row, "Inference" in row, "evaluator" in row, "calibrations" in row)
        whole = {"servox.v1.Embedder": 0, "inference.GRPCInferenceService": 1, "servox.v1.Evaluator": 2}.get(service)
        assert f"`{name}`" in row or told[3 if whole is None else whole], f"{method} is not told beside {scope}"
    for route, scope in ROUTES.items():
        assert not scope or f"`{route.split('/{')[0]}`" in table, route


def test_purposes_are_all_told() -> None:
    assert set(re.findall(r"`([a-z-]+)`", USE.split("| purpose | means |")[1].split("\n\n")[0])) == set(PURPOSES)


def test_names_of_settings_are_settings() -> None:
    named = re.findall(r"`((?:jwt|tls|embedder|peer)_\w+)`", SECURITY + USE)
    assert len(named) > 20
    assert {name for name in named if not name.endswith("_*")} <= FIELDS
    limits = SECURITY.split("## Limits of one request")[1].split("\n## ")[0]
    assert set(re.findall(r"`([a-z]+_[a-z_]+)`", limits)) <= FIELDS
    assert f"`{KEY_PROTOCOL}<key>`" in SECURITY
    assert f"`{PROTOCOL}`" in SECURITY
