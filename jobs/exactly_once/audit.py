"""The audit: do ledger, outcomes, files and index say the same? Pure, but for the look at the files.

What must hold:

- the ledger is what was written, and has its end mark after the last effect;
- no effect stands in it twice, and each one behind an execution of the same task by the same process;
- every outcome has exactly one effect, which is the one that it names, and every effect has an outcome;
- every effect is there, and its content has its digest;
- the index has taken in every effect once, in the order of the ledger.

What may be, and is counted: executions beyond the first of a task, because a process was killed under it; those among
them that found the effect done; lines that a dying writer cut short; effects of earlier contents of a file, if it was
changed while the run was interrupted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from exactly_once.ledger import Entry, Kind

__all__ = ["AuditFailed", "Figures", "audit", "compare_index"]

SHOWN = 10


class AuditFailed(Exception):
    """Ledger, outcomes, files and index contradict each other; the message says where."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(problems)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        more = len(self.problems) - SHOWN
        lines = [*self.problems[:SHOWN], *([f"and {more:,} more"] if more > 0 else [])]
        return "the ledger does not prove that each effect happened once: " + "; ".join(lines)


@dataclass(frozen=True, slots=True)
class Figures:
    """What the ledger tells of a run; ``repeated`` maps the keys that were executed more than once to how often."""

    keys: int
    outcomes: int
    effects: int
    superseded: int
    executions: int
    found: int
    begins: int
    processes: int
    torn: int
    repeated: Mapping[str, int]

    @property
    def repeats(self) -> int:
        """Executions beyond the first of each task."""
        return sum(self.repeated.values()) - len(self.repeated)


def audit(
    entries: Iterable[Entry],
    torn: int,
    outcomes: Iterable[tuple[str, str | None]],
    look: Callable[[str], str | None],
) -> Figures:
    """Return the figures of a run whose ledger proves what it should.

    Args:
        entries: the ledger.
        torn: how many of its lines were cut short.
        outcomes: key and digest of each outcome that was delivered; None instead of a digest for a failure.
        look: returns the digest of the content that lies where the effect of a digest should be, None for nothing.

    Raises:
        AuditFailed: if it does not.
    """
    book = _Book(entries)
    problems = book.problems
    known: dict[str, str | None] = {}
    for key, digest in outcomes:
        if key in known:
            problems.append(f"{key} has two outcomes")
        known[key] = digest
    superseded = 0
    for key, digest in known.items():
        superseded += book.settle(key, digest)
    problems += [f"{key} has an effect, but no outcome" for key in book.effects if key not in known]
    for digest in {digest for digests in book.effects.values() for digest in digests}:
        found = look(digest)
        if found is None:
            problems.append(f"the effect {digest} is in the ledger, but its file is not there")
        elif found != digest:
            problems.append(f"the file of the effect {digest} has another content")
    if problems:
        raise AuditFailed(problems)
    executed = Counter({key: len(moments) for key, moments in book.executions.items()})
    return Figures(
        keys=len(known),
        outcomes=sum(digest is not None for digest in known.values()),
        effects=sum(map(len, book.effects.values())),
        superseded=superseded,
        executions=executed.total(),
        found=book.found,
        begins=book.begins,
        processes=len(book.processes),
        torn=torn,
        repeated={key: count for key, count in executed.most_common() if count > 1},
    )


class _Book:
    """The ledger by keys; ``problems`` holds what is wrong with it by itself."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.problems: list[str] = []
        self.effects: defaultdict[str, dict[str, int]] = defaultdict(dict)
        """For each key the digests of its effects, and the numbers of their lines."""
        self.executions: defaultdict[str, list[int]] = defaultdict(list)
        self.processes: set[int] = set()
        self.found = 0
        self.begins = 0
        self._running: set[tuple[str, int]] = set()
        self._ended = False
        self._runs: set[str] = set()
        for entry in entries:
            self._take(entry)
        if not self.begins:
            self.problems.append("the ledger is empty, or has lost its beginning")
        if not self._ended:
            self.problems.append("the ledger has no end mark after its last effect: it has lost its end")
        if len(self._runs) > 1:
            self.problems.append(f"the ledger has lines of several runs: {', '.join(sorted(self._runs))}")

    def _take(self, entry: Entry) -> None:
        self._runs.add(entry.run)
        if entry.kind is Kind.BEGIN:
            self.begins += 1
        elif not self.begins:
            self.problems.append(f"line {entry.seq} ({entry.kind}) stands before the beginning")
        if entry.kind is Kind.END:
            self._ended = True
        elif entry.kind is Kind.EXECUTION:
            self.executions[entry.key].append(entry.seq)
            self.processes.add(entry.pid)
            self._running.add((entry.key, entry.pid))
        elif entry.kind is not Kind.BEGIN:
            self._take_end_of_execution(entry)

    def _take_end_of_execution(self, entry: Entry) -> None:
        if (entry.key, entry.pid) not in self._running:
            self.problems.append(
                f"line {entry.seq}: process {entry.pid} tells of an effect of {entry.key} that it has not executed"
            )
        self._running.discard((entry.key, entry.pid))
        earlier = self.effects[entry.key].get(entry.digest) if entry.key in self.effects else None
        if entry.kind is Kind.FOUND:
            self.found += 1
            if earlier is None:
                self.problems.append(f"line {entry.seq}: {entry.key} found an effect that had not happened")
            return
        self._ended = False
        if earlier is not None:
            self.problems.append(f"{entry.key} has had its effect twice, in lines {earlier} and {entry.seq}")
        self.effects[entry.key][entry.digest] = entry.seq

    def settle(self, key: str, digest: str | None) -> int:
        """Compare the effects of a task with its outcome; return how many of them are of earlier contents."""
        effects = self.effects.get(key, {})
        if digest is None:  # it failed: it may have been killed after its effect
            return 0
        if digest not in effects:
            what = "has other effects than" if effects else "has no effect, but"
            self.problems.append(f"{key} {what} the outcome {digest}")
        others = {other: seq for other, seq in effects.items() if other != digest}
        last = max(self.executions.get(key, ()), default=0)
        self.problems += [
            f"{key} has a second effect, {other} in line {seq}, and was not executed after it"
            for other, seq in others.items()
            if seq > last
        ]
        return len(others)


def compare_index(
    entries: Iterable[Entry],
    indexed: Sequence[tuple[int, str]],
    expected: Mapping[str, int],
    sizes: Mapping[int, int],
) -> None:
    """Compare the index with the ledger.

    Args:
        entries: the ledger.
        indexed: number and digest of the effects that the index has, in its order.
        expected: the number of definitions for each digest that an outcome has named.
        sizes: the number of definitions that the index has for each number.

    Raises:
        AuditFailed: if the index has not taken in each effect once.
    """
    effects = [(entry.seq, entry.digest) for entry in entries if entry.kind is Kind.EFFECT]
    problems = []
    if list(indexed) != effects:
        missing, extra = Counter(effects) - Counter(indexed), Counter(indexed) - Counter(effects)
        problems += [f"the index lacks the effect {digest} of line {seq}" for seq, digest in missing.elements()]
        problems += [f"the index has the effect {digest} of line {seq} too often" for seq, digest in extra.elements()]
        if not problems:
            problems.append("the index has the effects in another order than the ledger")
    problems += [
        f"the index has {sizes.get(seq, 0)} definitions of the effect {digest}, not {expected[digest]}"
        for seq, digest in effects
        if digest in expected and sizes.get(seq, 0) != expected[digest]
    ]
    if problems:
        raise AuditFailed(problems)
