"""What people type for a moment in the past. Pure: the present is an argument."""

from __future__ import annotations

import re
from datetime import datetime, time, timedelta

__all__ = ["parse_since"]

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_since(text: str, now: datetime) -> datetime:
    """Return the moment that ``text`` names.

    Args:
        text: ``90s``, ``10m``, ``2h``, ``1d`` ago; a time of day, the last one; or a date with or without a time.
        now: the present, aware; what ``text`` says without an offset is meant in its time zone.

    Raises:
        ValueError: for anything else.
    """
    text = text.strip()
    try:
        ago = _AGO.fullmatch(text)
        if ago is not None:
            return now - timedelta(**{_UNITS[ago[2]]: float(ago[1])})
        if re.fullmatch(r"\d\d?:\d\d(:\d\d)?", text):
            moment = datetime.combine(now.date(), time.fromisoformat(text.zfill(len(text) + (text[1] == ":"))))
            moment = moment.replace(tzinfo=now.tzinfo)
            return moment if moment <= now else moment - timedelta(days=1)
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=now.tzinfo)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no moment: write 90s, 10m, 2h, 1d, 09:00, or 2026-11-21T09:00") from None
