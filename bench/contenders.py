"""Everybody who takes part in one benchmark or another, in the order of the report."""

from __future__ import annotations

from bench.peers import PEERS, Contender
from bench.supervisors import SUPERVISORS

__all__ = ["CONTENDERS"]

CONTENDERS: dict[str, type[Contender]] = {**PEERS, **SUPERVISORS}
