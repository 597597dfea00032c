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

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's script ignores it for what it runs by "&"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or the tests' own programs could not be interrupted

hypothesis.settings.register_profile("poolkeeper", deadline=None)  # a busy machine is no counterexample
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "poolkeeper")


@pytest.fixture(autouse=True)
def _no_process_survives() -> Iterator[None]:
    """Fail the test after which a process of this session is still there; wider fixtures may keep theirs."""
    before = children()
    yield
    survivors = leftovers(before)
    if survivors:
        pytest.fail("processes survive this test (now killed):\n  " + "\n  ".join(survivors), pytrace=False)
