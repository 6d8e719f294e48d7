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
study_app = typer.Typer(no_args_is_help=True, help="Measure on your own speech what to export.")

# name → (where it lies, the extra that brings what it needs, its help while that is missing)
_COMMANDS = {
    "export": ("services.embedder.commands:export", "embedder,export", "Turn a checkpoint into a bundle."),
    "embed": ("services.embedder.embedding_command:embed", "embedder", "Embed audio files."),
    "train": ("services.training:train", "prober,embedder,train", "Train a head on your own speech."),
    "recognize": ("services.recognizing:recognize", "prober", "Recognise emotions in audio files."),
    "demo": ("services.demo:demo", "dev", "The whole benchmark on what speech there is."),
}
_EVALUATE = {
    "run": ("services.evaluating:run", "evaluator", "Train and score heads on every eligible corpus."),
    "report": ("services.evaluator.report.command:report_command", "evaluator", "Write the report of a run again."),
}
_HEADS = {
    "evaluate": ("services.judging:evaluate", "prober,embedder,evaluator", "Score a head on corpora it never heard."),
}
_STUDY = {
    "context": ("services.study.command:context", "dev", "F1 against cost: context policies by depths."),
    "precision": ("services.study.precision:precision", "dev", "The fastest precision that costs a head nothing."),
}
_SERVICES = {
    "embedder": ("services.embedder.settings:Settings", "services.embedder.server:EmbedderServer", "Embed audio."),
    "prober": ("services.prober.settings:Settings", "services.prober.server:ProberServer", "Train and host heads."),
    "evaluator": (
        "services.evaluator.settings:Settings",
        "services.evaluator.server:EvaluatorServer",
        "Run benchmarks.",
    ),
}


def _load(target: str, extra: str) -> Any:  # noqa: ANN401 -- whatever lies there
    module, attribute = target.split(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        package = error.name or module
        if package.split(".")[0] in ("services", "servox"):
            raise
        raise BadInput(f"this command needs the package {package!r}: pip install 'servox[{extra}]'") from None


def _not_asked_for() -> None:
    """Stands in for a command in the list of commands; only the one that was asked for is imported."""


def _mount(target: typer.Typer, commands: dict[str, tuple[str, str, str]], wanted: str) -> None:
    for name, (place, extra, text) in commands.items():
        if name == wanted:
            target.command(name)(_load(place, extra))
        else:
            target.command(name, help=text)(_not_asked_for)


def build(arguments: list[str]) -> typer.Typer:
    """The command line. Only the command that `arguments` name is imported: `--help` must not wait for torch.

    Raises:
        BadInput: the command needs a package that is not installed.
    """
    first, second = [*arguments, "", ""][:2]
    _mount(app, _COMMANDS, first)
    _mount(evaluate_app, _EVALUATE, second if first == "evaluate" else "")
    app.add_typer(evaluate_app, name="evaluate")
    _mount(study_app, _STUDY, second if first == "study" else "")
    app.add_typer(study_app, name="study")
    corpora = _load("services.evaluator.corpora.commands:corpora_app", "evaluator") if first == "corpora" else None
    app.add_typer(corpora or typer.Typer(), name="corpora", help="List, check, parse and download corpora.")
    heads = _load("services.prober.heads_command:heads_app", "prober") if first == "heads" else None
    if heads is not None:
        _mount(heads, _HEADS, second)
    app.add_typer(heads or typer.Typer(), name="heads", help="List, evaluate, promote, roll out, export, import heads.")
    keys = _load("services.keys_command:keys_app", "") if first == "keys" else None
    app.add_typer(keys or typer.Typer(), name="keys", help="Make, list, revoke and rotate API keys.")
    tenants = _load("services.tenants:tenants_app", "prober") if first == "tenants" else None
    app.add_typer(tenants or typer.Typer(), name="tenants", help="Calibrations of tenants: list, freeze, export.")
    app.add_typer(_serving(second) if first == "serve" else typer.Typer(), name="serve", help="Run a service.")
    return app


def _serving(wanted: str) -> typer.Typer:
    register = _load("services.serving:register", "serving")
    serve_app: typer.Typer = _load("services.serving:app", "serving")
    for name, (settings, server, text) in _SERVICES.items():
        if name == wanted:
            register(name, settings=_load(settings, name), server=server, text=text)
        else:
            serve_app.command(name, help=text)(_not_asked_for)
    return serve_app


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
