"""A keeper goes on with services where an earlier one has left them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import tenacity

from poolkeeper.policy import RestartPolicy, stop_after_burst
from poolkeeper.service_handover import Handover, ServiceRecord
from poolkeeper.service_model import ExitReason, ServiceState
from poolkeeper.service_spec import ServiceGroup
from tests.service_driver import Driver, Heart

PATIENT = RestartPolicy(wait=tenacity.wait_fixed(30))


def heir(
    earlier: Driver,
    *specs: dict[str, Any],
    away: float = 0.0,
    jump: float = 0.0,
    same_boot: bool = True,
    living: bool = True,
) -> Driver:
    """Return another keeper after ``away`` seconds, in which the system's clock has made a ``jump``."""
    supervisor = earlier.supervisor
    supervisor._changes.touched.update(supervisor.services.values())
    handover = Handover(tuple(supervisor.describe(earlier.now)), supervisor.describe_groups())
    left = Handover.from_data(json.loads(json.dumps(handover.to_data())))
    driver = Driver()
    driver.slow, driver.deaf = earlier.slow, earlier.deaf
    driver.now = earlier.now + away
    driver.supervisor.epoch = supervisor.epoch + jump
    driver.supervisor.inherit_groups(left.groups)
    for spec in specs:
        service = driver.add(**spec)
        record = next((one for one in left.services if one.name == service.name), ServiceRecord(service.name))
        processes = {
            replica.number: replica.attempt
            for replica in (supervisor.services[service.name].replicas if living else ())
            if replica.state.has_process
        }
        driver.supervisor.adopt(service, record, driver.now, processes, same_boot=same_boot)
        for replica in list(service.replicas):
            if replica.number in processes:
                driver.supervisor.spawned(replica, replica.attempt, 1000)
            elif replica.state.has_process:
                driver.supervisor.ended(replica, replica.attempt, driver.now, code=None)
    driver.settle()
    return driver


def test_what_runs_goes_on() -> None:
    one = Driver()
    one.add("web", restart=PATIENT)
    one.start()
    one.wait(5)
    other = heir(one, {"name": "web", "restart": PATIENT}, away=3)
    assert other.log == ""
    assert (other.state("web"), other["web"].attempt, other["web"].pid) == (ServiceState.RUNNING, 1, 1000)
    assert other["web"].ready_at == 0.0
    other.end("web")
    assert other.state("web") is ServiceState.BACKOFF
    assert other["web"].restarts == 1
    other.wait(30)
    assert other.log == "+web"
    assert other["web"].attempt == 2


def test_what_has_ended_meanwhile_goes_to_its_policy() -> None:
    one = Driver()
    one.add("web", restart=PATIENT)
    one.start()
    other = heir(one, {"name": "web", "restart": PATIENT}, living=False)
    assert other.state("web") is ServiceState.BACKOFF
    assert other["web"].exits[-1].reason is ExitReason.UNKNOWN
    assert other["web"].restarts == 1


def test_a_delay_ends_when_it_would_have_whatever_the_clock_says() -> None:
    for jump in (0.0, 1e6, -1e6):
        one = Driver()
        one.add("web", restart=PATIENT)
        one.start()
        one.end("web")
        one.wait(10)
        other = heir(one, {"name": "web", "restart": PATIENT}, away=5, jump=jump)
        assert other["web"].due == 30.0
        other.wait(14.9)
        assert other.log == ""
        other.wait(0.1)
        assert other.log == "+web"
        assert other["web"].attempt == 2


def test_after_a_reboot_a_delay_is_no_longer_than_it_was() -> None:
    for jump, due in ((0.0, 30.0), (1e6, 15.0), (-1e6, 15.0 + 30.0)):
        one = Driver()
        one.add("web", restart=PATIENT)
        one.start()
        one.end("web")
        one.wait(10)
        other = heir(one, {"name": "web", "restart": PATIENT}, away=5, jump=jump, same_boot=False)
        assert other["web"].due is None or other["web"].due <= due
        if jump <= 0:
            assert other["web"].due is not None


def test_who_was_at_rest_stays_so() -> None:
    specs: list[dict[str, Any]] = [
        {"name": "failed", "restart": RestartPolicy.on_failure(0)},
        {"name": "completed", "restart": "on-failure"},
        {"name": "stopped"},
        {"name": "never"},
    ]
    one = Driver()
    for spec in specs:
        one.add(**spec)
    one.start("failed", "completed", "stopped")
    one.end("failed", 1)
    one.end("completed", 0)
    one.stop("stopped")
    other = heir(one, *specs)
    assert other.log == ""
    assert other.states() == {"failed": "failed", "completed": "completed", "stopped": "stopped", "never": "stopped"}
    assert "policy is exhausted" in other["failed"].detail
    other.start("failed")
    assert other.log == "+failed"


def test_what_stopped_because_the_keeper_left_starts_again() -> None:
    one = Driver()
    one.add("web")
    one.add("failed", restart="never")
    one.add("stopped")
    one.add("waits", restart=PATIENT)
    one.start()
    one.end("failed")
    one.stop("stopped")
    one.end("waits")
    one.stop_all()
    other = heir(one, {"name": "web"}, {"name": "failed"}, {"name": "stopped"}, {"name": "waits"})
    assert other.states() == {"web": "running", "failed": "failed", "stopped": "stopped", "waits": "running"}
    assert other["web"].attempt == 2


def test_a_policy_remembers() -> None:
    policy = RestartPolicy(stop=stop_after_burst(3, 100), wait=tenacity.wait_none())
    one = Driver()
    one.add("web", restart=policy)
    one.start()
    one.end("web")
    one.end("web")
    other = heir(one, {"name": "web", "restart": policy}, away=10, jump=1e6)
    other.end("web")
    assert other.state("web") is ServiceState.FAILED
    assert other["web"].restarts == 2
    assert len(other["web"].exits) == 3


def test_a_policy_that_was_still_thinking_is_asked_again() -> None:
    one = Driver()
    one.pensive = True
    one.add("web", restart=PATIENT)
    one.start()
    one.wait(7)
    one.end("web")
    other = heir(one, {"name": "web", "restart": PATIENT}, away=1)
    assert other["web"].due == 37.0
    assert other["web"].restarts == 1


def test_a_stop_goes_on_and_has_its_time_again() -> None:
    one = Driver()
    one.deaf.add("web")
    one.add("web")
    one.start()
    one.stop("web")
    one.wait(9)
    other = heir(one, {"name": "web"})
    assert other.state("web") is ServiceState.STOPPING
    assert other.log == "?web"
    other.wait(9.9)
    assert other.log == ""
    other.wait(2)
    assert other.log == "#web !web"
    assert other.states() == {"web": "stopped"}


def test_a_restart_by_hand_is_finished() -> None:
    one = Driver()
    one.deaf.add("web")
    one.add("web")
    one.start()
    one.restart("web")
    other = heir(one, {"name": "web"})
    other.end("web", -15)
    assert other.state("web") is ServiceState.RUNNING
    assert other["web"].attempt == 2
    assert other["web"].restarts == 0


def test_who_has_not_been_asked_yet_is_asked_in_its_turn() -> None:
    one = Driver()
    one.deaf.add("web")
    one.add("db")
    one.add("web", after=["db"])
    one.start()
    one.stop("web")
    one.stop("db")
    assert one.states() == {"db": "running", "web": "stopping"}
    other = heir(one, {"name": "db"}, {"name": "web", "after": ["db"]})
    assert "?db" not in other.log.split()
    other.end("web", 0)
    assert other.log == "?db"
    assert other.states() == {"db": "stopped", "web": "stopped"}


def test_replicas_that_are_declared_no_more_are_stopped() -> None:
    one = Driver()
    one.add("web", replicas=3)
    one.start()
    one.deaf.add("web")
    other = heir(one, {"name": "web", "replicas": 1})
    assert other.log == "?web:1 ?web:2"
    other.end("web:1", 0)
    other.end("web:2", 0)
    assert other.states() == {"web": "running"}


def test_a_scale_by_hand_holds_until_the_declaration_is_another() -> None:
    one = Driver()
    one.add("web", replicas=2)
    one.start()
    one.scale("web", 4)
    assert len(heir(one, {"name": "web", "replicas": 2}).states()) == 4
    assert len(heir(one, {"name": "web", "replicas": 3}).states()) == 3
    other = heir(one, {"name": "web", "replicas": 5})
    assert other.log == "+web:4"
    assert set(other.states().values()) == {"running"}
    one.scale("web", 1)
    assert heir(one, {"name": "web", "replicas": 2}).states() == {"web": "running"}


def test_the_watchdog_and_the_start_have_their_time_again() -> None:
    one = Driver()
    one.slow.add("slow")
    one.add("web", watchdog=10)
    one.add("slow", start_timeout=10, restart=PATIENT)
    one.start()
    one.wait(9)
    other = heir(
        one, {"name": "web", "watchdog": 10}, {"name": "slow", "start_timeout": 10, "restart": PATIENT}, away=9
    )
    other.deaf = {"web", "slow"}
    other.wait(9.9)
    assert other.log == ""
    other.wait(0.2)
    assert other.log == "#slow ?slow"
    other.wait(1)
    assert other.log == "#web", "it has not called, and had a moment more"


def test_a_keeper_that_has_slept_hears_first_who_has_called_meanwhile() -> None:
    one = Driver()
    one.add("web", watchdog=10)
    one.start()
    other = heir(one, {"name": "web", "watchdog": 10})
    other.now += 10.9  # not so late that it can tell from being busy
    other.settle()
    assert other.log == ""
    other["web"].pulse = heart = Heart()
    heart.last = other.now
    other.wait(9)
    assert other.log == ""


def test_what_may_have_said_that_it_is_ready_unheard_is_not_ended_for_that() -> None:
    """Other people's programs say so once: if the keeper dies that has just heard it, nobody knows."""
    spec: dict[str, Any] = {"name": "slow", "start_timeout": 10, "restart": PATIENT}
    one = Driver()
    one.slow.add("slow")
    one.add(**spec)
    one.start()
    other = heir(one, spec, away=9)
    other.supervisor.presume(other["slow"], other["slow"].attempt)
    other.wait(9.9)
    assert other.state("slow") is ServiceState.STARTING
    other.wait(0.2)
    assert other.state("slow") is ServiceState.RUNNING
    assert "taken for ready" in other["slow"].detail
    assert other.log == ""
    other.end("slow")
    other.wait(41)
    assert "?slow" in other.log, "the next one has no such doubt"


def test_a_doubt_about_one_process_is_none_about_a_later_one_that_is_found() -> None:
    spec: dict[str, Any] = {"name": "slow", "start_timeout": 10, "restart": PATIENT}
    one = Driver()
    one.slow.add("slow")
    one.add(**spec)
    one.start()
    other = heir(one, spec)
    other.supervisor.presume(other["slow"], other["slow"].attempt)
    other.end("slow")
    later = other["slow"].attempt + 1
    assert other.supervisor.found(other.supervisor.services["slow"], 0, later, other.now) is other["slow"]
    other.wait(11)
    assert "?slow" in other.log


def test_a_group_finishes_its_restart_and_counts_on() -> None:
    group = ServiceGroup("all", strategy="one_for_all", max_restarts=1, within=1000, on_give_up="ignore")
    specs: list[dict[str, Any]] = [{"name": name, "group": group, "restart": PATIENT} for name in ("a", "b")]
    one = Driver()
    for spec in specs:
        one.add(**spec)
    one.start()
    one.deaf.add("b")
    one.end("a")
    assert one.states() == {"a": "backoff", "b": "stopping"}
    other = heir(one, *specs)
    other.wait(40)
    assert other.states()["b"] == "stopping" or "!b" in other.log
    if other.state("b") is ServiceState.STOPPING:
        other.end("b", 0)
    other.wait(40)
    assert other.states() == {"a": "running", "b": "running"}
    other.end("a")
    assert other.state("a") is ServiceState.FAILED


def test_a_process_that_nobody_knew_of_is_found_before_another_is_made() -> None:
    driver = Driver()
    service = driver.add("web")
    driver.supervisor.hold(2.0)
    driver.start()
    assert driver.log == ""
    replica = driver.supervisor.found(service, 0, 7, driver.now)
    assert replica is not None
    driver.supervisor.spawned(replica, 7, 4711)
    driver.supervisor.started(replica, 7, driver.now)
    driver.supervisor.hold(None)
    driver.settle()
    assert driver.log == ""
    assert (replica.state, replica.attempt, replica.pid) == (ServiceState.RUNNING, 7, 4711)
    assert driver.supervisor.found(service, 0, 8, driver.now) is None
    assert driver.supervisor.found(service, 1, 8, driver.now) is None


def test_a_number_that_somebody_else_has_had_is_not_given_again() -> None:
    driver = Driver()
    service = driver.add("web")
    driver.start()
    assert driver.supervisor.found(service, 0, 3, driver.now) is None
    driver.restart("web")
    assert driver["web"].attempt == 4


def test_who_is_found_while_all_is_to_end_ends_too() -> None:
    driver = Driver()
    service = driver.add("web")
    driver.supervisor.hold(2.0)
    driver.start()
    driver.stop_all()
    assert driver.supervisor.down
    replica = driver.supervisor.found(service, 0, 7, driver.now)
    assert replica is not None
    driver.supervisor.spawned(replica, 7, 4711)
    driver.settle()
    assert driver.log == "?web"
    assert driver.supervisor.down
    (record,) = driver.supervisor.describe(driver.now)
    assert record.wanted, "the next keeper starts it again"
    assert record.replicas[0].up


def test_nobody_waits_longer_than_for_the_roll_call() -> None:
    driver = Driver()
    driver.add("web")
    driver.supervisor.hold(2.0)
    driver.start()
    driver.wait(1.9)
    assert driver.log == ""
    driver.wait(0.2)
    assert driver.log == "+web"


def test_a_keeper_that_has_slept_through_the_roll_call_listens_first() -> None:
    driver = Driver()
    driver.add("web")
    driver.supervisor.hold(2.0)
    driver.start()
    driver.now = 1000.0
    driver.settle()
    assert driver.log == ""
    driver.wait(2)
    assert driver.log == "+web"


def test_a_record_that_is_older_than_the_process() -> None:
    one = Driver()
    one.add("web", restart=RestartPolicy.on_failure(0))
    one.start()
    one.end("web")
    assert one.state("web") is ServiceState.FAILED
    supervisor = one.supervisor
    supervisor._changes.touched.update(supervisor.services.values())
    (record,) = supervisor.describe(one.now)
    other = Driver()
    service = other.add("web")
    other.supervisor.adopt(service, replace(record, wanted=False), 1.0, {0: 2}, same_boot=True)
    assert other.state("web") is ServiceState.STARTING
    assert other["web"].attempt == 2
    assert other["web"].up


def test_only_what_has_changed_is_described() -> None:
    driver = Driver()
    driver.add("a")
    driver.add("b")
    driver.start("a")
    assert [record.name for record in driver.supervisor.describe(0.0)] == ["a"]
    assert driver.supervisor.describe(0.0) == []
    driver.stop("a")
    driver.start("b")
    assert [record.name for record in driver.supervisor.describe(0.0)] == ["a", "b"]
