"""The page of a worker: what a keeper reads there that has not fed it, and what it forbids."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator

import pytest

from poolkeeper.holdings import Digests, digest_of
from poolkeeper.page import CLAIM, FINISHED, MARKS, STARTED, KeeperPage, WorkerPage, find_page
from tests.scripts import ROOT

CLAIM_OF_ONE = ("etl", "a" * 64, "one", "('one',)")
CLAIM_OF_TWO = ("etl", "a" * 64, "two", "('two',)")


@pytest.fixture
def pages() -> Iterator[tuple[WorkerPage, KeeperPage]]:
    """Both ends of one page."""
    theirs = KeeperPage()
    ours = WorkerPage(theirs.fd)
    yield ours, theirs
    ours.close()
    theirs.close()


def test_a_digest_tells_claims_apart_and_is_the_same_in_every_process() -> None:
    assert digest_of(CLAIM_OF_ONE) == (3134300330316932538, 2726197840193783015)
    assert digest_of(("etl", "b", "one", "('one',)", "a" * 64)) == digest_of(CLAIM_OF_ONE), "its code has changed"
    claims = [
        CLAIM_OF_ONE, CLAIM_OF_TWO, ("", *CLAIM_OF_ONE[1:]), ("etl", "b", "one", ""), ("etl", "b", "1", ""),
        ("etl", "b", 1, ""), ("etl", "b", "\ud800", ""), ("etl", "b", "", "\ud800"),
    ]  # fmt: skip
    assert len(set(map(digest_of, claims))) == len(claims)
    digests = Digests()
    shuffled = random.Random(7).choices(claims, k=50)
    assert list(map(digests.of, shuffled)) == list(map(digest_of, shuffled)), "nothing is left of the one before"


def test_a_fresh_page_says_nothing(pages: tuple[WorkerPage, KeeperPage]) -> None:
    assert pages[1].executing() is None


def test_what_is_executed_is_known_by_its_digest(pages: tuple[WorkerPage, KeeperPage]) -> None:
    ours, theirs = pages
    digest = digest_of(CLAIM_OF_ONE)
    ours.claim(7, digest)
    assert theirs.executing() is None, "it is not started yet"
    ours.words[STARTED] = 7
    assert theirs.executing() == (7, digest)
    ours.words[FINISHED] = 7
    assert theirs.executing() is None


def test_a_digest_that_an_earlier_task_has_left_is_that_of_no_task(pages: tuple[WorkerPage, KeeperPage]) -> None:
    ours, theirs = pages
    ours.claim(7, digest_of(CLAIM_OF_ONE))
    ours.words[STARTED] = ours.words[FINISHED] = 7
    ours.words[STARTED] = 8  # one that no later keeper knows, and that marks nothing
    seen = theirs.executing()
    assert seen is not None
    assert seen[0] == 8
    assert seen[1] != digest_of(CLAIM_OF_ONE)


@pytest.mark.parametrize("half", [0, 1])
def test_a_digest_that_is_half_written_is_that_of_no_task(pages: tuple[WorkerPage, KeeperPage], half: int) -> None:
    ours, theirs = pages
    ours.claim(7, digest_of(CLAIM_OF_ONE))
    ours.words[STARTED] = 7
    before = ours.words[CLAIM + half]
    ours.claim(8, digest_of(CLAIM_OF_TWO))
    ours.words[CLAIM + half] = before
    for started in (7, 8):
        ours.words[STARTED] = started
        seen = theirs.executing()
        assert seen is not None
        assert seen[1] not in (digest_of(CLAIM_OF_ONE), digest_of(CLAIM_OF_TWO))


def test_the_page_of_another_version_that_has_no_digests_says_that_of_no_task(
    pages: tuple[WorkerPage, KeeperPage],
) -> None:
    ours, theirs = pages
    ours.words[STARTED] = 7
    assert theirs.executing() == (7, (0, 7))


def test_nothing_is_started_behind_what_is_executed_until_it_is_allowed(
    pages: tuple[WorkerPage, KeeperPage],
) -> None:
    ours, theirs = pages
    drawn = random.Random(1)
    for _ in range(200):
        started, held = drawn.randrange(3 * MARKS), drawn.choice([0, 1, 5, MARKS // 2])
        ours.words[STARTED] = started
        assert theirs.revoke_rest() == started
        assert not ours.marks[started % MARKS], "it runs"
        assert sum(ours.marks) == MARKS - 1
        first = started + 1 + held
        theirs.allow(first)
        assert all(ours.marks[index % MARKS] for index in range(started + 1, first)), "what it was fed stays revoked"
        assert sum(ours.marks) == held


PROGRAM = """
import os, sys
from poolkeeper.page import STARTED, WorkerPage, new_page

number, kept, size = map(int, sys.argv[1:])
other = new_page("worker-2")
fds = [new_page("worker-1") for _ in range(number)]
for fd in fds:
    WorkerPage(fd).words[STARTED] = 5
    if size:
        os.ftruncate(fd, size)
if not kept:
    os.closerange(3, 100)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="pages have no names here")
@pytest.mark.parametrize(
    ("number", "kept", "size", "found"),
    [(1, True, 0, True), (2, True, 0, False), (1, False, 0, False), (1, True, 10, False)],
    ids=["one", "it may be a keeper itself", "closed", "of another size"],
)
def test_the_page_of_a_process_is_found_if_there_is_just_one(number: int, kept: bool, size: int, found: bool) -> None:
    words = [sys.executable, "-c", PROGRAM, str(number), str(int(kept)), str(size)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        before = os.listdir("/proc/self/fd")
        page = find_page(process.pid, "worker-1")
        assert (page is not None) == found
        if page is not None:
            assert page.observe().started == 5
            page.revoke(6)
            page.close()
        assert os.listdir("/proc/self/fd") == before, "no descriptor stays open"
        process.communicate()
    assert find_page(process.pid, "worker-1") is None
