"""What a worker holds is what it was fed and has not been acknowledged, whatever was fed and answered when."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from poolkeeper.frames import Frame, FrameKind
from poolkeeper.holdings import Held, Holdings
from poolkeeper.messages import Kind
from poolkeeper.session import Session

STEPS = st.lists(
    st.tuples(st.sampled_from(["feed", "chunk", "answer", "remark", "acknowledge"]), st.integers(1, 5)), max_size=40
)


@given(steps=STEPS)
def test_what_is_not_acknowledged_is_held_in_order(steps: list[tuple[str, int]]) -> None:
    holdings, session = Holdings(), Session()
    holdings.taken([(Kind.DEFINE, 1, "work", b"", None)])
    fed: list[Held | None] = []
    answered = 0
    marks: list[tuple[int, int]] = []  # (sequence, number of tasks answered by it)
    for what, number in steps:
        first = len(fed) + 1
        if what == "feed":
            infos: Any = [(None, 1, None, ("batch", "code", str(first + place), "a")) for place in range(number)]
            holdings.taken([(Kind.TASKS, first, 1, [()] * number, infos)])
            fed += [Held("work", 1, info[3]) for info in infos]
        elif what == "chunk":
            holdings.taken([(Kind.CHUNK, first, 1, [], True, False, False, 1, ("", 0))])
            fed.append(None)
        elif what == "answer" and answered < len(fed):
            some = min(number, len(fed) - answered)
            message: tuple[Any, ...] = (Kind.RESULTS, answered + 1, None, [0] * some, 0.0)
            session.send(b"")
            holdings.answered(message, session)
            answered += some
            marks.append((session.sent, answered))
        elif what == "remark":
            session.send(b"")
            holdings.answered((Kind.STARTED,), session)
        elif what == "acknowledge":
            acknowledged = min(session.acknowledged + number, session.sent)
            session.receive(Frame(FrameKind.ACK, 0, acknowledged, 0, b""))
        safe = max((tasks for sequence, tasks in marks if sequence <= session.acknowledged), default=0)
        assert holdings.unacknowledged(session) == (safe + 1, fed[safe:])
