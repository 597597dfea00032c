"""The log writer by itself, as the fork server uses it, in a process that has no threads."""

from __future__ import annotations

from pathlib import Path

from tests.scripts import run_script

START = """
    import os, select, signal, sys
    from pathlib import Path
    from poolkeeper.logreader import read_logs
    from poolkeeper.logwriter import LogWriter

    folder = Path("logs")
    folder.mkdir()
    logs = LogWriter(str(folder), report_seconds=SECONDS)
    poll = select.poll()
    logs.watch(poll)

    def start(label, stem, attempt, *lines):
        pipe = logs.open(label, stem, attempt)
        pid = os.fork()
        if pid == 0:
            logs.leave()
            fd = pipe.take()
            for line in lines:
                os.write(fd, line)
            os._exit(0)
        logs.announce(pipe, pid)
        return pipe, pid

    def end(pipe, pid, report):
        os.waitpid(pid, 0)
        logs.hold(pipe, report)
        while True:
            reports = logs.tend()
            if reports:
                return reports
            poll.poll(logs.timeout())

    def show(*names):
        for line in read_logs(folder, names or None):
            print(line.stem, line.label, line.attempt, line.words)
"""


def run(folder: Path, source: str, *, report_seconds: float = 20.0) -> str:
    return run_script(folder, START.replace("SECONDS", str(report_seconds)) + source)


def test_the_starts_of_a_service_share_a_file_and_are_told_apart(tmp_path: Path) -> None:
    shown = run(
        tmp_path,
        """
    for attempt in (1, 2, 3):
        print(end(*start("web", "web", attempt, b"up\\n", b"down"), f"exit {attempt}"))
    os.waitpid(start("web:1", "web", 1, b"the other replica\\n")[1], 0)
    logs.finish(10)
    show()
    """,
    )
    exits = [f"['exit {attempt}']" for attempt in (1, 2, 3)]
    lines = [f"web web {attempt} {text}" for attempt in (1, 2, 3) for text in ("up", "down")]
    assert shown.splitlines() == [*exits, *lines, "web web:1 1 the other replica"]


def test_many_streams_at_once_lose_nothing(tmp_path: Path) -> None:
    shown = run(
        tmp_path,
        """
    children = [
        start(f"w{number}", f"w{number % 5}", 1, *(b"%d %d\\n" % (number, count) for count in range(1000)))
        for number in range(20)
    ]
    for _, pid in children:
        os.waitpid(pid, 0)
    logs.finish(20)
    lines = list(read_logs(folder))
    for number in range(20):
        own = [line for line in lines if line.label == f"w{number}"]
        assert [line.words for line in own] == [f"{number} {count}" for count in range(1000)]
        assert {line.stem for line in own} == {f"w{number % 5}"}
    print(len(lines))
    """,
    )
    assert shown == "20000\n"


def test_what_is_in_the_pipe_when_the_log_writer_dies_is_read_by_the_next(tmp_path: Path) -> None:
    shown = run(
        tmp_path,
        """
    first = logs.pid
    os.kill(first, signal.SIGSTOP)
    children = [start("w", "w", attempt, b"said to nobody\\n") for attempt in (1, 2)]
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    logs.reaped(first)
    assert logs.pid is None
    while logs.pid is None:
        poll.poll(logs.timeout())
        logs.tend()
    for child in children:
        print(end(*child, "exit"))
    logs.finish(10)
    show()
    """,
    )
    assert shown.splitlines() == [*["['exit']"] * 2, "w w 1 said to nobody", "w w 2 said to nobody"]


def test_a_stopped_log_writer_is_told_later_and_holds_a_report_up_for_a_moment_only(tmp_path: Path) -> None:
    shown = run(
        tmp_path,
        """
    os.kill(logs.pid, signal.SIGSTOP)
    children = [start("w", f"w{number}", 1, b"x\\n") for number in range(50)]
    for number, child in enumerate(children):
        os.waitpid(child[1], 0)
        logs.hold(child[0], number)
    held = set(range(50))
    while held:
        poll.poll(logs.timeout())
        held -= set(logs.tend())
    os.kill(logs.pid, signal.SIGCONT)
    logs.finish(10)
    print(len(list(read_logs(folder))))
    """,
        report_seconds=0.05,
    )
    assert shown == "50\n"


def test_nothing_is_left_open(tmp_path: Path) -> None:
    shown = run(
        tmp_path,
        """
    before = len(os.listdir("/proc/self/fd"))
    for number in range(50):
        end(*start("w", "w", number, b"x\\n"), "exit")
    while True:
        poll.poll(10)
        logs.tend()
        if len(os.listdir("/proc/self/fd")) == before:
            break
    held = [os.readlink(f"/proc/{logs.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{logs.pid}/fd")]
    print(len([name for name in held if name.endswith(".log")]))
    logs.finish(10)
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        print("no child is left")
    """,
    )
    assert shown.splitlines() == ["0", "no child is left"]
