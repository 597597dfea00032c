"""Counts the primes below a power of ten, and checks the answer: pi(10^n) has been known since 1885.

    poolkeeper run jobs/primes.py                  # below 10^9, some seconds of work for each worker
    poolkeeper run jobs/primes.py -- 10            # below 10^10, some minutes of it

One task counts one segment. Interrupt it as you like, with Ctrl-C or `kill -9`: run again, it goes on where it was.
`--fresh` begins anew.
"""

from __future__ import annotations

import functools
import math
import sys
from typing import NamedTuple

from poolkeeper import BatchResult, Fleet

SEGMENT = 4_000_000

# Number of primes below 10^n, from n = 0 on: https://oeis.org/A006880
KNOWN = (0, 4, 25, 168, 1229, 9592, 78498, 664579, 5761455, 50847534, 455052511, 4118054813, 37607912018)

fleet = Fleet("primes")


class Segment(NamedTuple):
    """The numbers from ``start`` up to ``stop``, exclusive."""

    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.start}-{self.stop}"


def exponent() -> int:
    """Return the power of ten up to which to count, from the command line."""
    words = sys.argv[1:]
    if not words:
        return 9
    if len(words) > 1 or not words[0].isdecimal() or int(words[0]) >= len(KNOWN):
        raise SystemExit(f"usage: poolkeeper run jobs/primes.py -- N, to count the primes below 10^N, N < {len(KNOWN)}")
    return int(words[0])


def segments() -> list[Segment]:
    """Return the segments of all numbers below the limit."""
    limit = 10 ** exponent()
    return [Segment(start, min(start + SEGMENT, limit)) for start in range(0, limit, SEGMENT)]


@functools.cache
def small_primes(limit: int) -> list[int]:
    """Return the odd primes below ``limit``."""
    sieve = bytearray([1]) * limit
    for number in range(3, math.isqrt(limit) + 1, 2):
        if sieve[number]:
            sieve[number * number :: 2 * number] = bytes(len(range(number * number, limit, 2 * number)))
    return [number for number in range(3, limit, 2) if sieve[number]]


@fleet.batch(items=segments, key=str)
def count(segment: Segment) -> int:
    """Return how many primes there are in ``segment``, by the sieve of Eratosthenes over its odd numbers."""
    start = segment.start | 1
    size = (segment.stop - start + 1) // 2  # the odd numbers start, start + 2, ...
    if size <= 0:
        return int(segment.start <= 2 < segment.stop)
    sieve = bytearray([1]) * size
    for prime in small_primes(math.isqrt(10 ** (len(KNOWN) - 1)) + 1):
        if prime * prime >= segment.stop:
            break
        first = max(prime * prime, -(-start // prime) * prime)
        first += prime * (first % 2 == 0)
        at = (first - start) // 2
        if at < size:
            sieve[at::prime] = bytes(-(-(size - at) // prime))
    return sum(sieve) - (start == 1) + (segment.start <= 2 < segment.stop)


@fleet.step(after=count)
def check(counted: BatchResult[int]) -> None:
    """Add up, and compare with what is known."""
    counted.raise_for_failures()
    power, total = exponent(), sum(counted.values)
    if total != KNOWN[power]:
        raise ArithmeticError(f"{total:,} primes were counted below 10^{power}, but there are {KNOWN[power]:,}")
    print(
        f"there are {total:,} primes below 10^{power}, as it should be; {counted.statistics.reused} of "
        f"{len(counted)} segments were counted before"
    )
