"""`servox tenants …`: the calibrations of a prober that runs; it alone may change them."""

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from servox.client import Prior
from servox.errors import BadSetting
from servox.keys import key_of_environment
from servox.rpc import Tls, channel, translated
from servox.v1 import prober_pb2 as pb
from servox.v1 import prober_pb2_grpc

from .hearing import NAMED, prior_of

tenants_app = typer.Typer(no_args_is_help=True, help="Tenants: what is known of their speech, and how it answers.")

Tenant = Annotated[str, typer.Argument(help="Name of the tenant.", show_default=False)]
Head = Annotated[str, typer.Option(help="Only in the feature space of this head; all if empty.")]
Address = Annotated[str, typer.Option(help="Address of the prober.")]
Authority = Annotated[Path | None, typer.Option("--ca", help="PEM bundle to trust the prober by; plain text if unset.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one machine-readable line last.")]

HERE = "127.0.0.1:50052"
KINDS = {
    "train": pb.Prior.KIND_TRAIN,
    "uniform": pb.Prior.KIND_UNIFORM,
    "estimated": pb.Prior.KIND_ESTIMATED,
    "estimated-em": pb.Prior.KIND_ESTIMATED_EM,
}
STATES = {
    pb.CALIBRATION_STATE_COLLECTING: "collecting",
    pb.CALIBRATION_STATE_READY: "ready",
    pb.CALIBRATION_STATE_FROZEN: "frozen",
}
WAIT_S = 30.0


@tenants_app.command("list")
def list_tenants(
    tenant: Annotated[str, typer.Argument(help="Only this one; all if empty.")] = "",
    address: Address = HERE,
    ca: Authority = None,
    as_json: AsJson = False,
) -> None:
    """List what is known: how many clips, whether it answers, drift, alarms."""
    request = pb.ListCalibrationsRequest(tenant=tenant)
    answer = _asked(address, ca, lambda stub: stub.ListCalibrations(request, timeout=WAIT_S))
    _show(answer.calibrations, as_json=as_json)


@tenants_app.command("freeze")
def freeze_tenant(
    tenant: Tenant, head: Head = "", address: Address = HERE, ca: Authority = None, as_json: AsJson = False
) -> None:
    """Let a calibration answer as it is, and learn nothing more; also one that a guard holds back."""
    _show(_freeze(tenant, head, address, ca, thaw=False), as_json=as_json)


@tenants_app.command("thaw")
def thaw_tenant(
    tenant: Tenant, head: Head = "", address: Address = HERE, ca: Authority = None, as_json: AsJson = False
) -> None:
    """Let a frozen calibration go on learning."""
    _show(_freeze(tenant, head, address, ca, thaw=True), as_json=as_json)


@tenants_app.command("reset")
def reset_tenant(
    tenant: Tenant,
    head: Head = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    address: Address = HERE,
    ca: Authority = None,
    as_json: AsJson = False,
) -> None:
    """Forget a calibration for good, its prior too; the training statistics answer until enough is heard again."""
    if not yes:
        typer.confirm(f"Forget what is known of {tenant}?", abort=True)
    request = pb.ResetCalibrationRequest(key=pb.CalibrationKey(tenant=tenant, head=head))
    answer = _asked(address, ca, lambda stub: stub.ResetCalibration(request, timeout=WAIT_S))
    typer.echo(f"forgot {len(answer.calibrations)} of {tenant}")
    _last(answer.calibrations, as_json=as_json)


@tenants_app.command("export")
def export_tenant(
    tenant: Tenant,
    file: Annotated[Path, typer.Argument(help="File to write.", show_default=False)],
    head: Head = "",
    address: Address = HERE,
    ca: Authority = None,
) -> None:
    """Write a calibration as JSON: statistics alone, no audio, and no embedding of a clip."""
    request = pb.ExportCalibrationRequest(key=pb.CalibrationKey(tenant=tenant, head=head))
    answer = _asked(address, ca, lambda stub: stub.ExportCalibration(request, timeout=WAIT_S))
    with _at_work(file):
        file.write_text(answer.state_json)
    typer.echo(f"wrote {file}")


@tenants_app.command("import")
def import_tenant(
    file: Annotated[Path, typer.Argument(help="What `servox tenants export` wrote.", show_default=False)],
    tenant: Annotated[str, typer.Option(help="To import for; the one in the file if empty.")] = "",
    address: Address = HERE,
    ca: Authority = None,
    as_json: AsJson = False,
) -> None:
    """Put an exported calibration in the place of what is known."""
    with _at_work(file):
        text = file.read_text()
    request = pb.ImportCalibrationRequest(state_json=text, tenant=tenant)
    answer = _asked(address, ca, lambda stub: stub.ImportCalibration(request, timeout=WAIT_S))
    _show(answer.calibrations, as_json=as_json)


@tenants_app.command("prior")
def set_prior(
    tenant: Tenant,
    prior: Annotated[str, typer.Argument(help=f"{', '.join(KINDS)}, label=probability,…, or none.")],
    head: Annotated[str, typer.Option(help="Head whose classes the prior is of.", show_default=False)],
    address: Address = HERE,
    ca: Authority = None,
    as_json: AsJson = False,
) -> None:
    """Set the prior that requests mean with `tenant`; `none` takes it away."""
    message = None if prior == "none" else _message(prior_of(prior))
    request = pb.SetTenantPriorRequest(key=pb.CalibrationKey(tenant=tenant, head=head), prior=message)
    answer = _asked(address, ca, lambda stub: stub.SetTenantPrior(request, timeout=WAIT_S))
    _show(answer.calibrations, as_json=as_json)


def _message(prior: Prior) -> pb.Prior:
    if not isinstance(prior, str):
        return pb.Prior(kind=pb.Prior.KIND_EXPLICIT, probabilities=dict(prior))
    if prior not in KINDS:
        raise BadSetting(f"prior = {prior!r}: give {', '.join(each for each in NAMED if each in KINDS)} or none")
    return pb.Prior(kind=KINDS[prior])


def _freeze(tenant: str, head: str, address: str, ca: Path | None, *, thaw: bool) -> Iterable[pb.Calibration]:
    request = pb.FreezeCalibrationRequest(key=pb.CalibrationKey(tenant=tenant, head=head), thaw=thaw)
    answer: pb.FreezeCalibrationResponse = _asked(
        address, ca, lambda stub: stub.FreezeCalibration(request, timeout=WAIT_S)
    )
    return answer.calibrations


def _asked(address: str, ca: Path | None, call: Callable[[Any], Any]) -> Any:  # noqa: ANN401 -- stubs have no types
    """What a prober answers; the commands are plain functions, so each has a loop of its own."""

    async def asked() -> Any:  # noqa: ANN401
        tls = Tls(ca=ca) if ca else None
        async with channel(address, tls=tls, key=key_of_environment()) as connection:
            with translated(f"prober at {address}"):
                return await call(prober_pb2_grpc.ProberStub(connection))  # type: ignore[no-untyped-call]

    return asyncio.run(asked())


def _show(calibrations: Iterable[pb.Calibration], *, as_json: bool) -> None:
    table = Table("tenant", "space", "state", "version", "clips", "refused", "classes", "drift", "prior", "changed", "")
    table.box, table.pad_edge = None, False
    for each in calibrations:
        changed = datetime.fromtimestamp(each.changed_unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        cells = (
            each.tenant,
            f"{each.bundle_digest[:12]} {','.join(map(str, each.layers))}",
            STATES.get(each.state, "unknown"),
            str(each.version),
            str(each.clips),
            str(each.refused),
            f"{each.diversity:.1f}",
            f"{each.drift:.2f}",
            _prior_of(each) or "–",
            changed if each.changed_unix_ms else "–",
            each.alarm,
        )
        table.add_row(*map(escape, cells))
    Console().print(table)
    _last(calibrations, as_json=as_json)


def _last(calibrations: Iterable[pb.Calibration], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"calibrations": [_document(each) for each in calibrations]}, ensure_ascii=False))


def _document(calibration: pb.Calibration) -> dict[str, Any]:
    return {
        "tenant": calibration.tenant,
        "bundle": calibration.bundle_digest,
        "layers": list(calibration.layers),
        "state": STATES.get(calibration.state, "unknown"),
        "version": calibration.version,
        "clips": calibration.clips,
        "weight": calibration.weight,
        "refused": calibration.refused,
        "diversity": calibration.diversity,
        "drift": calibration.drift,
        "alarm": calibration.alarm,
        "changed_unix_ms": calibration.changed_unix_ms,
        "prior": _prior_of(calibration),
        "probabilities": dict(calibration.prior.probabilities),
    }


def _prior_of(calibration: pb.Calibration) -> str:
    """The kind of the tenant's own prior; empty where none was set."""
    if not calibration.HasField("prior"):
        return ""
    return pb.Prior.Kind.Name(calibration.prior.kind).removeprefix("KIND_").lower().replace("_", "-")


@contextmanager
def _at_work(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"{file}: {error}; choose another file") from None
