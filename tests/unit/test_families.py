"""What is ended of the family of a process that nobody looks after any more."""

from __future__ import annotations

import subprocess

from poolkeeper.families import descendants, end_families
from tests.helpers import a_program, is_running, wait_until

_TWO_SESSIONS = "setsid sleep 600 & sleep 600 & echo started; wait"


def test_what_has_been_seen_before_is_ended_wherever_it_is() -> None:
    with subprocess.Popen(["sh", "-c", _TWO_SESSIONS], stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert leader.stdout is not None
        leader.stdout.readline()
        wait_until(lambda: len(descendants(leader.pid)) == 2)
        family = descendants(leader.pid)
        leader.kill()
        end_families({leader.pid: family})
        for member in family:
            wait_until(lambda member=member: not is_running(member.pid))  # type: ignore[misc]


def test_of_a_session_those_who_are_left_are_ended_and_nobody_else() -> None:
    with (
        a_program() as stranger,
        subprocess.Popen(["sh", "-c", "sleep 600 & wait"], start_new_session=True) as leader,
    ):
        wait_until(lambda: len(descendants(leader.pid)) == 1)
        (member,) = descendants(leader.pid)
        leader.kill()
        end_families({leader.pid: ()})
        wait_until(lambda: not is_running(member.pid))
        assert stranger.poll() is None


def test_of_who_is_gone_there_are_no_descendants() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert descendants(process.pid) == []
