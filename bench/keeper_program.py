"""An application with a durable keeper, to be killed and started again: ``python -m bench.keeper_program ROLE HOME N``.

It tells what happens on its standard output, one JSON document to a line. Moments are of the monotonic clock, which all
processes of a machine share.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from poolkeeper import Keeper, RetryPolicy


def tell(**facts: object) -> None:
    """Say something."""
    print(json.dumps({"at": time.monotonic(), **facts}), flush=True)


def hold(folder: str, number: int) -> int:
    """Be busy without needing the processor, until a file is there."""
    while not os.path.exists(f"{folder}/go"):
        time.sleep(0.5)
    return number


def note(folder: str) -> float:
    """Return when this was executed."""
    return time.monotonic()


def burn(ledger: str, number: int) -> int:
    """Sign a ledger, and need 5 ms of processor time."""
    fd = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, b"%d\n" % number)
    os.close(fd)
    end = time.process_time() + 0.005
    while time.process_time() < end:
        pass
    return number


def busy(home: str, count: int) -> None:
    """Have workers that are all busy; when asked, replace the program. The next one says when they are back."""
    with Keeper(count + 1, name="busy", home=home) as keeper:
        found = keeper.recovered
        submit = keeper.options(key=lambda folder, *rest: repr(rest)).submit
        if found is None:
            futures = [submit(hold, home, number) for number in range(count)]
            while sum(row.state == "busy" for row in keeper.status().workers) < count:
                time.sleep(0.01)
            keeper.submit(note, home).result()  # one more worker, for what is new
            tell(ready=count)
            sys.stdin.readline()
            _time_the_replacement(home)
            keeper.reexec()
        first = keeper.submit(note, home)
        while len(keeper.recovered.workers) <= count:  # type: ignore[union-attr]
            time.sleep(0.001)
        back = time.monotonic()
        tell(back=back, dispatched=first.result())
        Path(home, "go").touch()
        futures = [submit(hold, home, number) for number in range(count)]
        tell(results=sorted(future.result() for future in futures) == list(range(count)))


def _time_the_replacement(home: str) -> None:
    """Write down when the new code is known to load: what comes then is the re-exec itself."""
    from poolkeeper import preflight

    look_ahead = preflight.run_preflight

    def timed(*args: object, **kwargs: object) -> object:
        try:
            return look_ahead(*args, **kwargs)  # type: ignore[arg-type]
        finally:
            Path(home, "replacing").write_text(str(time.monotonic()))

    preflight.run_preflight = timed  # type: ignore[assignment]


def chaos(home: str, count: int) -> None:
    """Run tasks by key on two workers."""
    with Keeper(2, name="chaos", home=home) as keeper:
        submit = keeper.options(key=lambda ledger, number: str(number), retry=RetryPolicy(deaths=1000)).submit
        futures = [submit(burn, f"{home}/ledger", number) for number in range(count)]
        results = [future.result() for future in futures]
        tell(right=results == list(range(count)), reused=sum(future.reused for future in futures))


if __name__ == "__main__":
    role, home, number = sys.argv[1:]
    {"busy": busy, "chaos": chaos}[role](home, int(number))
