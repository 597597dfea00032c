"""Interrupts code at a line of one's choice: run with the first, the second, and so on, it is interrupted at each."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["interrupted"]


def interrupted(
    call: Callable[[], object],
    line: int,
    counts: Callable[[FrameType], object],
    interrupt: Callable[[], None],
    *,
    raises: type[BaseException] = KeyboardInterrupt,
    spared: tuple[str, ...] = (),
) -> bool:
    """Run ``call``, with an ``interrupt`` at its ``line``-th line; return whether it came to that, and raised.

    Args:
        call: what is run.
        line: is counted from 1 on, in the order of execution.
        counts: whether the lines of a frame count.
        interrupt: is called there, and may raise.
        raises: what it raises, there or later.
        spared: how lines begin that do not count.
    """
    left = line

    def enter(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        return step if counts(frame) else None

    def step(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        nonlocal left
        source = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip() if spared else ""
        if event == "line" and not (spared and source.startswith(spared)):
            left -= 1
            if left == 0:
                sys.settrace(None)
                interrupt()
        return step

    sys.settrace(enter)
    try:
        call()
    except raises:
        return True
    finally:
        sys.settrace(None)
    return False
