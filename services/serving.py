"""`servox serve …`: one service until it is told to stop, with every setting as a flag."""

import asyncio
import importlib
import inspect
import signal
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from servox.settings import ServiceSettings, home
from servox.telemetry import Metrics, configure_logging
from servox.tracing import configure_tracing

from .house import Service, running

app = typer.Typer(no_args_is_help=True, help="Run a service until SIGTERM.")


async def until_stopped(service: Service) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a signal during the start ends that as well.

    Raises:
        ServoxError: the service could not start, or its worker died.
    """
    await _until(_on_signal(), _served(service))


async def _served(service: Service) -> None:
    try:
        typer.echo(f"serving on {await service.start()}", err=True)
        watch = getattr(service, "wait_failed", None)
        await (watch() if watch else asyncio.Future())
    finally:
        await service.stop()


def _on_signal() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; a second one is left to kill the process."""
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def stop() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
        stopped.set()

    for number in numbers:
        loop.add_signal_handler(number, stop)
    return stopped


async def _until(stopped: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Runs `work` to its end, or until told to stop; raises what it raises."""
    waiting, working = asyncio.ensure_future(stopped.wait()), asyncio.ensure_future(work)
    await asyncio.wait([waiting, working], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    working.cancel()
    with suppress(asyncio.CancelledError):
        await working


def flags_of(settings: type[ServiceSettings]) -> list[inspect.Parameter]:
    """One flag a field of `settings`, and `--config` for a file."""
    option = typer.Option("--config", help="TOML file with any of these settings")
    parameters = [
        inspect.Parameter(
            "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, option]
        )
    ]
    for name, field in settings.model_fields.items():
        known = "" if field.is_required() or field.default is None or field.default_factory else f" [{field.default}]"
        annotation = Annotated[str | None, typer.Option(help=f"{field.description}{known}", show_default=False)]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    return parameters


def register(name: str, *, settings: type[ServiceSettings], server: str, text: str) -> None:
    """Adds `servox serve NAME`.

    Args:
        name: of the service.
        settings: its settings; each field becomes a flag.
        server: `module:Class`, imported only when the command runs.
        text: one line of help.
    """

    def command(config: Path | None = None, **flags: str | None) -> None:
        loaded = settings.load(dict(flags), file=config)
        configure_logging(name, loaded.log_level)
        configure_tracing(name)
        module, attribute = server.split(":")
        make = getattr(importlib.import_module(module), attribute)
        asyncio.run(until_stopped(make(loaded, Metrics())))

    parameters = flags_of(settings)
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads flags from it
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(name, help=text)(command)


@app.command("all")
def serve_all(
    bundle: Annotated[Path, typer.Option(help="bundle that the embedder serves")],
    sockets: Annotated[Path | None, typer.Option(help="folder of the Unix sockets")] = None,
    http_port: Annotated[int, typer.Option(help="port of the page and the HTTP API on loopback; 0 for none")] = 8080,
    log_level: Annotated[str, typer.Option(help="least severe level logged")] = "info",
) -> None:
    """The three services in one process, on Unix sockets, with the page and the HTTP API beside them."""
    configure_logging("servox", log_level)
    configure_tracing("all")
    asyncio.run(_serve_all(bundle, sockets or home() / "sockets", http_port))


async def _serve_all(bundle: Path, sockets: Path, http_port: int) -> None:
    await _until(_on_signal(), _all_served(bundle, sockets, http_port))


async def _all_served(bundle: Path, sockets: Path, http_port: int) -> None:
    async with running(bundle=bundle, evaluator=True, sockets=sockets, http_port=http_port) as house:
        for name in ("embedder", "prober", "evaluator"):
            typer.echo(f"{name} serves on {getattr(house, name)}", err=True)
        if http_port:
            typer.echo(f"the page is at http://127.0.0.1:{http_port}/", err=True)
        await house.failed
