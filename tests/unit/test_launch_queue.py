"""Who starts next: priority, then age, and nobody whom something holds back."""

from __future__ import annotations

import random

from poolkeeper.launch_queue import ITS_TURN, LaunchQueue
from poolkeeper.replica import Replica, Service
from poolkeeper.service_spec import ServiceSpec


class Line:
    """A queue, and what holds its members back."""

    def __init__(self) -> None:
        self.obstacles: dict[Replica, str] = {}
        self.asked = 0
        self.queue = LaunchQueue(self._obstacle)

    def _obstacle(self, replica: Replica) -> str | None:
        self.asked += 1
        return self.obstacles.get(replica)

    def join(self, name: str, priority: int = 0, since: float = 0.0) -> Replica:
        service = Service(ServiceSpec(name, print, priority=priority))
        replica = Replica(len(self.queue) + 1, service, 0)
        service.replicas.append(replica)
        replica.waiting_since = since
        self.queue.add(replica)
        return replica

    def take(self, now: float = 0.0) -> str:
        replica = self.queue.take(now)
        return "" if replica is None else replica.name


def test_by_priority_then_age_then_declaration() -> None:
    line = Line()
    line.join("late", 0, 5.0)
    line.join("early", 0, 1.0)
    line.join("second", 0, 1.0)
    line.join("urgent", 9, 9.0)
    assert [line.take() for _ in range(5)] == ["urgent", "early", "second", "late", ""]
    assert not len(line.queue)


def test_whoever_is_held_back_lets_others_go_and_says_why() -> None:
    line = Line()
    first, second = line.join("first", 5), line.join("second")
    line.obstacles[first] = "waits for db, which is starting"
    assert line.take() == "second"
    assert line.take() == ""
    assert first.detail == "waits for db, which is starting"
    assert line.queue.opens is None
    del line.obstacles[first]
    assert line.take() == ""  # nobody has said that something has changed
    line.queue.recheck()
    assert line.queue.opens is not None
    line.queue.review()
    assert first.detail == ITS_TURN
    assert line.take() == "first"
    assert second.detail == ""


def test_whoever_has_left_is_not_handed_out() -> None:
    line = Line()
    gone, held, here = line.join("gone"), line.join("held"), line.join("here")
    line.obstacles[held] = "something"
    line.queue.discard(gone)
    assert line.take() == "here"
    line.queue.discard(held)
    line.obstacles.clear()
    line.queue.recheck()
    assert line.take() == ""
    assert line.queue.opens is None
    assert here.detail == ""


def test_a_refusal_pauses_all_and_the_next_one_longer() -> None:
    line = Line()
    line.join("web")
    pauses = []
    now = 0.0
    for _ in range(10):
        line.queue.refused(now)
        line.queue.refused(now)  # in the same burst: no reason to wait longer
        opens = line.queue.opens
        assert opens is not None
        assert line.take(opens - 0.001) == ""
        pauses.append(round(opens - now, 3))
        now = opens
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 6.4, 6.4]
    assert line.take(now) == "web"
    line.queue.granted()
    line.queue.refused(now)
    line.join("web")
    assert line.queue.opens == now + 0.05


def test_coming_and_going_leaves_nothing_behind() -> None:
    line = Line()
    for number in range(5):
        line.join(f"s{number}")
    replicas = [line.queue.take(0.0) for _ in range(5)]
    rng = random.Random(1)
    for moment in range(3000):
        replica = rng.choice(replicas)
        assert replica is not None
        line.queue.discard(replica)
        replica.waiting_since = float(moment)
        line.queue.add(replica)
    assert len(line.queue) <= 5
    assert len(line.queue._heap) < 50
