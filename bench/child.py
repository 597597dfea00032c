"""One measurement in a fresh interpreter: ``python -m bench.child REQUEST ANSWER``.

REQUEST is JSON, ANSWER the file to which the figures are written. It imports only what the measurement needs.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

ABANDONED = 3  # any exit status but 0: what is left behind will not end by itself


def main(request: str, answer: str) -> None:
    """Measure and answer; a pool that is broken is left to whoever started this process."""
    from bench.catalogue import load

    asked = json.loads(request)
    try:
        benchmark = load(asked["benchmark"])
        measured = benchmark.measure(benchmark.contenders[asked["peer"]], asked["case"], asked["full"])
    except BaseException:  # a pool that was not closed may keep the interpreter from ending
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    with open(answer, "w") as file:
        json.dump({"figures": measured.figures, "note": measured.note}, file)
    if measured.abandon:
        os._exit(ABANDONED)


if __name__ == "__main__":
    main(*sys.argv[1:])
