"""`servox …`: the composition root, the only place that knows every service.

A command whose packages are not installed stays visible and says which extra brings it: a client's install is light,
and an image holds one service.
"""

import importlib
import sys
from typing import Any

import typer

from servox import __version__
from servox.errors import BadInput, ServoxError

app = typer.Typer(
    name="servox",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals may hold audio
    add_completion=False,
    help="Speech emotion recognition: embed, train, recognise, benchmark across corpora.",
)
evaluate_app = typer.Typer(no_args_is_help=True, help="Run cross-corpus benchmarks and read their results.")

# name → (where it lies, the extra that brings what it needs, its help while that is missing)
_COMMANDS = {
    "export": ("services.embedder.commands:export", "export", "Turn a checkpoint into a bundle."),
    "embed": ("services.embedding:embed", "embedder", "Embed audio files."),
    "recognize": ("services.recognizing:recognize", "prober", "Recognise emotions in audio files."),
    "demo": ("services.demo:demo", "dev", "The whole benchmark on what speech there is."),
}
_EVALUATE = {
    "run": ("services.evaluating:run", "evaluator", "Train and score heads on every eligible corpus."),
    "report": ("services.evaluator.report.command:report_command", "evaluator", "Write the report of a run again."),
}
_SERVICES = {
    "embedder": ("services.embedder.settings", "services.embedder.server:EmbedderServer", "Audio in, embeddings out."),
    "prober": ("services.prober.settings", "services.prober.server:ProberServer", "Train, keep and host heads."),
    "evaluator": ("services.evaluator.settings", "services.evaluator.server:EvaluatorServer", "Run benchmarks."),
}


def _load(target: str, extra: str) -> Any:  # noqa: ANN401 -- whatever lies there
    module, attribute = target.split(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("services", "servox"):
            raise
        return _missing(str(error.name), extra)


def _missing(package: str, extra: str) -> Any:  # noqa: ANN401 -- a command
    def command(ctx: typer.Context) -> None:
        message = f"`{ctx.info_name}` needs the package {package!r}: pip install 'servox[{extra}]'"
        raise BadInput(message)

    return command


def _mount(target: typer.Typer, commands: dict[str, tuple[str, str, str]], wanted: str | None) -> None:
    for name, (place, extra, text) in commands.items():
        # Only the command that was asked for is imported: `servox --help` must not wait for torch.
        command = _load(place, extra) if wanted in (name, None) else _missing("", extra)
        target.command(name, help=None if wanted in (name, None) and command.__doc__ else text)(command)


def build(arguments: list[str]) -> typer.Typer:
    """The command line, with the packages of the command that `arguments` name imported."""
    first, second = [*arguments, "", ""][:2]
    _mount(app, _COMMANDS, first)
    if first == "corpora":
        app.add_typer(_load("services.evaluator.corpora.commands:corpora_app", "evaluator"), name="corpora")
    else:
        app.add_typer(typer.Typer(), name="corpora", help="List, check and parse corpora.")
    _mount(evaluate_app, _EVALUATE, second if first == "evaluate" else "")
    app.add_typer(evaluate_app, name="evaluate")
    if first == "serve":
        app.add_typer(_serving(), name="serve")
    else:
        app.add_typer(typer.Typer(), name="serve", help="Run a service until SIGTERM.")
    return app


def _serving() -> typer.Typer:
    try:
        from services import serving
    except ModuleNotFoundError as error:
        raise BadInput(
            f"`serve` needs the package {error.name!r}: pip install 'servox[embedder]' or the like"
        ) from None
    for name, (settings, server, text) in _SERVICES.items():
        module = importlib.import_module(settings)
        serving.register(name, settings=module.Settings, server=server, text=text)
    return serving.serve_app


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    """Speech emotion recognition: embed, train, recognise, benchmark across corpora."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: errors of ours become one line on standard error and exit code 1."""
    try:
        build(sys.argv[1:])()
    except ServoxError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(1)
