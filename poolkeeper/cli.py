"""The command line: ``poolkeeper run FILE``.

Standard output is for what the fleet's steps print and for the summary; progress and log lines go to standard error.
Exit codes: 0 all well, 1 some work failed or could not be started, 2 wrong usage, 130 interrupted; SIGTERM exits 0.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import signal
import sys
import traceback

import click

from poolkeeper import loading

from .cli_control import COMMANDS
from .errors import PoolkeeperError
from .fleet import Fleet, FleetError

__all__ = ["app", "main"]

INTERRUPTED = 130


def _print_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from importlib import metadata

    try:
        version = metadata.version("poolkeeper")
    except metadata.PackageNotFoundError:
        version = "(from a source tree that is not installed)"
    click.echo(f"poolkeeper {version}, Python {sys.version.partition(' ')[0]}")
    context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
def app() -> None:
    """Run services and batch jobs on worker processes that nothing kills."""


@app.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--run-id", default="default", show_default=True, metavar="ID", help="Name this run of the fleet.")
@click.option(
    "--workers", type=click.IntRange(min=1), metavar="N", help="Worker processes; as many as CPUs if not given."
)
@click.option("--fresh", is_flag=True, help="Run everything, whatever an earlier run has done.")
@click.option(
    "--logs", type=click.Choice(["files", "stdout"]), default="files", help="Copy what workers write to stdout."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON; what steps print goes to stderr.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS]...")
@click.pass_context
def run(
    context: click.Context,
    file: str,
    run_id: str,
    workers: int | None,
    fresh: bool,
    logs: str,
    as_json: bool,
    arguments: tuple[str, ...],
) -> None:
    """Run the fleet that FILE declares; ARGS become its sys.argv[1:]."""
    fleet = loading.load_fleet(file, arguments)
    fleet.plan()
    code = _run_fleet(fleet, _keeper_name(fleet, file), run_id, workers, mirror=logs == "stdout", as_json=as_json)
    context.exit(code)


for _command in COMMANDS:
    app.add_command(_command)


def main() -> None:
    """Run the command line and exit the process."""
    sys.exit(_main())


def _main() -> int:
    try:
        code = app.main(prog_name="poolkeeper", standalone_mode=False)
    except click.Abort:  # click's word for Ctrl-C
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except FleetError as error:
        _show_cause(error)
        click.echo(f"poolkeeper: {error}", err=True)
        return 2
    except BrokenPipeError:  # as in `poolkeeper run ... | head`: nobody wants to hear more, not at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except PoolkeeperError as error:
        click.echo(f"poolkeeper: {error}", err=True)
        return 1
    return code if isinstance(code, int) else 0


def _run_fleet(fleet: Fleet, name: str, run_id: str, workers: int | None, *, mirror: bool, as_json: bool) -> int:
    from rich.console import Console

    from poolkeeper import logs

    from .cancellation import CancellationToken
    from .display import LineDisplay, LiveDisplay, summary
    from .interrupts import Interrupts
    from .pool import Keeper
    from .runner import run_fleet
    from .summary import run_as_data

    terminal = Console(stderr=True)
    token = CancellationToken()
    with contextlib.ExitStack() as stack:
        steps_stdout = stack.enter_context(contextlib.redirect_stdout(sys.stderr)) if as_json else sys.stdout
        logs.configure(lambda line: click.echo(line, nl=False, err=True), colour=terminal.is_terminal)
        keeper = Keeper(
            workers,
            initializer=loading.use_arguments,
            initargs=(sys.argv,),
            name=name,
            run_id=run_id,
            resources=fleet.resources,
        )
        live = LiveDisplay(terminal, keeper.status, redirect=steps_stdout.isatty()) if terminal.is_terminal else None

        def stop(number: int) -> None:
            reason = f"{signal.Signals(number).name} received"
            token.cancel(reason)
            if live is not None:
                live.notice(f"{reason}: what runs is finished, the rest is not started; once more stops at once")
            else:
                logs.emit("WARNING", f"{reason}: what runs is finished, the rest is not started")

        def leave(number: int) -> None:
            if live is not None:
                live.hide()
            os._exit(128 + number)

        interrupts = stack.enter_context(Interrupts(stop, leave))
        if mirror:
            stack.enter_context(logs.LogMirror(keeper.home / "logs", click.echo))
        stack.enter_context(keeper)
        stack.enter_context(live or LineDisplay())
        result = run_fleet(fleet, keeper, run_id=run_id, observer=live or LineDisplay(), cancel=token)
    if as_json:
        click.echo(json.dumps(run_as_data(result), indent=2))
    else:
        # A terminal folds long lines; what goes into a file or pipe is searched line by line.
        seen = sys.stdout.isatty()
        Console(width=None if seen else 200).print(summary(result), soft_wrap=not seen)
    if interrupts.received is not None:
        return INTERRUPTED if interrupts.received == signal.SIGINT else 0
    return result.exit_code


def _keeper_name(fleet: Fleet, file: str) -> str:
    """Return the name of the fleet's home: two files that declare fleets of one name do not share it."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(file))).hexdigest()
    return f"{fleet.name}-{digest[:8]}"


def _show_cause(error: FleetError) -> None:
    """Print the traceback of what the fleet's file raised, without the frames of the import system."""
    if error.__cause__ is None:
        return
    cause = traceback.TracebackException.from_exception(error.__cause__)
    machinery = ("<frozen importlib", importlib.__file__, loading.__file__)
    cause.stack = traceback.StackSummary.from_list(
        [frame for frame in cause.stack if not frame.filename.startswith(machinery)]
    )
    click.echo("".join(cause.format()), err=True, nl=False)
