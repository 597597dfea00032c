"""The commands that look at a fleet and steer it, from another terminal than the one that runs it.

Exit codes of ``status``: 0 all that is wanted runs, 3 something wanted is down, 4 the keeper does not answer. The
others: 0, or 1 where it could not be done; 2 where it is not clear which fleet is meant.
"""

from __future__ import annotations

import contextlib
import json
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import click

from .control_client import CALL_TIMEOUT, ControlClient, KeeperUnreachable
from .errors import PoolkeeperError
from .homes import KeeperHome, NoSuchFleet, choose_home, find_homes
from .progress import duration
from .selection import check_names, is_meant
from .service_model import ServiceState
from .steering import PREFLIGHT_SECONDS, fleet_status, kill_survivors, known_names, reload_keeper, stacks

__all__ = ["COMMANDS"]

SETTLE_SECONDS = 60.0
"""How long it is waited for what was asked for, besides the time that services have to stop."""
LOOK_SECONDS = 0.05
LOOK_AGAIN_SECONDS = 0.2
TOP_SECONDS = 1.0
LONGEST_NUMBER = 20
DOWN = 3
UNKNOWN = 4
INTERRUPTED = 130

Command = Callable[..., None]


def _fleet(command: Command) -> Command:
    return click.option(
        "-F", "--fleet", "fleet", metavar="FLEET[/RUN_ID]", help="Which fleet; not needed if there is only one."
    )(command)


def _home(fleet: str | None) -> KeeperHome:
    try:
        return choose_home(fleet, find_homes())
    except NoSuchFleet as error:
        raise click.UsageError(str(error)) from None


@click.command()
@_fleet
@click.option("--json", "as_json", is_flag=True, help="Print everything that is known, as JSON.")
@click.pass_context
def status(context: click.Context, fleet: str | None, as_json: bool) -> None:
    """Show the services of a fleet, and whether its keeper runs."""
    data = _status_of(_home(fleet), context)
    if as_json:
        click.echo(json.dumps(data, indent=2))
    else:
        from .tables import status_table

        _console().print(status_table(data))
    context.exit(_health(data))


def _status_of(home: KeeperHome, context: click.Context) -> dict[str, Any]:
    try:
        return fleet_status(home)
    except KeeperUnreachable as error:
        click.echo(f"poolkeeper: {error}", err=True)
        context.exit(UNKNOWN)


def _health(data: dict[str, Any]) -> int:
    well = ("running", "completed")
    down = any(row["state"] == "failed" or (row["wanted"] and row["state"] not in well) for row in data["services"])
    return DOWN if down or data["keeper"] != "running" else 0


@click.command()
@_fleet
@click.pass_context
def top(context: click.Context, fleet: str | None) -> None:
    """Show services and workers, live, until Ctrl-C."""
    from .tables import top_table

    home = _home(fleet)
    before: dict[int, float] = {}
    looked = time.monotonic()
    with _screen() as show:
        while True:
            data = _status_of(home, context)
            now = time.monotonic()
            used = {
                row["pid"]: row["cpu_seconds"] or 0.0 for row in (*data["services"], *data["workers"]) if row["pid"]
            }
            share = {pid: (seconds - before[pid]) / (now - looked) for pid, seconds in used.items() if pid in before}
            before, looked = used, now
            show(top_table(data, share))
            try:
                if _reader_goes(TOP_SECONDS):
                    return
            except KeyboardInterrupt:
                return


@contextlib.contextmanager
def _screen() -> Iterator[Callable[[Any], None]]:
    """Return what shows one picture in the place of the one before; below it where there is no terminal."""
    from rich.live import Live

    console = _console()
    if not console.is_terminal:

        def show(picture: Any) -> None:
            console.print(picture)
            console.file.flush()

        yield show
        return
    with Live(console=console, auto_refresh=False, screen=True) as live:
        yield lambda picture: live.update(picture, refresh=True)


def _reader_goes(seconds: float) -> bool:
    """Wait; return whether standard output has nobody who reads it any more, as `poolkeeper logs -f | grep -m1 up`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(seconds * 1000))


@click.command()
@click.argument("services", nargs=-1, required=True, metavar="SERVICE...")
@_fleet
def start(services: tuple[str, ...], fleet: str | None) -> None:
    """Start services, and what they are after."""
    _ask(_home(fleet), "start", services, ("running", "completed", "failed", "backoff"))


@click.command()
@click.argument("services", nargs=-1, required=True, metavar="SERVICE...")
@_fleet
def stop(services: tuple[str, ...], fleet: str | None) -> None:
    """Stop services; they stay down until they are started."""
    _ask(_home(fleet), "stop", services, ("stopped", "completed", "failed"))


@click.command()
@click.argument("services", nargs=-1, required=True, metavar="SERVICE...")
@_fleet
def restart(services: tuple[str, ...], fleet: str | None) -> None:
    """Replace the processes of services, with the code on disk; refused if that cannot be loaded."""
    _ask(_home(fleet), "restart", services, ("running", "completed", "failed", "backoff"))


def _ask(home: KeeperHome, verb: str, services: Sequence[str], settled: Sequence[str]) -> None:
    """Ask for something, wait until each of the services has come to rest in one of the states, and say which."""
    seconds = PREFLIGHT_SECONDS if verb == "restart" else CALL_TIMEOUT
    with ControlClient(home.path, seconds) as client:
        deadline = SETTLE_SECONDS + (client.ask(verb, services=list(services)) or 0.0) + time.monotonic()
        while True:
            rows = [row for row in client.ask("status")["services"] if row["service"] in services]
            if all(row["state"] in settled for row in rows) or time.monotonic() >= deadline:
                break
            time.sleep(LOOK_SECONDS)
    for row in rows:
        detail = f" ({row['detail']})" if row["detail"] else ""
        click.echo(f"{row['name']}: {row['state']}{detail}")
    none = [name for name in services if not any(row["service"] == name for row in rows)] if verb != "stop" else []
    for name in none:
        click.echo(f"poolkeeper: {name} has no replicas: `poolkeeper scale {name}=1` gives it one", err=True)
    late = [row["name"] for row in rows if row["state"] not in settled]
    if late:
        click.echo(f"poolkeeper: {verb}: not done yet for {', '.join(late)}", err=True)
    if late or none or (verb != "stop" and any(row["state"] in ("failed", "backoff") for row in rows)):
        click.get_current_context().exit(1)


@click.command()
@click.argument("replicas", nargs=-1, required=True, metavar="SERVICE=N...")
@_fleet
def scale(replicas: tuple[str, ...], fleet: str | None) -> None:
    """Run services in so many processes each."""
    wanted = {}
    for word in replicas:
        name, separator, number = word.partition("=")
        if not separator or not name or not number.isdecimal() or len(number) > LONGEST_NUMBER:
            raise click.UsageError(f"{word!r}: write SERVICE=N, as web=3")
        wanted[name] = int(number)
    with ControlClient(_home(fleet).path) as client:
        client.ask("scale", replicas=wanted)
    for name, count in wanted.items():
        click.echo(f"{name}: {count} replica{'' if count == 1 else 's'}")


@click.command()
@_fleet
def reload(fleet: str | None) -> None:
    """Replace a fleet's keeper, in place, by a new process with the code that is on disk now."""
    home = _home(fleet)
    done = reload_keeper(home)
    click.echo(f"{home.label}: replaced in {done.seconds:.2f} s, {done.away:.2f} s of them without a keeper")


@click.command()
@_fleet
@click.pass_context
def attach(context: click.Context, fleet: str | None) -> None:
    """Show the progress of a fleet that runs elsewhere, until it ends; Ctrl-C leaves it running.

    The exit code is that of the run.
    """
    from rich.console import Console
    from rich.live import Live

    from .attachment import look_on, picture

    home = _home(fleet)
    terminal = Console(stderr=True)
    try:
        with Live(console=terminal, auto_refresh=False, transient=True) as live:

            def show(data: dict[str, Any]) -> None:
                if terminal.is_terminal:
                    live.update(picture(data, time.monotonic()), refresh=True)

            ended = look_on(home, show)
    except KeyboardInterrupt:
        click.echo(f"{home.label}: goes on; `poolkeeper attach` shows it again, `shutdown` ends it", err=True)
        context.exit(INTERRUPTED)
    if ended.outcome is not None:
        click.echo(f"{home.label}: {_ending(ended.outcome.data)}")
    elif ended.left:
        click.echo(f"{home.label}: its keeper is gone, and has left processes; the next one takes them over", err=True)
    else:
        click.echo(f"{home.label}: has ended")
    context.exit(ended.exit_code)


def _ending(data: dict[str, Any]) -> str:
    """Return how a run has ended, in a line or a few."""
    what = data["failure"] or data["stopped"] or ("all is done" if data["ok"] else "some work has failed")
    lines = [f"{what}, after {duration(data['seconds'])}"]
    lines += [
        f"  {name}: {batch['succeeded']} of {batch['tasks']} tasks succeeded" for name, batch in data["batches"].items()
    ]
    lines += [f"  {name}: {step['status']}" for name, step in data["steps"].items()]
    lines += [f"  {name}: not run, {reason}" for name, reason in data["skipped"].items()]
    return "\n".join(lines)


@click.command()
@_fleet
def shutdown(fleet: str | None) -> None:
    """End a fleet: its services in reverse order, then its keeper; also what a dead keeper has left."""
    home = _home(fleet)
    try:
        with ControlClient(home.path) as client:
            seconds = SETTLE_SECONDS + (client.ask("shutdown", reason="poolkeeper shutdown") or 0.0)
    except KeeperUnreachable:
        if home.running:
            raise
        left = kill_survivors(home.path)
        click.echo(f"{home.label}: no keeper was running, {len(left)} processes were left and are stopped")
        return
    deadline = time.monotonic() + seconds
    while _still_runs(home):
        if time.monotonic() >= deadline:
            click.echo(f"poolkeeper: {home.label} is still stopping{_what_goes_on(home)}", err=True)
            click.get_current_context().exit(1)
        time.sleep(LOOK_SECONDS)
    click.echo(f"{home.label}: down")


def _what_goes_on(home: KeeperHome) -> str:
    try:
        data = fleet_status(home)
    except PoolkeeperError:
        return ""
    rest = [state.value for state in ServiceState if state.at_rest]
    going = [f"{row['name']} is {row['state']}" for row in data["services"] if row["state"] not in rest]
    if data["running"]:
        going.append(f"{data['running']} task{'' if data['running'] == 1 else 's'} still run")
    return f": {', '.join(going)}" if going else ""


def _still_runs(home: KeeperHome) -> bool:
    return any(other.path == home.path and other.running for other in find_homes())


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-f", "--follow", "following", is_flag=True, help="Go on with what is written from now on.")
@click.option("--since", metavar="WHEN", help="Only what is younger: 10m, 2h, 09:00, 2026-11-21T09:00.")
@_fleet
def logs(names: tuple[str, ...], following: bool, since: str | None, fleet: str | None) -> None:
    """Print what services and workers have written, in the order of time."""
    from .logreader import follow, log_names, read_logs
    from .since import parse_since

    home = _home(fleet)
    folder = home.path / "logs"
    try:
        start_at = None if since is None else parse_since(since, datetime.now().astimezone())
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    files = {name.partition(":")[0] for name in names} or None
    if not set(names) <= set(log_names(folder)):
        labels = {line.label for line in read_logs(folder, files) if line.pid}
        check_names(names, {*log_names(folder), *labels, *known_names(home)})
    lines = follow(folder, files, start_at, wait=_reader_goes) if following else read_logs(folder, files, start_at)
    for line in lines:
        if line.stem in names or is_meant(line.label, names):
            click.echo(str(line))


@click.command()
@click.option("-f", "--follow", "following", is_flag=True, help="Go on with what happens from now on.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON.")
@_fleet
def events(following: bool, as_json: bool, fleet: str | None) -> None:
    """Print the changes of state of services, each with its reason."""
    from .event_log import follow_events, read_events

    home = _home(fleet)
    wait = partial(_reader_goes, LOOK_AGAIN_SECONDS)
    records = follow_events(home.path, wait=wait) if following else read_events(home.path)
    for record in records:
        click.echo(json.dumps(record) if as_json else _event(record))


def _event(record: dict[str, Any]) -> str:
    moment = datetime.fromtimestamp(record.get("time", 0.0)).astimezone().isoformat(sep=" ", timespec="milliseconds")
    pid = f" pid {record['pid']}" if record.get("pid") else ""
    reason = f": {record['reason']}" if record.get("reason") else ""
    return f"{moment}  {record.get('name') or 'fleet'}  {record.get('kind', '?').partition('.')[2]}{pid}{reason}"


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_fleet
def stack(names: tuple[str, ...], fleet: str | None) -> None:
    """Print where every worker and service is in its Python code, now."""
    home = _home(fleet)
    check_names(names, known_names(home))
    for each in stacks(home.path):
        if not is_meant(each.name, names):
            continue
        click.secho(f"{each.name} (pid {each.pid})", bold=True)
        click.echo(f"  {each.problem}" if each.problem else each.text.rstrip())
        click.echo()


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200)


COMMANDS = (status, top, attach, start, stop, restart, scale, reload, shutdown, logs, events, stack)
