"""What people mean by names on the command line."""

from __future__ import annotations

import pytest

from poolkeeper.selection import NoSuchName, check_names, is_meant


@pytest.mark.parametrize(
    ("one", "names", "meant"),
    [
        ("web", [], True),
        ("web", ["web"], True),
        ("web", ["db", "web"], True),
        ("web", ["db"], False),
        ("web:1", ["web"], True),
        ("web:1", ["web:1"], True),
        ("web:1", ["web:2"], False),
        ("web:1", ["web:10"], False),
        ("web", ["web:0"], True),
        ("web", ["web:1"], False),
        ("worker-1", ["worker-1"], True),
        ("worker-10", ["worker-1"], False),
    ],
)
def test_who_is_meant(one: str, names: list[str], meant: bool) -> None:
    assert is_meant(one, names) is meant


def test_a_name_that_nothing_has_is_refused_with_those_that_there_are() -> None:
    check_names([], [])
    check_names(["web", "web:1", "db:0"], ["web:1", "db", "web:0"])
    for wrong in ("we", "web:2", "db:1", ""):
        with pytest.raises(NoSuchName, match=rf"worker '{wrong}' \(there are: db, web:0, web:1\)"):
            check_names(["web", wrong], ["web:1", "db", "web:0"])
    with pytest.raises(NoSuchName, match=r"'web' \(there are: none\)"):
        check_names(["web"], [])
