"""The benchmarks in the order in which they run and are reported."""

from __future__ import annotations

import importlib

from bench.model import Benchmark

__all__ = ["NAMES", "load"]

NAMES = (
    "submit_noop",
    "durable",
    "map_ints",
    "round_trip",
    "large_arrays",
    "chaos_kills",
    "replacement",
    "checkpoint",
    "keeper_lost",
    "keeper_chaos",
    "many_workers",
    "caller_memory",
    "import_time",
    "idle",
    "service_restart",
    "services_start",
    "services_mass_kill",
    "services_idle",
)


def load(name: str) -> Benchmark:
    """The benchmark of that name; its module is imported only now, so that no other one weighs on it."""
    loaded = getattr(importlib.import_module(f"bench.{name}"), name)
    assert isinstance(loaded, Benchmark)
    return loaded
