"""Rules for every test: no process survives it, and property tests have no deadlines."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator

import hypothesis
import pytest

from tests.helpers import MARK, children, leftovers

os.environ[MARK] = uuid.uuid4().hex

# What a shell's script runs by "&" ignores the first two, and what nohup runs the last: so would the tests' programs.
_DEFAULTS = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGQUIT: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}
for number, default in _DEFAULTS.items():
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, default)

# No deadline: a busy machine is no counterexample. `make test` is to take minutes; who has more time asks for more.
EXAMPLES = int(os.environ.get("POOLKEEPER_EXAMPLES", "60"))
hypothesis.settings.register_profile("poolkeeper", deadline=None, max_examples=EXAMPLES)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=EXAMPLES, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "poolkeeper")


@pytest.fixture(autouse=True)
def _no_process_survives() -> Iterator[None]:
    """Fail the test after which a process of this session is still there; wider fixtures may keep theirs."""
    before = children()
    yield
    survivors = leftovers(before)
    if survivors:
        pytest.fail("processes survive this test (now killed):\n  " + "\n  ".join(survivors), pytrace=False)
