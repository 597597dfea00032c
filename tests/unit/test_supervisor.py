"""What becomes of services, told as short stories; ``tests.service_driver`` plays the runtime, and turns the clock."""

from __future__ import annotations

import random
from typing import Any

import pytest
import tenacity

from poolkeeper.errors import FleetStopping
from poolkeeper.policy import RestartPolicy, WorkerPolicy, stop_after_burst
from poolkeeper.service_model import ExitReason, ServiceState
from poolkeeper.service_spec import DeclarationError, ServiceGroup
from poolkeeper.service_stopping import DUMP_SECONDS
from poolkeeper.supervisor import Supervisor
from tests.service_driver import Driver, Heart

S = ServiceState
AT_ONCE = RestartPolicy(wait=tenacity.wait_none())
AFTER_3 = RestartPolicy(wait=tenacity.wait_fixed(3))


@pytest.fixture
def driver() -> Driver:
    return Driver()


def reasons(driver: Driver, name: str) -> list[str]:
    return [exit.reason.value for exit in driver[name].exits]


# Declaration --------------------------------------------------------------------------------------------------------


def test_a_name_is_given_once_and_what_it_is_after_must_be_there(driver: Driver) -> None:
    driver.add("db")
    with pytest.raises(DeclarationError, match="a service named 'db' already"):
        driver.add("db")
    with pytest.raises(DeclarationError, match=r"'web' is after 'cache', which is no service \(there are: db\)"):
        driver.add("web", after=["db", "cache"])
    assert list(driver.supervisor.services) == ["db"]
    assert not driver.supervisor.services["db"].dependents


def test_nothing_could_start_with_no_place_to_start_in() -> None:
    with pytest.raises(ValueError, match="max_starting=0"):
        Supervisor(0)


# Restart policies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "code", "state"),
    [
        ("always", 0, S.RUNNING),
        ("always", 1, S.RUNNING),
        ("on-failure", 0, S.COMPLETED),
        ("on-failure", 1, S.RUNNING),
        ("never", 0, S.COMPLETED),
        ("never", 1, S.FAILED),
    ],
)
def test_who_is_restarted_when(driver: Driver, when: Any, code: int, state: ServiceState) -> None:
    driver.add("web", restart=RestartPolicy(when, wait=tenacity.wait_none()))
    driver.start()
    driver.end("web", code)
    driver.wait(0)
    assert driver.state("web") is state
    assert driver["web"].restarts == (state is S.RUNNING)
    assert driver["web"].up is (state is S.RUNNING)


def test_an_exhausted_policy_leaves_a_failed_service_with_its_history_that_costs_nothing(driver: Driver) -> None:
    driver.add("web", restart=RestartPolicy.on_failure(max_retries=3, delay=3.0))
    driver.start()
    for _ in range(4):
        driver.end("web")
        driver.wait(3)
    assert driver.state("web") is S.FAILED
    assert driver.log == "+web +web +web +web"
    assert reasons(driver, "web") == ["exit status"] * 4
    assert driver["web"].detail == "its restart policy is exhausted after 4 runs; the last one: exited with status 1"
    assert driver.supervisor.next_deadline() is None
    driver.start()
    assert driver.state("web") is S.RUNNING
    for _ in range(3):
        driver.end("web")
        driver.wait(3)
    assert driver.state("web") is S.RUNNING  # started by hand, it has all its retries again


def test_a_policy_can_be_exhausted_by_clean_ends(driver: Driver) -> None:
    driver.add("web", restart=RestartPolicy(stop=stop_after_burst(3, 10), wait=tenacity.wait_none()))
    driver.start()
    for _ in range(3):
        driver.end("web", 0)
    assert driver.state("web") is S.FAILED


def test_the_delay_counts_from_the_end(driver: Driver) -> None:
    driver.add("web", restart=AFTER_3)
    driver.start()
    driver.pensive = True
    driver.end("web")
    driver.wait(2)
    driver.answer()
    driver.wait(0.99)
    assert driver.state("web") is S.BACKOFF
    driver.wait(0.01)
    assert driver.state("web") is S.RUNNING


def test_healthy_running_is_being_ready_not_failing_to_start_for_long(driver: Driver) -> None:
    policy = RestartPolicy(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_none(), reset_after=60)
    driver.add("web", ready="notify", start_timeout=100, restart=policy)
    driver.slow.add("web")
    driver.start()
    driver.wait(1000)
    assert driver.state("web") is S.FAILED
    assert reasons(driver, "web") == ["start timeout"] * 3


def test_healthy_running_forgets_failures(driver: Driver) -> None:
    driver.add("web", restart=RestartPolicy.on_failure(1, 1.0, reset_after=60))
    driver.start()
    for _ in range(10):
        driver.wait(61)
        driver.end("web")
    driver.wait(1)
    assert driver.state("web") is S.RUNNING


def test_a_strategy_that_raises_fails_the_service_and_is_quoted(driver: Driver) -> None:
    driver.add("web", restart=AT_ONCE)
    driver.start()
    driver.pensive = True
    driver.end("web", 0)
    (question,) = driver.questions
    driver.supervisor.decided(question, None, driver["web"].record, driver.now, "its restart policy raised KeyError")
    driver.settle()
    assert (driver.state("web"), driver["web"].detail) == (S.FAILED, "its restart policy raised KeyError")


def test_giving_up_may_end_the_fleet(driver: Driver) -> None:
    driver.add("web", restart="never", on_give_up="stop-fleet")
    driver.add("worker", restart="never")
    driver.start()
    driver.end("worker")
    assert driver.collapsed == []
    driver.end("web", -11)
    (reason,) = driver.collapsed
    assert reason == "service web has failed: killed by signal 11 (SIGSEGV); its policy is never to restart it"


# Stop races: decided states -----------------------------------------------------------------------------------------


def test_stop_during_start(driver: Driver) -> None:
    driver.add("web")
    driver.slow.add("web")
    driver.start()
    driver.stop("web")
    assert (driver.state("web"), reasons(driver, "web")) == (S.STOPPED, ["stopped"])
    assert driver.supervisor.starting == 0


def test_stop_before_its_turn(driver: Driver) -> None:
    driver.add("db", ready="notify")
    driver.add("web", after=["db"])
    driver.slow.add("db")
    driver.start()
    assert driver["web"].detail == "waits for db, which is starting"
    driver.stop("web")
    driver.ready("db")
    assert driver.states() == {"db": "running", "web": "stopped"}
    assert driver.log == "+db"


def test_stop_during_backoff_outlasts_the_policy(driver: Driver) -> None:
    driver.add("web", restart=AFTER_3)
    driver.start()
    driver.pensive = True
    driver.end("web")
    driver.stop("web")
    driver.answer()
    driver.wait(10)
    assert driver.state("web") is S.STOPPED
    assert driver.log == "+web"


def test_start_during_stop_starts_again_afterwards(driver: Driver) -> None:
    driver.add("web")
    driver.deaf.add("web")
    driver.start()
    driver.stop("web")
    driver.start()
    assert (driver.state("web"), driver.log) == (S.STOPPING, "+web ?web")
    driver.end("web", 0)
    assert (driver.state("web"), driver.log) == (S.RUNNING, "+web")


def test_restart_during_stop_and_stop_during_restart(driver: Driver) -> None:
    driver.add("web")
    driver.deaf.add("web")
    driver.start()
    driver.stop("web")
    driver.restart("web")
    driver.end("web", 0)
    assert driver.state("web") is S.RUNNING
    driver.restart("web")
    driver.stop("web")
    driver.end("web", 0)
    assert driver.state("web") is S.STOPPED


def test_restart_of_what_is_to_stop_and_has_not_been_asked_yet(driver: Driver) -> None:
    driver.add("db")
    driver.add("web", after=["db"])
    driver.deaf.add("web")
    driver.start()
    driver.stop_all()
    assert driver.states() == {"db": "running", "web": "stopping"}
    driver.restart("db")
    driver.end("web", 0)
    assert driver.states() == {"db": "running", "web": "stopped"}
    assert driver["db"].attempt == 2


def test_start_of_what_is_to_stop_and_has_not_been_asked_yet_lets_it_go_on(driver: Driver) -> None:
    driver.add("db")
    driver.add("web", after=["db"])
    driver.deaf.add("web")
    driver.start()
    driver.stop_all()
    driver.start("db")
    driver.end("web", 0)
    assert (driver.states(), driver["db"].attempt) == ({"db": "running", "web": "stopped"}, 1)


def test_exit_during_stop_is_a_stop(driver: Driver) -> None:
    driver.add("web", restart=AT_ONCE)
    driver.deaf.add("web")
    driver.start()
    driver.stop("web")
    driver.end("web", -11)
    assert (driver.state("web"), reasons(driver, "web")) == (S.STOPPED, ["stopped"])
    assert driver["web"].exits[0].exitcode == -11


def test_started_twice_is_started_once(driver: Driver) -> None:
    driver.add("web")
    driver.start("web", "web")
    driver.start("web")
    assert driver.log == "+web"


def test_what_is_heard_of_an_earlier_process_is_ignored(driver: Driver) -> None:
    driver.add("web", restart=AT_ONCE, ready="notify")
    driver.start()
    driver.end("web")
    web, supervisor = driver["web"], driver.supervisor
    driver.slow.add("web")
    driver.end("web")
    assert (web.attempt, web.state) == (3, S.STARTING)
    supervisor.ready(web, 2, 0.0)
    supervisor.ended(web, 2, 0.0, code=1)
    supervisor.refused(web, 2, 0.0, "late")
    supervisor.spawned(web, 2, 5)
    assert (web.attempt, web.state, web.pid) == (3, S.STARTING, 1003)
    driver.ready("web")
    supervisor.refused(web, 3, 0.0, "nonsense, for it runs")
    assert web.state is S.RUNNING
    driver.stop("web")
    supervisor.spawned(web, 3, 7)
    assert web.pid is None


def test_restart_by_hand_asks_no_policy_and_starts_what_is_at_rest(driver: Driver) -> None:
    driver.add("db")
    driver.add("web", restart="never", after=["db"])
    driver.restart("web")
    assert driver.states() == {"db": "running", "web": "running"}
    driver.restart("web")
    assert (driver.state("web"), reasons(driver, "web"), driver["web"].restarts) == (S.RUNNING, ["restarted"], 0)
    driver.end("web")
    driver.restart("web")
    assert driver.state("web") is S.RUNNING


# Force --------------------------------------------------------------------------------------------------------------


def test_whoever_does_not_stop_is_dumped_and_killed_and_killed_again(driver: Driver) -> None:
    driver.add("web", stop_timeout=10)
    driver.deaf.add("web")
    driver.start()
    driver.stop("web")
    driver.wait(9.9)
    assert driver.log == "+web ?web"
    driver.wait(0.1)
    assert driver.log == "#web"
    driver.wait(DUMP_SECONDS)
    assert (driver.log, driver.state("web")) == ("!web", S.STOPPED)


def test_it_is_killed_as_soon_as_its_stacks_are_written(driver: Driver) -> None:
    driver.add("web", stop_timeout=10)
    driver.deaf.add("web")
    driver.start()
    web = driver["web"]
    driver.supervisor.dumped(web, web.attempt, driver.now)  # somebody else has asked for them
    driver.settle()
    assert driver.state("web") is S.RUNNING
    driver.stop("web")
    driver.wait(10)
    assert driver.log == "+web ?web #web"
    driver.supervisor.dumped(web, web.attempt - 1, driver.now)
    driver.settle()
    assert driver.state("web") is S.STOPPING
    driver.supervisor.dumped(web, web.attempt, driver.now)
    driver.settle()
    assert (driver.log, driver.state("web")) == ("!web", S.STOPPED)


def test_a_forced_end_does_not_get_its_time_anew(driver: Driver) -> None:
    """One that is to stop after others may have to be forced before its turn has come."""
    driver.add("db", watchdog=5)
    driver.add("web", after=["db"], stop_timeout=60)
    driver.deaf.update(("db", "web"))
    driver.start()
    driver.stop_all()
    driver.wait(5 + DUMP_SECONDS)
    assert driver.log == "+db +web ?web #db !db"
    driver.wait(60)
    assert driver.states() == {"db": "stopped", "web": "stopped"}


# Order --------------------------------------------------------------------------------------------------------------


def test_what_it_is_after_is_started_too_and_stops_later(driver: Driver) -> None:
    driver.add("disk")
    driver.add("db", after=["disk"])
    driver.add("cache")
    driver.add("web", after=["db", "cache"])
    driver.start("web")
    assert driver.log in ("+disk +cache +db +web", "+disk +db +cache +web", "+cache +disk +db +web")
    assert set(driver.states().values()) == {"running"}
    driver.deaf.update(driver.supervisor.services)
    driver.stop_all()
    asked = []
    while not driver.supervisor.down:
        asked.append(sorted(name for name, state in driver.states().items() if state == "stopping"))
        for name in asked[-1]:
            driver.end(name, 0)
    assert asked == [["web"], ["cache", "db"], ["disk"]]


def test_order_reaches_across_what_does_not_run(driver: Driver) -> None:
    driver.add("disk")
    driver.add("setup", after=["disk"], restart="on-failure")
    driver.add("web", after=["setup"])
    driver.start()
    driver.end("setup", 0)
    driver.deaf.add("web")
    assert driver.states() == {"disk": "running", "setup": "completed", "web": "running"}
    driver.stop_all()
    assert driver.states() == {"disk": "running", "setup": "completed", "web": "stopping"}
    driver.end("web", 0)
    assert driver.supervisor.down


def test_nothing_starts_on_what_is_about_to_stop(driver: Driver) -> None:
    driver.add("db")
    driver.add("web", after=["db"], restart=AT_ONCE)
    driver.add("worker", after=["db"])
    driver.deaf.add("worker")
    driver.start()
    driver.stop("worker", "db")
    driver.end("web")
    assert driver["web"].detail == "waits for db, which is about to stop"
    driver.end("worker", 0)
    assert driver.states() == {"db": "stopped", "web": "waiting", "worker": "stopped"}
    assert driver["web"].detail == "waits for db, which is stopped"


def test_what_it_is_after_goes_on_although_it_was_about_to_stop(driver: Driver) -> None:
    driver.add("db")
    driver.add("web", after=["db"])
    driver.add("worker", after=["db"])
    driver.deaf.update(("db", "worker"))
    driver.start("db", "worker")
    driver.stop("worker", "db")
    driver.start("web")
    assert driver.states() == {"db": "running", "web": "running", "worker": "stopping"}
    driver.stop("web", "db")
    driver.end("worker", 0)
    driver.start("web")  # db stops already, and starts again for it
    driver.end("db", 0)
    assert driver.states() == {"db": "running", "web": "running", "worker": "stopped"}


def test_a_dependency_half_of_whose_replicas_run_is_completed_by_a_start(driver: Driver) -> None:
    driver.add("db", replicas=2, restart="never")
    driver.add("web", after=["db"])
    driver.start()
    driver.end("db:1")
    driver.stop("web")
    driver.start("web")
    assert driver.states() == {"db:0": "running", "db:1": "running", "web": "running"}


def test_whoever_waits_for_what_was_about_to_stop_starts_when_that_goes_on(driver: Driver) -> None:
    driver.add("db")
    driver.add("web", after=["db"], restart=AT_ONCE)
    driver.add("worker", after=["db"])
    driver.deaf.add("worker")
    driver.start()
    driver.stop("worker", "db")
    driver.end("web")
    driver.start("db")
    assert driver.states() == {"db": "running", "web": "running", "worker": "stopping"}


def test_an_end_that_comes_before_the_replacement_is_the_policys_business(driver: Driver) -> None:
    driver.add("db", restart="on-failure", worker=WorkerPolicy(max_memory=100))
    driver.add("web", after=["db"])
    driver.deaf.add("web")
    driver.start()
    driver.stop("web")
    driver.memory["db"] = 101
    driver.wait(1)
    assert driver.states() == {"db": "running", "web": "stopping"}
    driver.end("db", 0)
    assert driver.states() == {"db": "completed", "web": "stopping"}


def test_a_replacement_that_gave_way_to_a_stop_comes_back_when_that_is_taken_back(driver: Driver) -> None:
    driver.add("db", worker=WorkerPolicy(max_age=100))
    driver.add("web", after=["db"], stop_timeout=1000)
    driver.deaf.add("web")
    driver.start()
    driver.stop("web")
    driver.wait(100)
    driver.stop("db")
    driver.start("db")
    driver.end("web", 0)
    assert (reasons(driver, "db"), driver.state("db")) == (["recycled"], S.RUNNING)


# Readiness, watchdog, age, memory -----------------------------------------------------------------------------------


def test_not_ready_in_time(driver: Driver) -> None:
    driver.add("web", ready="notify", start_timeout=5, restart=AFTER_3)
    driver.slow.add("web")
    driver.start()
    driver.wait(5)
    assert (driver.log, reasons(driver, "web"), driver.state("web")) == ("+web #web ?web", ["start timeout"], S.BACKOFF)


def test_a_missed_heartbeat_kills_and_a_beat_in_time_does_not(driver: Driver) -> None:
    driver.add("web", watchdog=5, restart=AFTER_3)
    driver.start()
    heart = driver["web"].pulse
    assert isinstance(heart, Heart)
    for _ in range(10):
        driver.wait(4)
        heart.last = driver.now
    driver.wait(5)
    assert driver.state("web") is S.STOPPING
    driver.wait(DUMP_SECONDS)
    assert (driver.log, reasons(driver, "web"), driver.state("web")) == ("+web #web !web", ["watchdog"], S.BACKOFF)


def test_a_keeper_that_has_slept_gives_another_period(driver: Driver) -> None:
    driver.add("web", watchdog=5, worker=WorkerPolicy(max_age=1000))
    driver.add("slow", ready="notify", start_timeout=5)
    driver.slow.add("slow")
    driver.start()
    driver.now += 100
    driver.settle()
    assert driver.states() == {"web": "running", "slow": "starting"}
    assert driver["web"].ready_at == 0.0  # its age and uptime count on
    driver.wait(4.9)
    assert driver.states() == {"web": "running", "slow": "starting"}
    driver.deaf.update(("web", "slow"))
    driver.wait(0.1)
    assert driver.states() == {"web": "stopping", "slow": "stopping"}


def test_age_replaces_replicas_one_by_one(driver: Driver) -> None:
    driver.add("web", replicas=4, restart="never", worker=WorkerPolicy(max_age=100))
    driver.start()
    driver.wait(89.9)
    assert driver.log == "+web:0 +web:1 +web:2 +web:3"
    driver.wait(10.1)
    replaced = [when for when, kind, _ in driver.events if kind == "service.stopping"]
    assert len(set(replaced)) == 4
    assert set(driver.states().values()) == {"running"}
    assert {reason for number in range(4) for reason in reasons(driver, f"web:{number}")} == {"recycled"}


def test_soft_memory_replaces_and_hard_memory_kills(driver: Driver) -> None:
    limits = WorkerPolicy(max_memory=100, hard_memory=200)
    driver.add("web", worker=limits, restart=AFTER_3)
    driver.start()
    driver.memory["web"] = 101
    driver.wait(1)
    driver.memory["web"] = 1
    assert (driver.log, reasons(driver, "web"), driver["web"].restarts) == ("+web ?web +web", ["recycled"], 0)
    driver.memory["web"] = 201
    driver.wait(1)
    assert (driver.log, reasons(driver, "web")[1:], driver.state("web")) == ("!web", ["memory limit"], S.BACKOFF)


def test_memory_is_measured_before_it_is_ready_too(driver: Driver) -> None:
    driver.add("web", ready="notify", start_timeout=None, worker=WorkerPolicy(hard_memory=200), restart="never")
    driver.slow.add("web")
    driver.memory["web"] = 300
    driver.start()
    driver.wait(1)
    assert (driver.state("web"), reasons(driver, "web")) == (S.FAILED, ["memory limit"])


def test_what_a_service_says_of_itself_is_not_why_it_was_ended(driver: Driver) -> None:
    driver.add("web", restart=AT_ONCE)
    driver.start()
    driver["web"].detail = "loading 50%"
    driver.stop("web")
    assert driver["web"].exits[0].message == "stopped by hand"


# Scaling ------------------------------------------------------------------------------------------------------------


def test_scaling_starts_and_stops_those_with_the_highest_numbers(driver: Driver) -> None:
    driver.add("web", replicas=2)
    driver.start()
    driver.scale("web", 4)
    driver.scale("web", 1)
    assert driver.states() == {"web": "running"}
    assert driver.log == "+web:0 +web:1 +web:2 +web:3 ?web:1 ?web:2 ?web:3"
    driver.scale("web", 3)
    assert driver.states() == {"web:0": "running", "web:1": "running", "web:2": "running"}


def test_scaled_down_and_up_at_once_keeps_numbers_and_processes_apart(driver: Driver) -> None:
    driver.add("web", replicas=2)
    driver.start()
    driver.deaf.add("web")
    driver.scale("web", 0)
    driver.scale("web", 2)
    assert driver.states() == {"web:0": "stopping", "web:1": "stopping"}
    driver.end("web:0", 0)
    driver.end("web:1", 0)
    assert driver.states() == {"web:0": "running", "web:1": "running"}


def test_what_is_scaled_away_holds_nobody_back(driver: Driver) -> None:
    driver.add("db", replicas=2)
    driver.add("web", after=["db"])
    driver.deaf.add("db")
    driver.start("db")
    driver.scale("db", 1)
    driver.start("web")
    assert driver.states() == {"db:0": "running", "db:1": "stopping", "web": "running"}


def test_a_start_does_not_bring_back_what_was_scaled_away(driver: Driver) -> None:
    driver.add("web", replicas=2)
    driver.start()
    driver.deaf.add("web")
    driver.scale("web", 1)
    driver.start()
    driver.restart("web")
    driver.end("web:1", 0)
    driver.end("web", 0)
    assert driver.states() == {"web": "running"}


def test_what_is_not_wanted_is_scaled_without_starting(driver: Driver) -> None:
    driver.add("web")
    driver.scale("web", 3)
    driver.start()
    driver.stop("web")
    driver.scale("web", 4)
    assert set(driver.states().values()) == {"stopped"}
    with pytest.raises(ValueError, match="cannot have -1 replicas"):
        driver.scale("web", -1)


def test_scaled_from_nothing_it_starts_if_it_is_wanted(driver: Driver) -> None:
    driver.add("web", replicas=1)
    driver.start()
    driver.scale("web", 0)
    driver.scale("web", 2)
    assert driver.states() == {"web:0": "running", "web:1": "running"}


# Many at once -------------------------------------------------------------------------------------------------------


def test_a_hundred_that_die_together_neither_stampede_nor_starve() -> None:
    driver = Driver(max_starting=5)
    for number in range(100):
        driver.add(f"s{number}", restart=AFTER_3, ready="notify", priority=number % 3)
    driver.start()
    driver.slow.update(driver.supervisor.services)
    assert driver.log
    for name in driver.supervisor.services:
        driver.end(name)
    driver.wait(2.9)
    assert driver.log == ""
    driver.wait(0.1)
    while starting := [name for name, state in driver.states().items() if state == "starting"]:
        assert len(starting) <= 5
        driver.wait(0.1)
        driver.ready(starting[0])
    assert driver.max_seen <= 5
    assert set(driver.states().values()) == {"running"}
    launched = driver.log.split()
    assert len(launched) == 100
    priorities = [driver[word[1:]].spec.priority for word in launched]
    assert priorities == sorted(priorities, reverse=True)


def test_a_refused_process_waits_for_its_turn_without_blame(driver: Driver) -> None:
    driver.add("web", restart="never")
    driver.slow.add("web")
    driver.start()
    driver.supervisor.refused(driver["web"], 1, driver.now, "fork: no more processes")
    driver.settle()
    assert (driver.state("web"), driver["web"].detail) == (S.WAITING, "fork: no more processes")
    driver.slow.clear()
    driver.wait(0.05)
    assert (driver.state("web"), len(driver["web"].exits)) == (S.RUNNING, 0)


def test_whoever_waits_for_its_turn_says_so() -> None:
    driver = Driver(max_starting=1)
    driver.add("a", ready="notify")
    driver.add("b")
    driver.slow.add("a")
    driver.start()
    assert driver["b"].detail == "waits for its turn"


# Groups: OTP's catalogue --------------------------------------------------------------------------------------------

ALL = ServiceGroup("all", "one_for_all", max_restarts=2, within=5)
REST = ServiceGroup("rest", "rest_for_one", max_restarts=2, within=5)
ONE = ServiceGroup("one", "one_for_one", max_restarts=2, within=5)


@pytest.mark.parametrize(
    ("group", "log"),
    [
        (ONE, "+b"),
        (ALL, "?d ?a ?c +a +b +c +d"),
        (REST, "?d ?c +b +c +d"),
    ],
)
def test_who_restarts_along(driver: Driver, group: ServiceGroup, log: str) -> None:
    for name in "abcd":
        driver.add(name, group=group, restart=AT_ONCE, after=["c"] if name == "d" else [])
    driver.start()
    assert driver.log == "+a +b +c +d"
    driver.end("b")
    assert sorted(driver.log.split()) == sorted(log.split())
    assert set(driver.states().values()) == {"running"}
    assert [driver[name].restarts for name in "abcd"] == [0, 1, 0, 0]


def test_replicas_of_one_service_do_not_share_the_fate_of_one(driver: Driver) -> None:
    driver.add("a", replicas=3, group=ONE, restart=AT_ONCE)
    driver.start()
    assert driver.log
    driver.end("a:1")
    assert driver.log == "+a:1"


def test_none_comes_back_before_all_have_gone_and_the_delay_is_over(driver: Driver) -> None:
    driver.add("a", group=ALL, restart=AFTER_3)
    driver.add("b", group=ALL, restart=AFTER_3)
    driver.add("c", group=ALL, restart=AFTER_3, stop_timeout=60)
    driver.deaf.add("c")
    driver.start()
    driver.end("a")
    assert driver.states() == {"a": "backoff", "b": "backoff", "c": "stopping"}
    driver.wait(3)
    assert driver.states() == {"a": "waiting", "b": "waiting", "c": "stopping"}
    assert driver["a"].detail == "waits for group all to stop"
    driver.end("c", 0)
    assert set(driver.states().values()) == {"running"}


def test_a_member_that_dies_while_its_group_restarts_comes_back_with_it(driver: Driver) -> None:
    """OTP: an exit during terminate_children is part of the restart, and no second one."""
    driver.add("a", group=ALL, restart=AFTER_3)
    driver.add("b", group=ALL, restart=AFTER_3)
    driver.deaf.add("b")
    driver.start()
    driver.end("a")
    driver.end("b", -11)
    driver.wait(3)
    assert (set(driver.states().values()), driver["b"].restarts) == ({"running"}, 0)


def test_two_that_die_at_once_are_one_restart_of_the_group_and_both_delays_are_kept(driver: Driver) -> None:
    group = ServiceGroup("g", "one_for_all", max_restarts=1)
    driver.add("a", group=group, restart=AT_ONCE)
    driver.add("b", group=group, restart=AFTER_3)
    driver.start()
    driver.pensive = True
    driver.end("a")
    driver.end("b")
    driver.answer()
    assert driver.states() == {"a": "running", "b": "backoff"}
    driver.wait(3)
    assert driver.states() == {"a": "running", "b": "running"}
    assert not [event for event in driver.events if event[1] == "group.failed"]


def test_another_childs_failing_restart_restarts_the_group_again_until_it_fails(driver: Driver) -> None:
    """OTP: a sibling that cannot start again counts as another restart; the loop ends with the group."""
    driver.add("a", group=ALL, restart=AT_ONCE)
    driver.add("b", group=ALL, restart=AT_ONCE, ready="notify")
    driver.start()
    driver.slow.add("b")
    driver.end("a")
    assert driver.states() == {"a": "running", "b": "starting"}
    driver.end("b", 0)
    assert driver.states() == {"a": "running", "b": "starting"}
    assert driver["b"].exits[-1].reason is ExitReason.BEFORE_READY
    driver.end("b", 0)
    assert driver.states() == {"a": "stopped", "b": "failed"}
    assert driver["b"].detail == "group all: more than 2 restarts within 5 s"
    assert driver.collapsed == ["group all: more than 2 restarts within 5 s"]
    assert driver.supervisor.next_deadline() is None


def test_a_restart_loop_that_hangs_can_be_stopped(driver: Driver) -> None:
    driver.add("a", group=ServiceGroup("g", "one_for_all", max_restarts=None), restart=AT_ONCE, ready="notify")
    driver.add("b", group=ServiceGroup("g", "one_for_all", max_restarts=None), restart=AT_ONCE)
    driver.slow.add("a")
    driver.start()
    for _ in range(50):
        driver.end("a")
    driver.stop_all()
    assert driver.supervisor.down
    driver.wait(100)
    assert driver.supervisor.down


def test_a_group_that_fails_is_restarted_as_a_whole_by_its_parent(driver: Driver) -> None:
    outer = ServiceGroup("outer", "rest_for_one", max_restarts=1, within=60)
    inner = ServiceGroup("inner", "one_for_one", max_restarts=1, within=5, parent=outer)
    driver.add("a", group=outer, restart=AT_ONCE)
    driver.add("b", group=inner, restart=AT_ONCE)
    driver.add("c", group=inner, restart=AT_ONCE)
    driver.add("d", group=outer, restart=AT_ONCE)
    driver.start()
    driver.end("b")
    assert driver.log == "+a +b +c +d +b"
    driver.end("b")
    assert sorted(driver.log.split()) == ["+b", "+c", "+d", "?c", "?d"]
    assert set(driver.states().values()) == {"running"}
    driver.end("c")
    driver.end("c")
    assert driver.states() == {"a": "stopped", "b": "stopped", "c": "failed", "d": "stopped"}
    assert [name for _, kind, name in driver.events if kind == "group.failed"] == ["inner", "inner", "outer"]


def test_a_failed_group_that_is_ignored_can_be_started_by_hand_and_starts_afresh(driver: Driver) -> None:
    group = ServiceGroup("g", "one_for_all", max_restarts=1, on_give_up="ignore")
    driver.add("a", group=group, restart=AT_ONCE)
    driver.add("b", group=group, restart=AT_ONCE)
    driver.start()
    driver.end("a")
    driver.end("a")
    assert (driver.states(), driver.collapsed) == ({"a": "failed", "b": "stopped"}, [])
    driver.scale("b", 2)
    assert driver.states() == {"a": "failed", "b:0": "stopped", "b:1": "stopped"}
    driver.start()
    driver.end("a")
    assert set(driver.states().values()) == {"running"}


def test_temporary_members_do_not_come_back_with_their_siblings(driver: Driver) -> None:
    driver.add("a", group=ALL, restart=AT_ONCE)
    driver.add("b", group=ALL, restart="never")
    driver.start()
    driver.end("a")
    assert (driver.states(), reasons(driver, "b")) == ({"a": "running", "b": "stopped"}, ["group restart"])


def test_a_group_that_is_restarted_as_a_whole_starts_its_temporary_members_too(driver: Driver) -> None:
    outer = ServiceGroup("outer", "one_for_all", max_restarts=1)
    inner = ServiceGroup("inner", "one_for_one", max_restarts=0, parent=outer)
    driver.add("a", group=inner, restart=AT_ONCE)
    driver.add("b", group=inner, restart="never")
    driver.add("c", group=outer, restart="never")
    driver.start()
    driver.end("a")
    assert driver.states() == {"a": "running", "b": "running", "c": "stopped"}


def test_a_second_restart_while_the_group_stops_keeps_the_longer_delay(driver: Driver) -> None:
    group = ServiceGroup("g", "one_for_all", max_restarts=None)
    driver.add("a", group=group, restart=AFTER_3)
    driver.add("b", group=group, restart=AT_ONCE)
    driver.add("c", group=group, restart=AT_ONCE, stop_timeout=60)
    driver.deaf.add("c")
    driver.start()
    driver.pensive = True
    driver.end("a")
    driver.answer()
    driver.start("b")  # waits for c to stop
    driver.end("c", 0)
    assert driver.states() == {"a": "backoff", "b": "running", "c": "backoff"}
    driver.restart("c")
    driver.end("b")
    driver.answer()
    assert driver.states() == {"a": "backoff", "b": "waiting", "c": "stopping"}
    driver.end("c", 0)
    assert driver.states() == {"a": "backoff", "b": "running", "c": "running"}
    driver.wait(3)
    assert driver.state("a") is S.RUNNING


def test_the_group_waits_for_a_member_that_is_being_stopped(driver: Driver) -> None:
    driver.add("a", group=ALL, restart=AT_ONCE)
    driver.add("b", group=ALL)
    driver.deaf.add("b")
    driver.start()
    driver.stop("b")
    driver.end("a")
    assert driver.states() == {"a": "waiting", "b": "stopping"}
    driver.end("b", 0)
    assert driver.states() == {"a": "running", "b": "stopped"}


def test_members_that_are_stopped_or_completed_stay_so(driver: Driver) -> None:
    driver.add("a", group=ALL, restart=AT_ONCE)
    driver.add("b", group=ALL, restart="on-failure")
    driver.add("c", group=ALL)
    driver.start()
    driver.end("b", 0)
    driver.stop("c")
    driver.end("a")
    assert driver.states() == {"a": "running", "b": "completed", "c": "stopped"}


def test_a_group_does_not_shorten_the_delay_of_a_member(driver: Driver) -> None:
    group = ServiceGroup("g", "one_for_all", max_restarts=None)
    driver.add("a", group=group, restart=AFTER_3)
    driver.add("b", group=group, restart=AT_ONCE)
    driver.start()
    driver.end("a")
    driver.wait(1)
    assert driver.states() == {"a": "backoff", "b": "backoff"}
    driver.wait(2)
    driver.end("a")
    driver.start("b")
    driver.end("b")
    assert driver.states() == {"a": "backoff", "b": "running"}
    driver.wait(2.9)
    assert driver.state("a") is S.BACKOFF


def test_stopped_and_started_while_its_group_restarts_a_member_restarts_with_it(driver: Driver) -> None:
    driver.add("a", group=ALL, restart=AT_ONCE)
    driver.add("b", group=ALL, restart=AT_ONCE)
    driver.add("c", group=ALL, restart=AT_ONCE, after=["b"], stop_timeout=60)
    driver.deaf.add("c")
    driver.start()
    driver.end("a")
    assert driver.states() == {"a": "waiting", "b": "running", "c": "stopping"}
    driver.stop("b")
    driver.start("b")
    driver.end("c", 0)
    assert set(driver.states().values()) == {"running"}
    assert driver["b"].attempt == 2


# The end ------------------------------------------------------------------------------------------------------------


def test_thousands_of_replicas_keep_their_order(driver: Driver) -> None:
    driver.add("web", replicas=2)
    service = driver.supervisor.services["web"]
    driver.supervisor.scale(service, 5000, driver.now)
    assert [replica.number for replica in service.replicas] == list(range(5000))
    driver.supervisor.scale(service, 1, driver.now)
    assert [replica.number for replica in service.replicas] == [0]


def test_how_long_stopping_may_take_is_known(driver: Driver) -> None:
    db = driver.add("db", stop_timeout=1)
    cache = driver.add("cache", after=["db"], stop_timeout=20)
    web = driver.add("web", after=["cache"], stop_timeout=300)
    alone = driver.add("alone", stop_timeout=90)
    longest = driver.supervisor.stop_seconds
    assert longest([]) == 0
    assert longest([alone]) == 90 + DUMP_SECONDS
    assert longest([db, web]) == 301 + 2 * DUMP_SECONDS
    assert longest([db, cache, web, alone]) == 321 + 3 * DUMP_SECONDS


@pytest.mark.parametrize("how", ["close", "end"])
def test_nothing_starts_while_the_fleet_ends(driver: Driver, how: str) -> None:
    driver.add("rests", restart="never")
    driver.add("db")
    driver.add("web", after=["db"])
    driver.deaf.add("web")
    driver.start()
    driver.stop("rests")
    if how == "close":
        driver.supervisor.close(driver.now, "the end")
    else:
        driver.finish("web", "db", "rests")
    driver.settle()
    before = driver.states()
    assert before == {"rests": "stopped", "db": "running", "web": "stopping"}
    for name in before:
        for act in (driver.start, driver.restart, lambda name: driver.scale(name, 2)):
            with pytest.raises(FleetStopping, match="the fleet is stopping"):
                act(name)  # type: ignore[operator]
    assert driver.states() == before
    driver.end("web", 0)
    assert driver.supervisor.down
    with pytest.raises(FleetStopping):
        driver.start("rests")


def test_nothing_starts_on_what_ends_with_its_fleet(driver: Driver) -> None:
    driver.add("db")
    driver.add("other", after=["db"])
    driver.add("alone")
    driver.start("db")
    driver.finish("db")
    with pytest.raises(FleetStopping):
        driver.start("other")
    assert driver.state("other") is S.STOPPED
    driver.start("alone")
    assert driver.state("alone") is S.RUNNING


def test_scaling_down_is_no_start(driver: Driver) -> None:
    driver.add("web", replicas=3)
    driver.deaf.add("web")
    driver.start()
    driver.finish("web")
    driver.scale("web", 1)
    for number in range(3):
        driver.end(f"web:{number}", 0)
    assert driver.states() == {"web": "stopped"}


def test_a_fleet_that_has_ended_can_run_again(driver: Driver) -> None:
    driver.add("good", restart="on-failure")
    driver.add("web")
    driver.start()
    driver.end("good", 0)
    driver.finish("web", "good")
    assert driver.states() == {"good": "completed", "web": "stopped"}
    for service in driver.supervisor.services.values():
        driver.supervisor.readmit(service)
    driver.start()
    assert driver.states() == {"good": "running", "web": "running"}


def test_kill_all_waits_for_nobody(driver: Driver) -> None:
    driver.add("db")
    driver.add("web", after=["db"])
    driver.deaf.update(("db", "web"))
    driver.start()
    driver.stop_all()
    driver.supervisor.kill_all(driver.now)
    driver.settle()
    assert driver.supervisor.down
    assert driver.log == "+db +web ?web ?db !db !web"


def test_72_hours_leave_nothing_behind() -> None:
    """Crashes, hangs, leaks, age, groups and people, for three days.

    What leaks is up for one hour of six: that is when memory is looked at, each second.
    """
    random.seed(72)  # tenacity's jitter comes from there
    driver = Driver(max_starting=4)
    group = ServiceGroup("g", "rest_for_one", max_restarts=None)
    policy = RestartPolicy(wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=30))
    for number in range(20):
        limits = WorkerPolicy(max_age=3600.0 + number, max_memory=100 if number == 13 else None)
        after = [f"s{number - 1}"] if number % 5 == 4 else []
        driver.add(f"s{number}", restart=policy, worker=limits, after=after, group=group if number < 5 else None)
    driver.add("silent", restart=policy, watchdog=600)
    driver.start()
    sizes = []
    for hour in range(72):
        (driver.stop if hour % 6 else driver.start)("s13")
        for minute in range(60):
            name = f"s{(hour * 7 + minute) % 20}"
            if driver.state(name) is not S.STOPPED:
                driver.end(name, -11)
            driver.wait(60)
        driver.memory["s13"] = 500 if hour % 12 else 1
        driver.wait(2)
        driver.memory["s13"] = 1
        driver.restart("s7")
        driver.scale("s8", 1 + hour % 3)
        driver.stop("s9")
        driver.start("s9")
        driver.wait(60)
        supervisor = driver.supervisor
        sizes.append(
            len(supervisor._timers._heap)
            + len(supervisor._queue._heap)
            + len(supervisor._replicas)
            + len(supervisor._stopping._requests)
        )
        assert set(driver.states().values()) <= {"running", "backoff", "waiting", "stopping", "stopped"}
        driver.events.clear()
    assert sum(sizes[48:]) <= 1.1 * sum(sizes[:24]), "one entry in six hours would make it more"
    assert len(driver["silent"].exits) == 50
    assert driver["silent"].restarts > 300
    driver.stop_all()
    driver.wait(2)
    assert driver.supervisor.down
    assert driver.supervisor.next_deadline() is None
