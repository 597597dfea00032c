"""Reading what programs say by sd_notify."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.notification import DATAGRAM_BYTES, Notification, parse


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"READY=1", Notification(7, ready=True)),
        (b"READY=1\nSTATUS=listening on port 80\n", Notification(7, ready=True, status="listening on port 80")),
        (b"STATUS=a=b", Notification(7, status="a=b")),
        (b"STATUS=", Notification(7, status="")),
        (b"STATUS=\x1b[2Jgone\tfar", Notification(7, status="[2Jgone far")),
        (b"STATUS=first\nSTATUS=second", Notification(7, status="first")),
        (b"STOPPING=1\nERRNO=28", Notification(7, stopping=True, errno=28)),
        (b"RELOADING=1\nMONOTONIC_USEC=5", Notification(7, reloading=True)),
        (b"WATCHDOG=1", Notification(7, watchdog=True)),
        (b"WATCHDOG=trigger", Notification(7, trigger=True)),
        (b"MAINPID=4711", Notification(7, main_pid=4711)),
        (b"EXTEND_TIMEOUT_USEC=2500000", Notification(7, extend_timeout=2.5)),
        (b"FDSTORE=1\nFDNAME=x", Notification(7)),
        (b"BARRIER=1", Notification(7)),
        (b"X_OF_MY_OWN=whatever", Notification(7)),
        (b"nonsense\nREADY=1", Notification(7, ready=True)),
        # values that make no sense
        (b"READY=0", Notification(7)),
        (b"READY=yes", Notification(7)),
        (b"MAINPID=0\nERRNO=-3\nEXTEND_TIMEOUT_USEC=0", Notification(7)),
        (b"MAINPID=1", Notification(7)),
        (b"MAINPID=99999999999", Notification(7)),
        ("MAINPID=٣٤".encode(), Notification(7)),
        (b"ERRNO=" + b"9" * 50, Notification(7)),
        # no message
        (b"", None),
        (b"READY", None),
        (b"READY=1\0", None),
        (b"STATUS=\xff\xfe", None),
        (b"lower=1", None),
        (b"=1", None),
        (b"STATUS=" + b"x" * DATAGRAM_BYTES, None),
    ],
)
def test_examples(data: bytes, expected: Notification | None) -> None:
    assert parse(data, 7) == expected


@given(st.binary(max_size=300))
def test_no_bytes_do_harm(data: bytes) -> None:
    notification = parse(data, 7)
    assert notification is None or notification.pid == 7


NAMES = ["READY", "STATUS", "WATCHDOG", "STOPPING", "MAINPID", "ERRNO", "EXTEND_TIMEOUT_USEC", "X_OTHER"]


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.text(max_size=40) | st.integers().map(str)), max_size=8))
def test_what_is_understood_is_within_bounds(assignments: list[tuple[str, str]]) -> None:
    notification = parse("\n".join(f"{name}={value}" for name, value in assignments).encode(errors="replace"), 7)
    if notification is None:
        return
    assert notification.status is None or notification.status.isprintable()
    assert notification.main_pid is None or 1 < notification.main_pid < 2**31
    assert notification.errno is None or notification.errno >= 0
    assert notification.extend_timeout is None or notification.extend_timeout > 0


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=100))
def test_a_printable_status_arrives_as_it_was_said(text: str) -> None:
    notification = parse(f"STATUS={text}".encode(), 7)
    assert notification is not None
    assert notification.status == text
