"""What is said of a dead worker, and of the task that went with it."""

from __future__ import annotations

from pathlib import Path

from poolkeeper.commands import Fail, Failure
from poolkeeper.errors import TaskTimeout
from poolkeeper.ledger import Call, Options, Task
from poolkeeper.losses import TaskQuarantined, WorkerLost, WorkerStartFailed
from poolkeeper.postmortem import TAIL_LINES, Postmortem
from poolkeeper.roster import Exit, Worker


def a_death(folder: Path, failure: Failure, *, deaths: int = 3) -> BaseException:
    worker = Worker(7, 0, None)
    worker.pid = 4711
    worker.exit = Exit(-11, 2**20)
    task = Task(Call("render", b"", Options(timeout=2.5)), (), "scene-1")
    task.deaths = deaths
    return Postmortem(folder).explain(Fail(task, failure, worker, "the initializer raised"))


def test_a_quarantine_names_task_key_worker_signal_and_memory(tmp_path: Path) -> None:
    error = a_death(tmp_path, Failure.QUARANTINED)
    assert isinstance(error, TaskQuarantined)
    for part in ("task render", "'scene-1'", "ended 3 workers", "worker 7", "pid 4711", "SIGSEGV", "1 MiB"):
        assert part in str(error)
    assert error.report is not None
    assert (error.report.exitcode, error.report.out_of_memory, error.deaths) == (-11, "no", 3)


def test_a_loss_says_that_it_must_not_run_again(tmp_path: Path) -> None:
    error = a_death(tmp_path, Failure.LOST, deaths=0)
    assert isinstance(error, WorkerLost)
    assert "deaths=0 forbids" in str(error)


def test_a_timeout_names_its_seconds_and_a_failed_start_its_reason(tmp_path: Path) -> None:
    timeout = a_death(tmp_path, Failure.TIMEOUT)
    assert isinstance(timeout, TaskTimeout)
    assert "2.5 s" in str(timeout)
    start = a_death(tmp_path, Failure.NO_WORKERS)
    assert isinstance(start, WorkerStartFailed)
    assert "the initializer raised" in str(start)


def test_the_log_gives_its_last_lines_and_the_crash_its_innermost_frames(tmp_path: Path) -> None:
    (tmp_path / "worker-7.log").write_text("".join(f"said {number}\n" for number in range(100)))
    (tmp_path / "worker-7.crash").write_text("".join(f"frame {number}\n" for number in range(100)))
    lines = Postmortem(tmp_path).report(7, 4711, None).log_tail.splitlines()
    assert lines[:TAIL_LINES] == [f"said {number}" for number in range(100 - TAIL_LINES, 100)]
    assert lines[TAIL_LINES:] == [f"frame {number}" for number in range(TAIL_LINES)]


def test_binary_and_missing_logs_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "worker-7.log").write_bytes(b"\xff\xfe\0 and then\n")
    assert "and then" in Postmortem(tmp_path).report(7, 1, None).log_tail
    assert Postmortem(tmp_path / "nowhere").report(7, 1, None).log_tail == ""
