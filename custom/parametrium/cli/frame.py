"""The frame of every command: how it is found, and how it ends when something goes wrong."""

import json
import logging
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

from parametrium import __version__
from parametrium.cli.cohort import cohort_app
from parametrium.cli.jobs import job_app
from parametrium.cli.kits import kit_app
from parametrium.cli.options import AsJson, example
from parametrium.cli.printing import answer, err, say
from parametrium.cli.runs import runs_app
from parametrium.cli.starts import starts_app
from parametrium.config import job_schema, site_schema
from parametrium.errors import (
    Code,
    CohortError,
    ConfigError,
    DataError,
    FederationError,
    ParametriumError,
    PolicyError,
    TrainingError,
)

EXIT_CODES: dict[type[ParametriumError], int] = {
    ConfigError: 2,
    CohortError: 3,
    DataError: 3,
    TrainingError: 4,
    FederationError: 5,
    PolicyError: 6,
}
UNEXPECTED = 9
INTERRUPTED = 130

# Plain help: rich's panels cut long option names off in a narrow terminal.
app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)
app.add_typer(runs_app)
app.add_typer(starts_app)
app.add_typer(cohort_app, name="cohort")
app.add_typer(job_app, name="job")
app.add_typer(kit_app, name="kit")


@app.callback(epilog=example("demo --out demo"))
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error; anywhere")] = False,
) -> None:
    """Federated multi-modal pretraining of a 3D vision transformer on scans that stay in their hospitals.

    Exit codes: 0 done; 1 the run or the cohort did not pass; 2 config or usage; 3 cohort or cache; 4 training or
    checkpoint; 5 federation; 6 the site's policy; 9 unexpected; 130 interrupted. docs/errors.md lists the PM codes.
    """


@app.command(epilog=example("version"))
def version(as_json: AsJson = False) -> None:
    """Print the version."""
    answer({"version": __version__}, as_json, lambda: say(__version__))


@app.command(epilog=example("schema job > job.schema.json"))
def schema(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="job or site")],
    as_json: AsJson = False,
) -> None:
    """Print the JSON schema of a config file, for editors."""
    schemas = {"job": job_schema, "site": site_schema}
    if kind not in schemas:
        raise ConfigError(Code.CONFIG_INVALID_VALUE, f"schema: choose one of {', '.join(schemas)}, got {kind!r}")
    document = schemas[kind]()
    answer(document, as_json, lambda: print(json.dumps(document, indent=2)))  # noqa: T201 - a document for a file


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point: runs the command; an error becomes one sentence and an exit code, never a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given  # read here, so that it may stand anywhere
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, format="%(levelname)s %(message)s")
    try:
        with _ended_by_signals():
            app([word for word in given if word != "--debug"], prog_name="parametrium")
            sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if debug:
            traceback.print_exc()
        sys.exit(_tell(error, given))


def _tell(error: Exception, arguments: Sequence[str]) -> int:
    """Prints what went wrong and what to do; gives the exit code."""
    if isinstance(error, ParametriumError):
        sentence, here = f"error {error}", error.site_detail
    else:
        sentence, here = f"error {Code.UNEXPECTED.code} an unexpected error ({type(error).__name__})", str(error)
    say(sentence, err)
    if here:
        say(f"  here: {here}", err)
    code = next((EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES), UNEXPECTED)
    if code == UNEXPECTED and "--debug" not in arguments:
        say(f"  details: parametrium --debug {shlex.join(arguments)}", err)
    return code


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end a command as Ctrl-C does, so that it ends its children on its way out."""
    numbers = [number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))]
    # What is ignored already stays so: nohup.
    before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}

    def leave(number: int, _frame: object) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # a second one must not cut the tidying short
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    for number in before:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
