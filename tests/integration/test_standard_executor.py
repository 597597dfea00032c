"""The standard library's own executor tests, with ``Keeper`` in the executor's place.

The tests come from the ``test`` package of the running interpreter, or from the ``Lib`` folder of a CPython source
tree that ``POOLKEEPER_CPYTHON_TESTS`` names (of the running version, or near it). Where neither has them, this
module is skipped. Early versions of 3.11 have them in one file, later ones in a package: both forms are read.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import multiprocessing
import multiprocessing.util
import os
import sys
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import poolkeeper
from poolkeeper import PayloadError
from poolkeeper.errors import RemoteTraceback

VARIABLE = "POOLKEEPER_CPYTHON_TESTS"
SUITE = "test.test_concurrent_futures"
PARTS = (
    "util",
    "executor",
    "test_process_pool",
    "test_wait",
    "test_as_completed",
    "test_shutdown",
    "test_init",
    "test_deadlock",
)

BROKEN = "demands a broken pool: "
PRIVATE = "reads private attributes: "

EXCLUDED = {
    "ProcessPoolExecutorTest": {
        "test_killed_child": BROKEN + "after one worker's death, submit is to raise",
        "test_max_tasks_per_child_defaults_to_spawn_context": PRIVATE + "_mp_context",
        "test_python_finalization_error": BROKEN + "and replaces a private function of threading",
        "test_saturation": PRIVATE + "_processes, started for tasks whose argument cannot be pickled",
    },
    "ProcessPoolShutdownTest": {
        "test_context_manager_shutdown": PRIVATE + "_processes of ProcessPoolExecutor itself, not of executor_type",
        "test_del_shutdown": PRIVATE + "_executor_manager_thread, _processes, _call_queue",
        "test_processes_terminate": PRIVATE + "_processes, started for tasks whose argument cannot be pickled",
        "test_shutdown_no_wait": PRIVATE + "_executor_manager_thread, _processes, _call_queue",
    },
    "FailingInitializerMixin": {
        "test_initializer": BROKEN + "waits for _broken, after which submit is to raise",
    },
    "ExecutorDeadlockTest": {
        "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": PRIVATE + "replaces parts of the standard executor",
        "test_shutdown_deadlock_pickle": PRIVATE + "_executor_manager_thread",
    },
}
"""What is not run, by the class that defines it, and why."""

ONLY_THE_TASK_FAILS = {
    "test_error_at_task_unpickle",
    "test_exit_at_task_unpickle",
    "test_error_during_result_unpickle_in_result_handler",
    "test_exit_during_result_unpickle_in_result_handler",
}
"""Tests that demand a broken pool where a keeper has an answer for the one task: run, with PayloadError demanded."""


def _offer(lib: Path) -> None:
    """Make the ``test`` package of ``lib`` importable, here and in what this process starts, and nothing else of it."""
    if not (lib / "test" / "__init__.py").is_file():
        pytest.fail(f"{VARIABLE}={lib} is not the Lib folder of a CPython source tree: it has no test package")
    present = importlib.util.find_spec("test")
    if present is not None and present.origin and Path(present.origin).samefile(lib / "test" / "__init__.py"):
        return  # as in a worker, which has the path of the process that was here before
    place = tempfile.TemporaryDirectory(prefix="poolkeeper-suite-", ignore_cleanup_errors=True)
    atexit.register(place.cleanup)
    (Path(place.name) / "test").symlink_to(lib.resolve() / "test", target_is_directory=True)
    sys.path.insert(0, place.name)


def _suite() -> dict[str, Any]:
    """Everything that the standard library's tests define, by name; skips this module where there are none."""
    if VARIABLE in os.environ:
        _offer(Path(os.environ[VARIABLE]))
    try:
        found = importlib.util.find_spec(SUITE)
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip(
            f"this interpreter comes without {SUITE}; let {VARIABLE} name the Lib folder of a CPython source tree",
            allow_module_level=True,
        )
    names = [SUITE] if found.submodule_search_locations is None else [f"{SUITE}.{part}" for part in PARTS]
    return {name: value for module in names for name, value in vars(importlib.import_module(module)).items()}


suite = _suite()


class Keeper(poolkeeper.Keeper):
    """Gives what the tests read as private attributes, from what a keeper tells publicly."""

    @property
    def _max_workers(self) -> int:
        return self.max_workers

    @property
    def _processes(self) -> dict[int | None, Any]:
        return {worker.pid: worker for worker in self.status().workers if worker.state != "retiring"}


def _assert_python_ok(assert_python_ok: Callable[..., Any], option: str, script: str) -> Any:
    """Run a test's script, which imports the class of its executor from the standard library, with Keeper."""
    script = script.replace("from concurrent.futures import Keeper", "from poolkeeper import Keeper")
    # One of the scripts uses multiprocessing without importing it: the standard executor never runs it.
    return assert_python_ok(option, f"import multiprocessing, sys; sys.path[:] = {sys.path!r}\n{script}")


def _end_multiprocessing() -> None:
    """End the managers, and the servers that multiprocessing has started for them."""
    for process in multiprocessing.active_children():
        process.terminate()
        process.join()
    multiprocessing.util._cleanup_tests()


class InPlace(suite["ExecutorMixin"]):
    """A mixin as the tests have them for each executor; after each test nothing of it may be left."""

    executor_type = Keeper
    start_method = "forkserver"

    def setUp(self) -> None:
        self.addCleanup(_end_multiprocessing)
        for module in {sys.modules[cls.__module__] for cls in type(self).__mro__}:
            original = getattr(module, "assert_python_ok", None)
            if original is not None:
                replaced = lambda *args, original=original: _assert_python_ok(original, *args)  # noqa: E731
                self.enterContext(mock.patch.object(module, "assert_python_ok", replaced))
        self.enterContext(mock.patch("concurrent.futures.process._RemoteTraceback", RemoteTraceback))
        suite["support"].reap_children()  # which other tests have left to themselves, as by ``detach``
        suite["support"].environment_altered = False
        super().setUp()

    def tearDown(self) -> None:
        super().tearDown()
        assert not suite["support"].environment_altered, "threads or processes were left behind"

    def get_context(self) -> Any:
        return multiprocessing.get_context(self.start_method)


class ErrorsOfOneTask:
    """Comes before a mixin and changes what it demands; see ``ONLY_THE_TASK_FAILS``."""

    def _check_crash(self, error: type[BaseException], *args: Any, **kwargs: Any) -> None:
        if self._testMethodName in ONLY_THE_TASK_FAILS:
            error = PayloadError
        super()._check_crash(error, *args, **kwargs)


class Plain(InPlace):
    """``Keeper(5)``."""


class Spawn(InPlace):
    """``Keeper(5, mp_context=get_context("spawn"))``, which means ``start_method="loky"``."""

    ctx = start_method = "spawn"


def _excluded(mixin: type) -> dict[str, Any]:
    """Stand-ins for the tests of ``mixin`` that are not run, those of them that this version of the suite has."""
    reasons = EXCLUDED.get(mixin.__name__, {})
    present = [name for name in reasons if hasattr(mixin, name)]
    return {name: unittest.skip(reasons[name])(getattr(mixin, name)) for name in present}


for _mixin in (
    "ProcessPoolExecutorTest",
    "WaitTests",
    "AsCompletedTests",
    "ProcessPoolShutdownTest",
    "InitializerMixin",
    "FailingInitializerMixin",
    "ExecutorDeadlockTest",
):
    for _flavour in (Plain, Spawn):
        _name = f"Test{_flavour.__name__}{_mixin.removesuffix('Mixin').removesuffix('Tests').removesuffix('Test')}"
        _bases = (ErrorsOfOneTask, suite[_mixin], _flavour, suite["BaseTestCase"])
        globals()[_name] = type(_name, _bases, {"__module__": __name__, **_excluded(suite[_mixin])})
