"""The format of a line in a log, and streams of bytes that become lines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from poolkeeper.loglines import CUT, LineSplitter, dropped, parse, prefix, stamped

MOMENT = datetime(2026, 11, 21, 9, 15, 23, 123456, UTC)
LINE = b"2026-11-21T09:15:23.123456+00:00 web[1234]#2 text"


def split(chunks: list[bytes], limit: int = 8) -> bytes:
    splitter = LineSplitter(limit)
    return b"".join([*(splitter.feed(chunk) for chunk in chunks), splitter.finish()])


class TestFormat:
    def test_a_line_is_what_the_documentation_shows(self) -> None:
        assert prefix(MOMENT, "web", 1234, 2) + b"text" == LINE

    def test_times_are_in_utc_and_have_microseconds(self) -> None:
        local = datetime(2026, 11, 21, 10, 15, 23, tzinfo=timezone(timedelta(hours=1)))
        assert prefix(local, "web", 1, 1).startswith(b"2026-11-21T09:15:23.000000+00:00 ")

    def test_every_line_of_a_block_has_the_prefix(self) -> None:
        assert stamped(b"one\n\ntwo\n", b"> ") == b"> one\n> \n> two\n"
        assert stamped(b"", b"> ") == b""

    def test_it_is_read_back(self) -> None:
        line = parse(LINE)
        assert line == (MOMENT, "web", 1234, 2, b"text", "")
        assert str(line).encode() == LINE

    @given(
        st.datetimes(timezones=st.just(UTC)).filter(lambda moment: moment.year >= 1000),
        st.text(st.characters(exclude_characters="\n[", exclude_categories=["Cs"]), min_size=1),
        st.integers(1, 2**31),
        st.integers(1, 10**6),
        st.binary(),
    )
    @example(MOMENT, "a name with spaces #1", 1, 1, b"web[1]#2 looks like one")
    def test_whatever_was_written_is_read_back(
        self, time: datetime, label: str, pid: int, attempt: int, text: bytes
    ) -> None:
        assert parse(prefix(time, label, pid, attempt) + text) == (time, label, pid, attempt, text, "")

    @pytest.mark.parametrize(
        "line",
        [
            b"",
            b"Traceback (most recent call last):",
            LINE[1:],
            LINE.replace(b"#2", b""),
            LINE.replace(b"-11-", b"-13-"),
            b"\xff\0",
        ],
    )
    def test_what_has_no_prefix_is_none(self, line: bytes) -> None:
        assert parse(line) is None

    def test_text_for_people_replaces_what_is_not_utf_8(self) -> None:
        line = parse(LINE + b"\xff")
        assert line is not None
        assert line.words == "text\ufffd"

    def test_the_notice_counts(self) -> None:
        assert dropped(1, "No space left on device") == "... 1 line dropped: No space left on device"
        assert dropped(12, "x").startswith("... 12 lines ")


class TestSplitter:
    def test_lines_come_whole(self) -> None:
        splitter = LineSplitter()
        assert splitter.feed(b"on") == b""
        assert splitter.feed(b"e\ntwo\nthr") == b"one\ntwo\n"
        assert splitter.finish() == b"thr\n"
        assert splitter.finish() == b""

    def test_long_lines_are_cut_and_marked(self) -> None:
        marked = CUT + b"\n"
        assert split([b"12345678\n"]) == b"12345678\n"
        assert split([b"123456789\n"]) == b"12345678" + marked + b"9\n"
        assert split([b"1234567812345678"]) == b"12345678" + marked + b"12345678\n"

    @given(st.lists(st.binary(max_size=12) | st.sampled_from([b"\n", b"\r\n", b"\0", b"x" * 8, b"x" * 40 + b"\n"])))
    @example([b"12345678", b"9", b"\n"])
    @example([b"1234", b"5678\n12345678\n", b"123456789"])
    def test_the_chunks_make_no_difference(self, chunks: list[bytes]) -> None:
        whole = b"".join(chunks)
        expected = split([whole])
        assert split(chunks) == expected
        assert split([whole[position : position + 1] for position in range(len(whole))]) == expected

    @given(st.binary())
    def test_nothing_is_lost_or_changed(self, data: bytes) -> None:
        result = split([data], limit=1 << 16)
        assert result == (data if data.endswith(b"\n") or not data else data + b"\n")

    @given(st.binary(max_size=100), st.integers(1, 9))
    def test_no_piece_is_longer_than_the_limit(self, data: bytes, limit: int) -> None:
        lines = split([data], limit).split(b"\n")
        assert all(len(line.removesuffix(CUT)) <= limit for line in lines)
