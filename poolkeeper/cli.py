"""The command line: ``poolkeeper run FILE``.

Standard output is for what the fleet's steps print and for the summary; progress and log lines go to standard error.
Exit codes: 0 all well, 1 some work failed or could not be started, 2 wrong usage, 130 interrupted; SIGTERM exits 0.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import sys
import traceback
from typing import Literal

import click

from poolkeeper import loading

from .cli_control import COMMANDS
from .errors import PoolkeeperError
from .fleet import Fleet, FleetError
from .output import fill_standard_streams
from .places import check_name
from .preflight_answer import is_preflight
from .sources import Sources, loaded_sources

__all__ = ["app", "main"]

Resume = Literal["interrupted", "failed", "never"]


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


def _checked_run_id(context: click.Context, option: click.Parameter, run_id: str) -> str:
    try:
        check_name(run_id)
    except ValueError as error:
        raise click.BadParameter(f"it {error}") from None
    return run_id


@app.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--run-id",
    default="default",
    show_default=True,
    metavar="ID",
    callback=_checked_run_id,
    help="Name this run of the fleet.",
)
@click.option(
    "--workers", type=click.IntRange(min=1), metavar="N", help="Worker processes; as many as CPUs if not given."
)
@click.option("--fresh", is_flag=True, help="Run everything, whatever an earlier run has done.")
@click.option("--retry-failed", is_flag=True, help="Run again what has failed in the last run, and nothing else.")
@click.option(
    "--logs", type=click.Choice(["files", "stdout"]), default="files", help="Copy what workers write to stdout."
)
@click.option("--detach", is_flag=True, help="Run it in the background; see `poolkeeper attach`.")
@click.option("--watch", is_flag=True, help="Reload it when its source files change.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON; what steps print goes to stderr.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS]...")
@click.pass_context
def run(
    context: click.Context,
    file: str,
    run_id: str,
    workers: int | None,
    fresh: bool,
    retry_failed: bool,
    logs: str,
    detach: bool,
    watch: bool,
    as_json: bool,
    arguments: tuple[str, ...],
) -> None:
    """Run the fleet that FILE declares; ARGS become its sys.argv[1:].

    A run that was interrupted goes on where it was; after one that was finished a new one begins.
    """
    if fresh and retry_failed:
        raise click.UsageError("--fresh runs everything, --retry-failed what has failed: give one of them")
    fleet = loading.load_fleet(file, arguments)
    sources = loaded_sources() if watch else None  # as early as may be: what changes from now on has not been loaded
    fleet.plan()
    if is_preflight():
        _answer(fleet, file)
        return
    if detach:
        context.exit(_start_in_background(_keeper_name(fleet, file), run_id))
    resume: Resume = "never" if fresh else "failed" if retry_failed else "interrupted"
    code = _run_fleet(fleet, file, run_id, workers, resume, mirror=logs == "stdout", as_json=as_json, sources=sources)
    context.exit(code)


INTERRUPTED = 130

UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What standard output may come to: its reader is gone, its disk full, its terminal lost."""

for _command in COMMANDS:
    app.add_command(_command)


def main() -> None:
    """Run the command line and exit the process; as pid 1 of a container, leave that part to a small init."""
    fill_standard_streams()
    if os.getpid() == 1:
        from .init_process import leave_pid_one

        leave_pid_one()
    sys.exit(_main())


def _main() -> int:
    # As early as may be, though not in pid 1: what an earlier program has left, and how a re-exec is to start this one.
    from . import inheritance, startup  # noqa: F401

    try:
        code = app.main(prog_name="poolkeeper", standalone_mode=False)
        sys.stdout.flush()
    except click.Abort:  # click's word for Ctrl-C
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except FleetError as error:
        _show_cause(error)
        click.echo(f"poolkeeper: {error}", err=True)
        return 2
    except PoolkeeperError as error:
        click.echo(f"poolkeeper: {error}", err=True)
        return 1
    except OSError as error:
        if error.filename is not None or error.errno not in UNWRITABLE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left would be tried once more at exit
        if error.errno != errno.EPIPE:  # as in `poolkeeper run ... | head`: nobody wants to hear more
            click.echo(f"poolkeeper: cannot write to standard output: {error.strerror}", err=True)
        return 1
    return code if isinstance(code, int) else 0


def _run_fleet(
    fleet: Fleet,
    file: str,
    run_id: str,
    workers: int | None,
    resume: Resume,
    *,
    mirror: bool,
    as_json: bool,
    sources: Sources | None,
) -> int:
    from poolkeeper import logs

    from .fleet_run import run_program
    from .pool import Keeper
    from .reexec import PROCESS

    logs.configure(lambda line: click.echo(line, nl=False, err=True), colour=sys.stderr.isatty())
    name = PROCESS.owned_as = _keeper_name(fleet, file)
    try:
        keeper = Keeper(
            workers,
            name=name,
            run_id=run_id,
            resources=fleet.resources,
            resume=resume,
            durability=fleet.keeping.durability,
            keep_runs=fleet.keeping.keep_runs,
            orphan_grace=fleet.keeping.orphan_grace,
            reconnect_grace=fleet.keeping.reconnect_grace,
            # A service that starts again shall not import the file anew.
            preload=[os.path.splitext(os.path.basename(file))[0]] if fleet.services else (),
        )
    except ValueError as error:  # more workers than fit
        raise click.UsageError(str(error)) from None
    return run_program(fleet, keeper, run_id=run_id, mirror=mirror, as_json=as_json, sources=sources)


def _start_in_background(name: str, run_id: str) -> int:
    """Have the fleet run without a terminal; return 0 if it does, or has done all that it has to do."""
    from .background import start_in_background
    from .startup import STARTUP

    started = start_in_background(STARTUP, "--detach", name, run_id)
    label = f"{name}/{run_id}"
    if started.exit_code is not None:
        if started.exit_code != 0 and not started.text:  # as where the disk is full
            why = f"process {started.pid} has ended with exit code {started.exit_code}, and could not write why"
            raise PoolkeeperError(f"{label}: {why} to {started.output}; without --detach it would say so here")
        click.echo(started.text, nl=False, err=started.exit_code != 0)
        return 0 if started.exit_code == 0 else 1
    click.echo(f"{label}: runs as process {started.pid}, and prints to {started.output}")
    for verb, what in (("status", "how it is"), ("attach", "its progress, to the end"), ("shutdown", "ends it")):
        click.echo(f"  {f'poolkeeper {verb} -F {label}':<{len(label) + 26}}{what}")
    return 0


def _answer(fleet: Fleet, file: str) -> None:
    """Say that a re-exec would find the fleet and a whole poolkeeper."""
    from . import fleet_run  # noqa: F401 - and with it all else that a run needs
    from .preflight_answer import answer

    answer(keeper=_keeper_name(fleet, file))


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
