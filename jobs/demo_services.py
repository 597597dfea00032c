"""Three services that show what supervision looks like.

    poolkeeper run jobs/demo_services.py          # Ctrl-C stops it
    poolkeeper status                             # from another terminal; also top, logs -f, events -f, stack

``example_service_1`` ends by itself now and then and is always started again, ``example_service_2`` runs on, and
``failing_service_demo`` fails each time: after one start and three retries, three seconds apart, it is given up. Try
what happens when you kill them: ``kill -9 PID``.
"""

from __future__ import annotations

import time

from poolkeeper import Fleet, RestartPolicy, ServiceEvent, context

fleet = Fleet("demo_services")


@fleet.service(restart="always")
def example_service_1() -> None:
    """Count to thirty, a number a second, and return; the policy starts it again."""
    me = context()
    print(f"start number {me.attempt}", flush=True)
    for number in range(1, 31):
        me.progress(number, 30)
        if me.wait(1.0):
            print(f"asked to stop at {number}", flush=True)
            return
    print("counted to thirty", flush=True)


@fleet.service(ready="notify", watchdog=10.0, after=example_service_1)
def example_service_2() -> None:
    """Run until it is stopped, with a sign of life every second."""
    me = context()
    me.ready("warmed up")
    started = time.monotonic()
    while not me.wait(1.0):
        me.heartbeat()
    print(f"stopped after {time.monotonic() - started:.0f} s of steady work", flush=True)


@fleet.service(restart=RestartPolicy.on_failure(max_retries=3, delay=3.0))
def failing_service_demo() -> None:
    """Fail."""
    raise ConnectionError("the database of this demo does not exist")


@fleet.on("service.failed")
def tell(event: ServiceEvent) -> None:
    """A place to send a message from."""
    print(f"*** {event.name}: {event.reason}", flush=True)
