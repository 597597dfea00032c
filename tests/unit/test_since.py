"""What people type for a moment in the past."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from poolkeeper.since import parse_since

ZONE = timezone(timedelta(hours=2))
NOW = datetime(2026, 11, 21, 9, 15, tzinfo=ZONE)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90s", NOW - timedelta(seconds=90)),
        ("10m", NOW - timedelta(minutes=10)),
        (" 2h ", NOW - timedelta(hours=2)),
        ("1.5 h", NOW - timedelta(minutes=90)),
        ("1d", NOW - timedelta(days=1)),
        ("2w", NOW - timedelta(days=14)),
        ("09:00", datetime(2026, 11, 21, 9, 0, tzinfo=ZONE)),
        ("9:00", datetime(2026, 11, 21, 9, 0, tzinfo=ZONE)),
        ("09:16", datetime(2026, 11, 20, 9, 16, tzinfo=ZONE)),
        ("23:59:30", datetime(2026, 11, 20, 23, 59, 30, tzinfo=ZONE)),
        ("2026-11-21", datetime(2026, 11, 21, tzinfo=ZONE)),
        ("2026-11-21T09:00", datetime(2026, 11, 21, 9, 0, tzinfo=ZONE)),
        ("2026-11-21 09:00:01", datetime(2026, 11, 21, 9, 0, 1, tzinfo=ZONE)),
        ("2026-11-21T07:00:00Z", datetime(2026, 11, 21, 7, 0, tzinfo=UTC)),
        ("2026-11-21T07:00:00.5+00:00", datetime(2026, 11, 21, 7, 0, 0, 500000, UTC)),
    ],
)
def test_moments(text: str, moment: datetime) -> None:
    assert parse_since(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "10", "10x", "-5m", "25:00", "2026-13-01", "9" * 400 + "d", "9e9w"])
def test_other_things_are_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="is no moment: write 90s, 10m"):
        parse_since(text, NOW)
