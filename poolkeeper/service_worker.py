"""The process of a service: calls one callable, or becomes a program, and says how that has ended."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, NoReturn

from . import task_context
from .errors import PayloadError
from .limits import Limits
from .messages import Kind
from .page import new_page
from .payload import dumps_in_band, loads
from .process_setup import handle, settle_in, unblock_signals
from .program import Program
from .service_context import Asked, ServiceContext, ServiceDefinition
from .service_line import leave_words
from .service_model import ExitReason
from .task_context import wants_context
from .worker import leave
from .worker_config import WorkerConfig
from .worker_results import without_frames_of

__all__ = ["main", "rehearse"]

_SIGURG = int(signal.SIGURG)

DETAIL_BYTES = 16384
"""How much of a traceback travels to the keeper; all of it goes to the log."""


def main(config: WorkerConfig, plain: tuple[Any, ...], page: int | str, link: int) -> None:
    """Be a service: the target of a multiprocessing process; see ``worker.main`` for ``page`` and ``link``."""
    definition = ServiceDefinition(*plain)
    problem: OSError | ValueError | None = None
    try:
        settle_in(definition.tag, config.logs, definition.limits, inherit_output=config.inherit_output)
    except (OSError, ValueError) as error:
        problem = error
    os.environ.update(definition.environment)
    service = ServiceContext(config, definition, os.open(page, os.O_RDWR) if isinstance(page, str) else page, link)
    os.register_at_fork(
        before=service.about_to_fork, after_in_parent=service.has_forked, after_in_child=service.leave_to_parent
    )
    task_context.enter(service)
    try:
        if definition.stop_signal != signal.SIGKILL:
            handle(definition.stop_signal, service.asked_to_stop)
        if config.orphan_grace is not None and definition.stop_signal != signal.SIGURG:
            handle(_SIGURG, service.summoned)
        unblock_signals()
        status, words = _run(service, definition) if problem is None else (1, _unsettled(problem))
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - threads that are no daemons are part of it
    except Asked:
        status, words = 0, (ExitReason.RETURNED, "", "")
    if definition.stop_signal != signal.SIGKILL:
        signal.signal(definition.stop_signal, signal.SIG_IGN)
    _flush()
    if service.forked:
        os._exit(status)  # what was started before the fork is the parent's
    last = (words[0].value, words[1], words[2])
    if config.orphan_grace is not None and words[0] is not ExitReason.RETURNED:
        leave_words(config.logs, definition.tag, last)
    service.say((Kind.LAST_WORDS, *last), last=True)
    leave(status)


def rehearse(config: WorkerConfig) -> None:
    """Take the first steps of a service with nobody listening, so that their memory pages are this process' own."""
    ours, theirs = socket.socketpair()
    definition = ServiceDefinition(
        "", "", "", "", 0, 0, dumps_in_band((_flush, (), {})), tuple(sys.path), Limits(), {}, signal.SIGTERM, False, {}
    )
    service = ServiceContext(
        config._replace(orphan_grace=None),
        ServiceDefinition(*pickle.loads(pickle.dumps(tuple(definition)))),
        new_page(),
        theirs.detach(),
    )
    service.started()
    target, args, kwargs = _load(definition)
    target(*args, **kwargs)
    service.close()
    ours.close()


def _unsettled(error: Exception) -> Words:
    message = f"its process could not be set up as its WorkerPolicy says: {error}"
    with contextlib.suppress(Exception):
        sys.stderr.write(f"{message}\n")
    return ExitReason.RAISED, message, ""


Words = tuple[ExitReason, str, str]


def _run(service: ServiceContext, definition: ServiceDefinition) -> tuple[int, Words]:
    """Call the callable; return the exit status, and what to say of the end."""
    try:
        target, args, kwargs = _load(definition)
        if definition.program:
            _become(service, definition, target)
        service.started()
        try:
            _require_ended(target(*args, **kwargs))
        except BaseException:
            if service.resumed is not None:
                service.resumed.failed()
            raise
        if service.resumed is not None and not service.forked:
            service.resumed.returned()
    except Asked:
        raise
    except SystemExit as error:
        return _exited(error)
    except BaseException as error:
        if _comes_of_asking(error):
            raise Asked(0) from None
        return 1, _raised(error)
    return 0, (ExitReason.RETURNED, "", "")


def _require_ended(returned: object) -> None:
    """Raise TypeError where the callable has only made what is still to be run."""
    if isinstance(returned, CoroutineType | AsyncGeneratorType | GeneratorType):
        if not isinstance(returned, AsyncGeneratorType):
            returned.close()
        kind = type(returned).__name__.replace("_", " ")
        how = "for" if isinstance(returned, GeneratorType) else "asyncio.run"
        raise TypeError(f"it has returned a {kind} that nobody runs: a service is to run it itself, by {how}")


def _comes_of_asking(error: BaseException | None) -> bool:
    """Whether ``error`` is what somebody on the way, such as pickle, has made of the request to stop."""
    while error is not None:
        if isinstance(error, Asked):
            return True
        error = error.__cause__ or error.__context__
    return False


def _load(definition: ServiceDefinition) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    sys.path[:] = definition.path
    try:
        target, args, kwargs = loads(definition.blob)
    except PayloadError as error:
        raise PayloadError(
            f"service {definition.service} {error}; its process must be able to import the module that defines it"
        ) from error.__cause__
    if not definition.program and wants_context(target):
        args = (task_context.context(), *args)
    return target, args, kwargs


def _become(service: ServiceContext, definition: ServiceDefinition, program: Program) -> NoReturn:
    service.started()
    variables = definition.variables
    if "WATCHDOG_USEC" in variables:
        variables = {**variables, "WATCHDOG_PID": str(os.getpid())}
    program.exec(variables)


def _exited(error: SystemExit) -> tuple[int, Words]:
    code = error.code
    if code is None or code == 0:
        return 0, (ExitReason.RETURNED, "", "")
    if isinstance(code, int):
        return code & 0xFF, (ExitReason.EXIT_STATUS, f"exited with status {code & 0xFF}", "")
    sys.stderr.write(f"{code}\n")
    return 1, (ExitReason.EXIT_STATUS, f"exited with status 1: {code}", "")


def _raised(error: BaseException) -> Words:
    text = "".join(traceback.format_exception(without_frames_of(__file__, error)))
    with contextlib.suppress(Exception):
        sys.stderr.write(text)
    try:
        message = f"{type(error).__name__}: {error}"
    except Exception:  # its own __str__ raises
        message = type(error).__name__
    return ExitReason.RAISED, message[:1000], text[-DETAIL_BYTES:]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
