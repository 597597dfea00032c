"""``command``: what it accepts, how it starts and ends programs, and what it says when they fail."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper import CommandFailed, command
from poolkeeper.calls import callable_name
from poolkeeper.program import Program
from tests.helpers import PATIENCE, is_running, wait_until
from tests.interruption import interrupted

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=10)


def output(program: Program, file: Path, *items: object) -> str:
    """What the program writes; it inherits our standard output, so another Python runs it."""
    script = "import pickle, sys; program, items = pickle.load(sys.stdin.buffer); print('first'); program(*items)"
    with open(file, "wb") as target:
        subprocess.run(
            [sys.executable, "-c", script], input=pickle.dumps((program, items)), stdout=target, check=True, timeout=60
        )
    first, _, rest = file.read_text().partition("\n")
    assert first == "first"  # what Python has held back comes before what the program writes
    return rest


# -- the value --------------------------------------------------------------------------------------------------------


@given(
    st.lists(TEXT.filter(bool), min_size=1, max_size=4), st.none() | TEXT, st.dictionaries(st.sampled_from("AB"), TEXT)
)
def test_it_is_a_value(argv: list[str], cwd: str | None, env: dict[str, str]) -> None:
    first = command(*argv, cwd=cwd, env=env)
    second = pickle.loads(pickle.dumps(first))
    assert first == second
    assert hash(first) == hash(second)
    assert repr(first) == repr(second)
    assert eval(repr(first), {"command": command}) == first
    assert first != command(*argv, "more", cwd=cwd, env=env)


def test_it_is_called_by_the_name_of_the_program() -> None:
    program = command("/usr/bin/convert", "a.png")
    assert program.__name__ == "convert"  # type: ignore[attr-defined]
    assert callable_name(program) == "convert"
    assert callable_name(pickle.loads(pickle.dumps(program))) == "convert"


def test_it_cannot_be_changed_from_outside() -> None:
    given = {"A": "1"}
    program = command("env", env=given)
    given["A"] = "2"
    assert program.env == {"A": "1"}
    with pytest.raises(TypeError):
        program.env["A"] = "3"  # type: ignore[index]
    with pytest.raises(AttributeError):
        program.cwd = "/"  # type: ignore[misc]


def test_paths_are_taken_as_text() -> None:
    assert command(Path("/bin/ls"), cwd=Path("/tmp"), env={"A": Path("/x")}) == command(
        "/bin/ls", cwd="/tmp", env={"A": "/x"}
    )


@pytest.mark.parametrize(
    ("argv", "options", "error", "message"),
    [
        ((), {}, ValueError, "needs the name of a program"),
        (("",), {}, ValueError, "needs the name of a program"),
        (("ls", 5), {}, TypeError, "text or a path, and 5 is neither"),
        ((b"ls",), {}, TypeError, "text or a path"),
        (("ls", "a\0b"), {}, ValueError, "must not hold a NUL"),
        (("ls",), {"cwd": 3}, TypeError, "cwd of a command"),
        (("ls",), {"env": {"A": 1}}, TypeError, r"env\['A'\]"),
        (("ls",), {"env": {"A=B": "1"}}, ValueError, "cannot be the name of a variable"),
        (("ls",), {"env": {"": "1"}}, ValueError, "cannot be the name of a variable"),
    ],
)
def test_what_cannot_be_run_is_refused_at_once(
    argv: tuple[str, ...], options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        command(*argv, **options)  # type: ignore[arg-type]


# -- as a task --------------------------------------------------------------------------------------------------------


def test_every_pair_of_braces_becomes_the_item(tmp_path: Path) -> None:
    program = command("printf", "%s|", "{}", "--in={}", "{}{}")
    assert output(program, tmp_path / "out", 5) == "5|--in=5|55|"
    assert output(program, tmp_path / "out", Path("a b")) == "a b|--in=a b|a ba b|"
    assert output(program, tmp_path / "out", "$HOME; {}") == "$HOME; {}|--in=$HOME; {}|$HOME; {}$HOME; {}|"
    assert output(program, tmp_path / "out", b"bytes") == "bytes|--in=bytes|bytesbytes|"


def test_the_number_of_items_must_fit() -> None:
    with pytest.raises(TypeError, match=r"no argument has a \{\}"):
        command("true")(1)
    with pytest.raises(TypeError, match="given 0"):
        command("echo", "{}")()
    with pytest.raises(TypeError, match="given 2"):
        command("echo", "{}")(1, 2)
    with pytest.raises(ValueError, match="NUL"):
        command("echo", "{}")("a\0b")


def test_directory_environment_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "kept")
    monkeypatch.setenv("CHANGED", "before")
    script = 'pwd; echo "$KEPT $CHANGED"; cat; echo end'
    program = command("sh", "-c", script, cwd=tmp_path, env={"CHANGED": "after"})
    assert output(program, tmp_path / "out").split("\n") == [str(tmp_path), "kept after", "end", ""]


def test_success_returns_nothing() -> None:
    assert command("true")() is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("exit 3", 3, "sh -c 'exit 3' ended with exit code 3"),
        ("kill -SEGV $$", -11, "sh -c 'kill -SEGV $$' was killed by signal 11 (SIGSEGV)"),
        ("exit 137", 137, "sh -c 'exit 137' ended with exit code 137 (by a shell: killed by SIGKILL)"),
    ],
)
def test_a_failure_says_which_program_ended_how(script: str, code: int, message: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        command("sh", "-c", script)()
    again = pickle.loads(pickle.dumps(caught.value))
    for error in (caught.value, again):
        assert (str(error), error.argv, error.exit_code) == (message, ("sh", "-c", script), code)


def failures(folder: Path) -> list[tuple[Program, str]]:
    (folder / "text").write_text("no program")
    (folder / "script").write_text("#!/no/such/interpreter\n")
    (folder / "script").chmod(0o700)
    (folder / "odd").write_bytes(b"\1\2\3")
    (folder / "odd").chmod(0o700)
    return [
        (command("no-such-program-here"), "not in any directory of PATH"),
        (command("/no/such/program"), "/no/such/program is not there"),
        (command("true", cwd="/no/such/place"), "its directory /no/such/place is not there"),
        (command(folder / "text"), "may not be executed"),
        (command(folder), "may not be executed"),
        (command("./script", cwd=folder), "interpreter that ./script names"),
        (command(folder / "odd"), "format"),
        (command("true", "x" * 10_000_000), "too long"),
        (command("true", env={"PATH": "/no/such"}), "not in any directory of PATH"),
    ]


def test_what_cannot_be_started_says_why(tmp_path: Path) -> None:
    for program, message in failures(tmp_path):
        with pytest.raises(CommandFailed, match=message) as caught:
            program()
        assert caught.value.exit_code is None
        assert len(str(caught.value)) < 1000


def test_an_exception_in_the_worker_ends_the_program(tmp_path: Path) -> None:
    script = "echo $$ > pid.new; mv pid.new pid; exec sleep 1000"
    before = signal.signal(signal.SIGALRM, _interrupt)
    try:
        threading.Thread(target=_alarm_when_there, args=(tmp_path / "pid",)).start()
        with pytest.raises(KeyboardInterrupt):
            command("sh", "-c", script, cwd=tmp_path)()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not is_running(int((tmp_path / "pid").read_text()))
    assert signal.set_wakeup_fd(-1) == -1


def test_an_exception_at_any_line_leaves_no_process() -> None:
    """Whatever interrupts us, the program is ended and awaited; a process that is forgotten would stay as a zombie."""
    before = signal.signal(signal.SIGALRM, _interrupt)
    try:
        line, cut = 0, True
        while cut:
            line += 1
            cut = interrupted(command("true"), line, _counts, _ring)
            assert psutil.Process().children() == [], f"interrupted at line {line}"
            assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGALRM, before)
    assert line > 100


def test_a_second_exception_does_not_keep_the_first_from_ending_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poolkeeper.program.TERM_SECONDS", 0.5)
    again = "trap 'kill -ALRM $PPID' TERM; echo $$ > pid.new; mv pid.new pid; while :; do sleep 0.01; done"
    before = signal.signal(signal.SIGALRM, _interrupt)
    try:
        threading.Thread(target=_alarm_when_there, args=(tmp_path / "pid",)).start()
        with pytest.raises(KeyboardInterrupt) as caught:
            command("sh", "-c", again, cwd=tmp_path)()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert isinstance(caught.value.__context__, KeyboardInterrupt)
    assert not is_running(int((tmp_path / "pid").read_text()))


MODULES = {"program", "held_signals", "subprocess"}


def _counts(frame: FrameType) -> bool:
    names = {frame.f_code.co_name, frame.f_back and frame.f_back.f_code.co_name}
    return (
        Path(frame.f_code.co_filename).stem in MODULES and "__del__" not in names
    )  # Python drops what is raised there


def _ring() -> None:
    signal.raise_signal(signal.SIGALRM)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _alarm_when_there(path: Path) -> None:
    wait_until(path.exists)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)  # type: ignore[arg-type]


def test_it_runs_outside_the_main_thread_too() -> None:
    outcome: list[object] = []

    def run() -> None:
        try:
            command("sh", "-c", "exit 3")()
        except CommandFailed as error:
            outcome.append(error.exit_code)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    assert outcome == [3]


def test_who_listens_for_signals_goes_on_listening() -> None:
    import socket

    mine, other = socket.socketpair()
    with mine, other:
        mine.setblocking(False)
        before = signal.set_wakeup_fd(mine.fileno())
        try:
            command("true")()
        finally:
            assert signal.set_wakeup_fd(before) == mine.fileno()


def test_a_program_does_not_inherit_that_workers_ignore_interrupts(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ignored = _ignored_signals(output(command("cat", "/proc/self/status"), tmp_path / "out"))
        command("sh", "-c", "true")()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert ignored == set()


def _ignored_signals(status: str) -> set[int]:
    (line,) = [line for line in status.splitlines() if line.startswith("SigIgn:")]
    mask = int(line.split()[1], 16)
    # 32 and 33 are the C library's own; its posix_spawn, which Python 3.13 uses, leaves them ignored.
    return {number for number in range(1, 65) if mask >> (number - 1) & 1} - {32, 33}


# -- as a service -----------------------------------------------------------------------------------------------------

EXEC = """
import os, pickle, signal, sys
from poolkeeper import CommandFailed
program, variables = pickle.load(sys.stdin.buffer)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, print)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("pid", os.getpid())
try:
    program.exec(variables)
except CommandFailed as error:
    print(error)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGUSR1) is print
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGTERM}
"""


def execute(program: Program, **variables: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", EXEC],
        input=pickle.dumps((program, variables)),
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    return done.stdout.decode().split("\n")


def test_exec_takes_the_place_of_the_process(tmp_path: Path) -> None:
    script = 'echo "pid $$"; pwd; echo "$A $B $C" "$@"'
    program = command("sh", "-c", script, "name", "{}", cwd=tmp_path, env={"A": "1", "B": "2"})
    pid, same, *rest = execute(program, B="3", C="4")
    assert pid == same
    assert rest == [str(tmp_path), "1 2 4 {}", ""]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_exec_leaves_no_signal_ignored_or_blocked() -> None:
    lines = "\n".join(execute(command("cat", "/proc/self/status")))
    assert _ignored_signals(lines) == set()
    assert "SigBlk:\t0000000000000000" in lines


def test_exec_of_what_cannot_be_started_says_why_and_undoes_what_it_did(tmp_path: Path) -> None:
    for program, message in failures(tmp_path):
        _, said, *_ = execute(program)
        assert "could not be started" in said
        assert message in said
