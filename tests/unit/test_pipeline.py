"""The pipeline's parts: a ledger that notices, effects that happen once, an index that follows, an audit that fails."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pipeline
import pytest
from exactly_once.audit import AuditFailed, audit, compare_index
from exactly_once.definitions import as_json, record_of
from exactly_once.effects import begin, digest_of, have_effect, ledger_of, place_of
from exactly_once.index import Index
from exactly_once.ledger import Chain, Entry, Kind, Ledger, LedgerError
from exactly_once.report import report
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from poolkeeper import BatchResult, TaskResult, TaskStatus

KEYS = ("a.py", "b.py", "c.py")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


def a_ledger(ledger: Ledger) -> list[bytes]:
    """Write a whole run and return its lines."""
    ledger.write(Kind.BEGIN)
    for number, key in enumerate(KEYS):
        ledger.write(Kind.EXECUTION, key, attempt=1)
        ledger.write(Kind.EFFECT, key, f"{number:032x}", 1)
    ledger.write(Kind.END)
    return ledger.path.read_bytes().splitlines(keepends=True)


class TestLedger:
    def test_it_gives_back_what_was_written(self, ledger: Ledger) -> None:
        odd = 'a\n"b\\\udcff,"sum":"x'
        ledger.write(Kind.BEGIN)
        ledger.write(Kind.EFFECT, odd, "d" * 32, 7)
        (begun, effect), torn = ledger.read()
        assert (begun.seq, begun.kind, torn) == (1, Kind.BEGIN, 0)
        assert effect[:7] == (2, Kind.EFFECT, ledger.path.parent.name, odd, "d" * 32, 7, os.getpid())

    @given(data=st.data())
    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_whatever_is_changed_is_noticed_by_the_audit(self, ledger: Ledger, data: st.DataObject) -> None:
        ledger.path.unlink(missing_ok=True)
        lines = a_ledger(ledger)
        place = data.draw(st.integers(0, len(lines) - 1))
        other = data.draw(st.integers(0, len(lines) - 1).filter(lambda number: number != place))
        line = lines[place]
        at = data.draw(st.integers(0, 1000)) % len(line)  # how long a line is depends on the time of day
        way = data.draw(st.sampled_from(["edit", "cut", "remove", "repeat", "swap", "move"]))
        if way == "edit":
            lines[place] = line[:at] + bytes([line[at] ^ data.draw(st.integers(1, 255))]) + line[at + 1 :]
        elif way == "cut":
            lines[place] = line[:at] + line[at + 1 :]
        elif way == "remove":
            del lines[place]
        elif way == "repeat":
            lines.insert(other, line)
        elif way == "swap":
            lines[place], lines[other] = lines[other], line
        else:
            lines.insert(other, lines.pop(place))
        ledger.path.write_bytes(b"".join(lines))
        with pytest.raises((LedgerError, AuditFailed)):
            check(ledger)

    @pytest.mark.parametrize("length", [1, 10, 44, 60, 150])
    def test_a_line_that_a_death_cut_short_is_passed_over_and_counted(self, ledger: Ledger, length: int) -> None:
        ledger.write(Kind.BEGIN)
        (begun,), _ = ledger.read()
        chain = Chain()
        chain.take(ledger.path.read_bytes()[:-1])
        fragment = Entry(2, Kind.EFFECT, "run", "key", "digest", 1, 1, 1.0).line(chain.sum)[:length]
        with ledger.path.open("ab") as file:
            file.write(fragment)
        assert ledger.read() == ([begun], 1)
        after = ledger.write(Kind.EFFECT, "key", "digest")
        assert after.seq == 2
        assert ledger.read() == ([begun, after], 1)

    def test_a_line_that_lacks_no_more_than_its_line_feed_counts(self, ledger: Ledger) -> None:
        a_ledger(ledger)
        os.truncate(ledger.path, ledger.path.stat().st_size - 1)
        ledger.write(Kind.END)
        entries, torn = ledger.read()
        assert (len(entries), torn) == (9, 0)

    def test_a_line_that_was_slipped_in_is_no_line_cut_short(self, ledger: Ledger) -> None:
        lines = a_ledger(ledger)
        ledger.path.write_bytes(b"".join([*lines[:3], b'{"after":"0123\n', *lines[3:]]))
        with pytest.raises(LedgerError, match="line 4 of the ledger is not as it was written"):
            ledger.read()

    def test_long_lines_are_found_again(self, ledger: Ledger) -> None:
        for _ in range(3):
            ledger.write(Kind.EXECUTION, "k" * 30_000)
        assert [entry.seq for entry in ledger.read()[0]] == [1, 2, 3]

    def test_who_dies_while_writing_lets_the_next_one_in(self, ledger: Ledger) -> None:
        pid = os.fork()
        if pid == 0:
            with ledger.writing() as pen:
                pen.write(Kind.BEGIN)
                os.kill(os.getpid(), 9)
        os.waitpid(pid, 0)
        assert ledger.write(Kind.END).seq == 2


def check(ledger: Ledger, outcomes: dict[str, str | None] | None = None) -> object:
    entries, torn = ledger.read()
    if outcomes is None:
        outcomes = {key: f"{number:032x}" for number, key in enumerate(KEYS)}
    return audit(entries, torn, outcomes.items(), lambda digest: digest)


class TestEffects:
    def test_two_executions_have_one_effect(self, tmp_path: Path) -> None:
        for attempt in (1, 2):
            begin(tmp_path, "a.py", attempt)
            digest = have_effect(tmp_path, "a.py", b"content", attempt)
        assert place_of(tmp_path, digest).read_bytes() == b"content"
        kinds = [entry.kind for entry in ledger_of(tmp_path).read()[0]]
        assert kinds == [Kind.EXECUTION, Kind.EFFECT, Kind.EXECUTION, Kind.FOUND]

    @pytest.mark.parametrize("left", ["{digest}.unfinished", "{digest}.json"])
    def test_a_death_between_file_and_line_is_mended(self, tmp_path: Path, left: str) -> None:
        digest = digest_of(b"content")
        place = place_of(tmp_path, digest).parent / left.format(digest=digest)
        place.parent.mkdir(parents=True)
        place.write_bytes(b"content" if left.endswith(".json") else b"con")
        assert have_effect(tmp_path, "a.py", b"content", 2) == digest
        assert [entry.kind for entry in ledger_of(tmp_path).read()[0]] == [Kind.EFFECT]
        assert [path.name for path in place.parent.iterdir()] == [f"{digest}.json"]

    def test_the_record_of_a_file(self) -> None:
        source = b"class A:\n    def b(self): pass\n\ndef c(): pass\n"
        record = record_of(Path("x.py"), source)
        found = [(each["name"], each["kind"], each["line"]) for each in record["definitions"]]
        assert found == [("A", "class", 1), ("A.b", "function", 2), ("c", "function", 4)]
        assert record_of(Path("x.py"), b"x = =")["broken"] == "syntax: invalid syntax"
        assert as_json(record_of(Path("x.py"), source)) == as_json(record)


def spoiled_by(ledger: Ledger, kind: str) -> dict[str, str | None]:
    """Write a run that is wrong in one way; return its outcomes."""
    outcomes: dict[str, str | None] = {"a.py": "a" * 32, "b.py": "b" * 32}
    ledger.write(Kind.BEGIN)
    ledger.write(Kind.EXECUTION, "a.py")
    ledger.write(Kind.EFFECT, "a.py", "a" * 32)
    if kind == "unexecuted":
        ledger.write(Kind.EFFECT, "b.py", "b" * 32)
    if kind in ("twice", "second"):
        ledger.write(Kind.EXECUTION, "b.py")
        ledger.write(Kind.EXECUTION, "b.py")
        ledger.write(Kind.EFFECT, "b.py", "b" * 32)
    if kind == "twice":
        ledger.write(Kind.EXECUTION, "b.py")
        ledger.write(Kind.EFFECT, "b.py", "b" * 32)
    if kind == "second":
        ledger.write(Kind.EXECUTION, "b.py")
        ledger.write(Kind.EFFECT, "b.py", "c" * 32)
    if kind == "unfound":
        ledger.write(Kind.EXECUTION, "b.py")
        ledger.write(Kind.FOUND, "b.py", "b" * 32)
    if kind == "other":
        ledger.write(Kind.EXECUTION, "b.py")
        ledger.write(Kind.EFFECT, "b.py", "c" * 32)
    if kind == "unknown":
        del outcomes["b.py"]
        ledger.write(Kind.EXECUTION, "b.py")
        ledger.write(Kind.EFFECT, "b.py", "b" * 32)
    if kind != "endless":
        ledger.write(Kind.END)
    return outcomes


class TestAudit:
    def test_repeats_are_counted(self, ledger: Ledger) -> None:
        ledger.write(Kind.BEGIN)
        ledger.write(Kind.EXECUTION, "a.py")
        ledger.write(Kind.BEGIN)
        for kind in (Kind.EXECUTION, Kind.EFFECT, Kind.EXECUTION, Kind.FOUND):
            ledger.write(kind, "a.py", "" if kind is Kind.EXECUTION else "a" * 32)
        ledger.write(Kind.END)
        ledger.write(Kind.EXECUTION, "a.py")  # of a worker that was taken for dead; it can do no harm any more
        entries, _ = ledger.read()
        figures = audit(entries, 3, [("a.py", "a" * 32), ("failed.py", None)], lambda digest: digest)
        assert (figures.keys, figures.outcomes, figures.effects, figures.executions) == (2, 1, 1, 4)
        assert (figures.repeats, figures.found, figures.begins, figures.torn) == (3, 1, 2, 3)
        assert figures.repeated == {"a.py": 4}

    def test_a_file_may_change_while_the_run_is_interrupted(self, ledger: Ledger) -> None:
        ledger.write(Kind.BEGIN)
        for digest in ("a" * 32, "b" * 32):
            ledger.write(Kind.EXECUTION, "a.py")
            ledger.write(Kind.EFFECT, "a.py", digest)
        ledger.write(Kind.END)
        entries, _ = ledger.read()
        assert audit(entries, 0, [("a.py", "b" * 32)], lambda digest: digest).superseded == 1

    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            ("twice", r"b\.py has had its effect twice, in lines 6 and 8"),
            ("second", r"b\.py has a second effect, c+ in line 8, and was not executed after it"),
            ("none", r"b\.py has no effect, but the outcome b+"),
            ("other", r"b\.py has other effects than the outcome b+"),
            ("unexecuted", r"tells of an effect of b\.py that it has not executed"),
            ("unfound", r"line 5: b\.py found an effect that had not happened"),
            ("unknown", r"b\.py has an effect, but no outcome"),
            ("endless", "has no end mark after its last effect"),
        ],
    )
    def test_it_fails(self, ledger: Ledger, kind: str, message: str) -> None:
        outcomes = spoiled_by(ledger, kind)
        with pytest.raises(AuditFailed, match=message):
            check(ledger, outcomes)

    @pytest.mark.parametrize(
        ("look", "message"),
        [(lambda _: None, "its file is not there"), (lambda _: "e" * 32, "has another content")],
    )
    def test_it_looks_at_the_files(self, ledger: Ledger, look: Callable[[str], str | None], message: str) -> None:
        a_ledger(ledger)
        entries, _ = ledger.read()
        outcomes = [(key, f"{number:032x}") for number, key in enumerate(KEYS)]
        with pytest.raises(AuditFailed, match=message):
            audit(entries, 0, outcomes, look)

    def test_two_outcomes_of_a_task_are_one_too_many(self, ledger: Ledger) -> None:
        a_ledger(ledger)
        entries, _ = ledger.read()
        outcomes = [(key, f"{number:032x}") for number, key in enumerate(KEYS)]
        with pytest.raises(AuditFailed, match=r"a\.py has two outcomes"):
            audit(entries, 0, [*outcomes, outcomes[0]], lambda digest: digest)


def a_run(folder: Path, files: int = 5) -> dict[str, int]:
    """Have some effects; return how many definitions each digest stands for."""
    ledger_of(folder).write(Kind.BEGIN)
    expected = {}
    for number in range(files):
        path = f"{number}.py"
        record = record_of(Path(path), b"def f(): pass\n" * number)
        begin(folder, path, 1)
        expected[have_effect(folder, path, as_json(record), 1)] = number
    return expected


class TestIndex:
    def test_it_takes_in_each_effect_once_whoever_opens_it(self, tmp_path: Path) -> None:
        expected = a_run(tmp_path)
        for _ in range(3):
            with closing(Index(tmp_path)) as index:
                index.count_start()
                while index.take_in():
                    pass
        end = ledger_of(tmp_path).write(Kind.END).seq
        with closing(Index(tmp_path)) as index:
            assert index.position.ended == 0
            index.take_in()
            entries, _ = ledger_of(tmp_path).read()
            compare_index(entries, index.effects(), expected, index.sizes())
            assert (index.position.ended, index.position.starts) == (end, 3)
            assert index.frequent(1) == [("function", "f", 10)]

    def test_a_death_leaves_neither_rows_nor_position(self, tmp_path: Path) -> None:
        expected = a_run(tmp_path)
        last = place_of(tmp_path, [*expected][-1])
        content = last.read_bytes()
        last.unlink()
        with closing(Index(tmp_path)) as index:
            with pytest.raises(FileNotFoundError):
                index.take_in()
            assert (index.effects(), index.position.offset) == ([], 0)
            last.write_bytes(content)
            index.take_in()
            compare_index(ledger_of(tmp_path).read()[0], index.effects(), expected, index.sizes())

    def test_a_line_that_is_still_being_written_waits(self, tmp_path: Path) -> None:
        a_run(tmp_path, 1)
        path = ledger_of(tmp_path).path
        whole = path.read_bytes()
        path.write_bytes(whole[:-20])
        with closing(Index(tmp_path)) as index:
            index.take_in()
            assert index.effects() == []
            path.write_bytes(whole)
            index.take_in()
            assert len(index.effects()) == 1

    def test_what_it_lacks_or_has_twice_is_noticed(self, tmp_path: Path) -> None:
        expected = a_run(tmp_path)
        with closing(Index(tmp_path)) as index:
            index.take_in()
            effects, sizes = index.effects(), index.sizes()
        entries, _ = ledger_of(tmp_path).read()
        with pytest.raises(AuditFailed, match="the index lacks the effect"):
            compare_index(entries, effects[1:], expected, sizes)
        with pytest.raises(AuditFailed, match="too often"):
            compare_index(entries, [*effects, effects[2]], expected, sizes)
        with pytest.raises(AuditFailed, match="in another order"):
            compare_index(entries, effects[::-1], expected, sizes)
        with pytest.raises(AuditFailed, match="has 0 definitions of the effect"):
            compare_index(entries, effects, expected, {})


def test_the_report_shows_what_was_repeated(ledger: Ledger) -> None:
    ledger.write(Kind.BEGIN)
    for _ in range(2):
        ledger.write(Kind.EXECUTION, "odd\udcff.py")
    ledger.write(Kind.EFFECT, "odd\udcff.py", "a" * 32)
    ledger.write(Kind.END)
    entries, torn = ledger.read()
    figures = audit(entries, torn, [("odd\udcff.py", "a" * 32)], lambda digest: digest)
    console = Console(width=100)
    with console.capture() as capture:
        console.print(report(figures, reused=0, starts=1, names=[("function", "f", 3)], folder=Path("out")))
    text = capture.get()
    assert "1 outcomes, 1 effects, each once; 1 repeated execution\n" in text
    assert r"odd\udcff.py" in text


def test_a_run_that_was_begun_elsewhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = TaskResult(TaskStatus.SUCCEEDED, 0, "folder", returned="/elsewhere/out/pipeline/runs/1")
    with pytest.raises(RuntimeError, match="begin anew with --fresh"):
        pipeline.prepare(BatchResult("choose", (chosen,)))


def test_only_the_latest_runs_are_kept(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / "runs" / str(number)).mkdir(parents=True)
    pipeline.forget_old_runs(tmp_path / "runs" / "1")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["1", "3", "4", "5"]
