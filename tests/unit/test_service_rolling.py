"""Processes whose code has changed are replaced one after the other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolkeeper.policy import RestartPolicy
from poolkeeper.replica import Replica, Service
from poolkeeper.service_handover import Handover
from poolkeeper.service_model import ExitReason
from poolkeeper.service_spec import ServiceSpec
from tests.service_driver import Driver


def fleet(*names: str, slow: bool = True, **declared: object) -> Driver:
    """Return services that run, each after the one before it; their next processes are not ready until told so."""
    driver = Driver()
    for before, name in zip(("", *names), names, strict=False):
        driver.add(name, after=[before] if before else [], **declared)
    driver.start()
    assert set(driver.states().values()) == {"running"}
    if slow:
        driver.slow = set(names)
    _ = driver.log
    return driver


def mute(driver: Driver, *names: str) -> None:
    """The processes turn out to be of another version."""
    for name in names:
        driver.supervisor.muted(driver[name], driver[name].attempt)
    turn(driver)


def outdate(driver: Driver) -> None:
    for service in driver.supervisor.services.values():
        for replica in service.replicas:
            driver.supervisor.outdated(replica, replica.attempt)
    driver.supervisor._changes.touched.clear()
    turn(driver)


def turn(driver: Driver) -> None:
    """The keeper's loop comes round."""
    while commands := driver.supervisor.decide(driver.now):
        for command in commands:
            driver._carry_out(command)


def upgrades(driver: Driver) -> list[tuple[str, str]]:
    return [(kind, name) for _, kind, name in driver.events if kind.startswith("upgrade")]


def successor(driver: Driver, name: str) -> Replica:
    found = driver[name].successor
    assert found is not None
    return found


def ready(driver: Driver, replica: Replica) -> None:
    driver.supervisor.ready(replica, replica.attempt, driver.now)
    turn(driver)


def test_one_at_a_time_in_the_order_of_dependency() -> None:
    driver = fleet("base", "web", "cron")
    outdate(driver)
    assert driver.log == "?base +base"
    turn(driver)
    assert driver.log == ""
    ready(driver, driver["base"])
    assert driver.log == "?web +web"
    ready(driver, driver["web"])
    ready(driver, driver["cron"])
    assert driver.log == "?cron +cron"
    assert set(driver.states().values()) == {"running"}
    assert [driver[name].attempt for name in ("base", "web", "cron")] == [2, 2, 2]
    assert [driver[name].restarts for name in ("base", "web", "cron")] == [0, 0, 0]
    assert driver["web"].exits[-1].reason is ExitReason.UPGRADED
    assert not driver["web"].exits[-1].failure
    assert upgrades(driver) == [("upgrade.completed", "")]


def test_replicas_are_replaced_one_by_one() -> None:
    driver = fleet("web", replicas=3)
    outdate(driver)
    assert driver.log == "?web:0 +web:0"
    ready(driver, driver["web:0"])
    assert driver.log == "?web:1 +web:1"


@pytest.mark.parametrize("overlap", [False, True])
def test_one_that_does_not_become_ready_ends_it(*, overlap: bool) -> None:
    driver = fleet("base", "web", overlap=overlap, restart=RestartPolicy.on_failure(0))
    outdate(driver)
    fails = successor(driver, "base") if overlap else driver["base"]
    driver.supervisor.ended(fails, fails.attempt, driver.now, code=1)
    turn(driver)
    assert upgrades(driver) == [("upgrade.failed", "base")]
    assert driver["web"].attempt == 1
    assert driver["web"].detail == "its code has changed, and the upgrade has stopped at base"
    if overlap:
        assert driver.states() == {"base": "running", "web": "running"}
        assert driver["base"].attempt == 1
        assert "its new process has not become ready" in driver["base"].detail
        assert driver["base"].exits[-1].attempt == 2
        assert not driver.supervisor.services["base"].extras
        record = driver.supervisor.describe(driver.now)[0].replicas[0]
        assert (record.attempt, record.used) == (1, 2), "the next keeper uses no tag twice either"
        driver.slow.clear()
        driver.restart("base")
        assert driver["base"].attempt == 3, "no tag is used twice"
    else:
        assert driver.states() == {"base": "failed", "web": "running"}


def test_with_overlap_the_old_one_ends_when_the_new_one_is_ready() -> None:
    driver = fleet("base", "web", overlap=True)
    driver.deaf = {"base"}
    old, pid = driver["base"], driver["base"].pid
    outdate(driver)
    assert driver.log == "+base"
    assert (driver.states()["base"], driver["base"].pid) == ("running", pid)
    ready(driver, successor(driver, "base"))
    assert driver.log == "?base"
    assert driver["base"] is not old
    assert (driver["base"].attempt, driver["base"].state.value) == (2, "running")
    assert driver.supervisor.services["base"].satisfied
    driver.supervisor.ended(old, old.attempt, driver.now, code=0)
    turn(driver)
    assert driver.log == "+web", "the next one waits until the old one is gone"
    assert not driver.supervisor.services["base"].extras
    ready(driver, successor(driver, "web"))
    assert upgrades(driver) == [("upgrade.completed", "")]
    assert driver.supervisor.size == 2


def test_if_the_old_one_dies_first_the_new_one_stands_for_it() -> None:
    driver = fleet("web", overlap=True)
    outdate(driver)
    new = successor(driver, "web")
    driver.end("web")
    assert driver["web"] is new
    assert (driver.state("web").value, driver.log) == ("starting", "+web")
    ready(driver, new)
    assert upgrades(driver) == [("upgrade.completed", "")]
    driver.slow.clear()
    driver.end("web")
    driver.wait(60)
    assert (driver["web"].attempt, driver["web"].restarts) == (3, 1)


def test_a_successor_that_takes_too_long_is_given_up() -> None:
    driver = fleet("web", overlap=True, start_timeout=5)
    outdate(driver)
    driver.wait(6)
    assert upgrades(driver) == [("upgrade.failed", "web")]
    assert (driver["web"].attempt, driver.state("web").value) == (1, "running")
    assert driver.supervisor.size == 1


@pytest.mark.parametrize("how", ["stop", "scale", "stop_all"])
def test_who_is_stopped_meanwhile_has_no_successor(how: str) -> None:
    driver = fleet("web", overlap=True)
    outdate(driver)
    match how:
        case "stop":
            driver.stop("web")
        case "scale":
            driver.scale("web", 0)
        case _:
            driver.stop_all()
    assert driver.supervisor.down
    assert upgrades(driver) == []
    assert not driver.supervisor.services["web"].extras


def test_what_is_stopped_by_hand_does_not_hold_up_the_others() -> None:
    driver = fleet("base", "web")
    outdate(driver)
    driver.stop("base")
    turn(driver)
    assert driver["base"].state.value == "stopped"
    ready(driver, driver["web"])
    assert driver["web"].attempt == 1, "it waits for what it is after"
    driver.slow.clear()
    driver.start("base")
    assert driver["web"].attempt == 2


def test_one_that_cannot_be_replaced_yet_does_not_hold_up_those_that_are_not_after_it() -> None:
    driver = Driver()
    for name in ("base", "web", "cron"):
        driver.add(name, after=["base"] if name == "web" else [], restart=RestartPolicy.on_failure(0))
    driver.start()
    driver.end("base")
    assert driver.states() == {"base": "failed", "web": "running", "cron": "running"}
    _ = driver.log
    outdate(driver)
    assert driver.log == "?cron +cron"
    assert driver["web"].attempt == 1
    driver.start("base")
    assert driver["web"].attempt == 2


def test_who_is_stopped_meanwhile_and_goes_on_after_all_is_replaced() -> None:
    driver = fleet("base", "web", slow=False)
    driver.deaf = {"web"}
    supervisor = driver.supervisor
    supervisor.stop(supervisor.services["web"], driver.now)
    turn(driver)
    outdate(driver)
    supervisor.stop(supervisor.services["base"], driver.now)
    turn(driver)
    assert (driver.state("base").value, driver["base"].attempt) == ("running", 1), "it waits until web is down"
    supervisor.start(supervisor.services["base"], driver.now)
    driver.deaf.clear()
    supervisor.ended(driver["web"], 1, driver.now, code=0)
    turn(driver)
    assert (driver.state("base").value, driver["base"].attempt) == ("running", 2)


def test_nothing_is_stopped_before_it_is_known_what_there_is() -> None:
    driver = fleet("web", slow=False)
    driver.supervisor.hold(5.0)
    outdate(driver)
    assert driver.log == ""
    driver.wait(6)
    assert driver.log == "?web +web"


def heir(code: str, left: str) -> tuple[Driver, Service]:
    """Return a keeper that takes over a process that was made from ``left`` where ``code`` is declared now."""
    one = Driver()
    one.supervisor.add(ServiceSpec("web", print), left)
    one.start()
    handover = Handover.from_data(Handover(tuple(one.supervisor.describe(0.0))).to_data())
    driver = Driver()
    service = driver.supervisor.add(ServiceSpec("web", print), code)
    driver.supervisor.adopt(service, replace(handover.services[0]), 0.0, {0: 1}, same_boot=True)
    driver.supervisor.spawned(service.replicas[0], 1, 1000)
    driver.settle()
    turn(driver)
    return driver, service


@pytest.mark.parametrize(
    ("code", "left", "replaced"), [("a", "a", False), ("b", "a", True), ("", "a", False), ("b", "", False)]
)
def test_a_declaration_that_has_changed_is_known_by_its_fingerprint(code: str, left: str, *, replaced: bool) -> None:
    driver, service = heir(code, left)
    assert driver.log == ("?web +web" if replaced else "")
    assert service.replicas[0].code == (code if replaced else left)


@pytest.mark.parametrize("overlap", [False, True])
def test_one_that_can_never_say_that_it_is_ready_is_replaced_all_the_same(*, overlap: bool) -> None:
    driver = Driver()
    driver.slow = {"web"}
    driver.add("web", ready="notify", start_timeout=600.0, overlap=overlap)
    driver.start()
    old = driver["web"]
    mute(driver, "web")
    if overlap:
        ready(driver, successor(driver, "web"))
        driver.slow.clear()
    else:
        ready(driver, driver["web"])
    assert (driver.state("web").value, driver["web"].attempt) == ("running", 2)
    assert old.exits[-1].reason is ExitReason.UPGRADED
    assert upgrades(driver) == [("upgrade.completed", "")]


def test_one_that_cannot_be_heard_is_not_taken_for_hung_while_it_waits_for_its_turn() -> None:
    driver = fleet("base", "web", watchdog=1.0)
    mute(driver, "base", "web")
    assert driver["base"].attempt == 2
    driver.wait(20.0)
    assert (driver.state("web").value, driver["web"].attempt) == ("running", 1)
    ready(driver, driver["base"])
    assert driver["web"].attempt == 2
    assert driver["web"].exits[-1].reason is ExitReason.UPGRADED


def test_one_that_may_have_got_ready_unheard_is_not_ended_for_its_start_timeout() -> None:
    driver = fleet("base")
    driver.slow = {"base", "web"}
    driver.add("web", ready="notify", start_timeout=5.0, after=["base"])
    driver.start()
    assert driver.state("web").value == "starting"
    mute(driver, "base", "web")
    driver.wait(10.0)
    assert (driver.state("web").value, driver["web"].attempt) == ("running", 1)
    ready(driver, driver["base"])
    assert driver["web"].attempt == 2
