"""Where a process writes: standard output and error onto one descriptor, line by line."""

from __future__ import annotations

import contextlib
import io
import os
import sys

__all__ = ["fill_standard_streams", "flush_c_output", "redirect_output"]

_LINE_BUFFERED = 1  # _IOLBF of glibc, musl and the BSDs


def fill_standard_streams() -> None:
    """Open ``/dev/null`` for each standard stream that this program was started without, as by ``>&-``.

    Else the next file or socket would have its number, and whoever writes to standard output would write there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(fd, True)
            setattr(sys, name, open(fd, mode))  # noqa: SIM115 - for as long as the program lives


def redirect_output(fd: int) -> None:
    """Make ``fd`` the standard output and error of this process, and close it.

    Lines leave the process as they are printed, also those that C code prints: a process that is killed takes nothing
    with it that it had said.
    """
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    if fd > 2:
        os.close(fd)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(line_buffering=True)
    _line_buffer_c_output()


def flush_c_output() -> None:
    """Write what C code has printed and its library still holds, before a process ends without its exit handlers.

    Only standard output: to flush all files waits for threads that read from one.
    """
    _call_with_stdout("fflush")


def _line_buffer_c_output() -> None:
    _call_with_stdout("setvbuf", None, _LINE_BUFFERED, 0)


def _call_with_stdout(function: str, *args: int | None) -> None:
    ctypes = sys.modules.get("ctypes")  # the fork server has loaded it; for others it is not worth its import
    if ctypes is None:
        return
    with contextlib.suppress(ValueError, AttributeError, OSError):  # macOS calls the stream by another name
        library = ctypes.CDLL(None)
        getattr(library, function)(ctypes.c_void_p.in_dll(library, "stdout"), *args)
