"""The record of a keeper's events: a file of JSON lines, rotated, written by a thread of its own, read by anybody."""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .rotation import RotatingFile

if TYPE_CHECKING:
    from .service_model import ServiceEvent

__all__ = ["EVENTS_FILE", "EventLog", "follow_events", "read_events"]

EVENTS_FILE = "events.jsonl"
QUEUE_LIMIT = 10_000
"""Events that may wait for the disk; beyond that the oldest are given up, and counted."""


class EventLog:
    """Appends events to a file, and never makes the caller wait; the thread starts with the first event."""

    def __init__(self, folder: Path) -> None:
        self._file = RotatingFile(str(folder / EVENTS_FILE), notice=_notice)
        self._queue: deque[ServiceEvent] = deque()
        self._lost = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def write(self, event: ServiceEvent) -> None:
        """Have ``event`` written soon."""
        with self._changed:
            if self._closed:
                return
            if len(self._queue) >= QUEUE_LIMIT:
                self._queue.popleft()
                self._lost += 1
            self._queue.append(event)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="poolkeeper-events", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Write what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        self._file.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                events = list(self._queue)
                self._queue.clear()
                lost, self._lost = self._lost, 0
                closed = self._closed
            if lost:
                self._file.lose(lost, "the disk is too slow")
            if events:
                from dataclasses import asdict

                self._file.write(b"".join(_line(asdict(event)) for event in events))
            if closed:
                return


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode(errors="replace") + b"\n"


def _notice(lines: int, why: str) -> bytes:
    return _line({"kind": "log.lost", "reason": f"{lines} events could not be written: {why}"})


def read_events(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the recorded events of the keeper whose home is ``folder``, oldest first, as far as they are kept."""
    for path in _generations(folder):
        try:
            with open(path, "rb") as file:
                yield from _parse(file.read())
        except FileNotFoundError:
            continue


def follow_events(folder: Path, *, wait: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Yield the recorded events and those to come; ``wait`` pauses between two looks, and ends it by returning True."""
    *older, path = _generations(folder)
    for each in older:
        yield from _parse(each.read_bytes())
    file: BinaryIO | None = None
    try:
        while True:
            if file is None and path.exists():
                file = open(path, "rb")  # noqa: SIM115 - kept open from look to look
            current = file is not None and _is_current(file, path)
            if file is not None:
                yield from _parse(_whole_lines(file))
                if not current:
                    file.close()
                    file = None
                    continue
            if wait():
                return
    finally:
        if file is not None:
            file.close()


def _whole_lines(file: BinaryIO) -> bytes:
    """Return the lines that are complete; the rest is read next time."""
    content = file.read()
    whole = content.rfind(b"\n") + 1
    file.seek(whole - len(content), os.SEEK_CUR)
    return content[:whole]


def _generations(folder: Path) -> list[Path]:
    older = sorted(folder.glob(f"{EVENTS_FILE}.*"), key=lambda path: path.name, reverse=True)
    return [*older, folder / EVENTS_FILE]


def _is_current(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return True  # there is no newer one yet


def _parse(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # torn by a crash
            continue
        if isinstance(record, dict):
            yield record
