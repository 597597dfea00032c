"""The store of checkpoints: states come back, what was touched is found out, no crash costs both generations."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poolkeeper import checkpoint
from poolkeeper.checkpoint import CheckpointStore, MemoryStore, Store, clear_unkeyed
from poolkeeper.checkpoint_format import COMPRESSIBLE, Header, Key, NotAuthentic, decode, encode
from poolkeeper.errors import CheckpointUnreadable, PayloadError

KEY = bytes(range(32))
WHO = "task\0module\0name\0key"


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path / "checkpoints"), KEY)


def newest(tmp_path: Path) -> Path:
    return next(path for path in (tmp_path / "checkpoints").iterdir() if path.suffix not in (".1", ".tmp"))


def state_of(store: Store) -> Any:
    found = store.read(WHO, "state")
    return None if found is None else found.state


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)
IN_A_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)


@IN_A_FOLDER
@given(state=PLAIN, attempt=st.integers(1, 2**31), identity=st.text(min_size=1).map(lambda text: f"task\0{text}"))
def test_any_state_comes_back(store: CheckpointStore, state: Any, attempt: int, identity: str) -> None:
    for kept in (store, MemoryStore()):
        kept.write(identity, "state", state, attempt)
        found = kept.read(identity, "state")
        assert found is not None
        assert (found.state, found.attempt, found.trouble) == (state, attempt, "")
        kept.remove(identity)
        assert kept.read(identity, "state") is None


@pytest.mark.parametrize("size", [0, 1, 100, 10_000, 1_000_000])
def test_arrays_come_back_and_may_be_written_to(store: CheckpointStore, size: int) -> None:
    import numpy as np

    random = np.random.default_rng(1).random(size)
    store.write(WHO, "state", {"random": random, "zeros": np.zeros(size), "text": "x"}, 1)
    state = state_of(store)
    assert (state["random"] == random).all()
    assert not state["zeros"].any()
    state["random"] += 1


def test_what_shrinks_is_compressed_and_what_does_not_is_left(store: CheckpointStore, tmp_path: Path) -> None:
    for state, smaller in ((bytes(10**6), True), (os.urandom(10**6), False), (bytes(1000), False)):
        store.write(WHO, "state", state, 1)
        assert (newest(tmp_path).stat().st_size < len(state) / 2) is smaller
        assert state_of(store) == state


def test_two_generations_are_kept(store: CheckpointStore, tmp_path: Path) -> None:
    for number in range(5):
        store.write(WHO, "state", number, number + 1)
        store.write(WHO, "other", -number, number + 1, durable=True)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4
    newest_of_state = Path(store._path(WHO, "state"))
    newest_of_state.unlink()
    assert state_of(store) == 3
    store.remove(WHO, "state")
    assert state_of(store) is None
    assert store.read(WHO, "other") is not None
    store.remove(WHO)
    assert not list((tmp_path / "checkpoints").iterdir())


# -- damage -----------------------------------------------------------------------------------------------------------


def whole(parts: list[bytes], identity: str = WHO) -> bytes:
    return b"".join(encode(Header(identity, 3, 1.5, {"m:C": "fields a"}), [[part] for part in parts], Key(KEY)))


@pytest.mark.parametrize("part", [b"", b"short", os.urandom(200), bytes(COMPRESSIBLE)], ids=len)
def test_every_flipped_bit_and_every_truncation_is_found(part: bytes) -> None:
    content = whole([part, b"beside"])
    header, parts = decode(bytearray(content), WHO, Key(KEY))
    assert (header.attempt, header.when, header.classes) == (3, 1.5, {"m:C": "fields a"})
    assert list(map(bytes, parts)) == [part, b"beside"]
    for position in range(len(content)):
        with pytest.raises(NotAuthentic):
            decode(bytearray(content[:position]), WHO, Key(KEY))
        spoiled = bytearray(content)
        spoiled[position] ^= 1 << position % 8
        with pytest.raises(NotAuthentic):
            decode(spoiled, WHO, Key(KEY))
    with pytest.raises(NotAuthentic, match="torn"):
        decode(bytearray(content + b"x"), WHO, Key(KEY))


def test_it_is_said_what_is_wrong() -> None:
    content = whole([b"state"])
    for spoiled, key, who, why in (
        (content, bytes(32), WHO, "key of another home"),
        (content, KEY, "task\0other", "belongs to"),
        (content[:-1], KEY, WHO, "torn: it has .* bytes of"),
        (content[:10], KEY, WHO, "torn"),
        (b"", KEY, WHO, "torn"),
        (b"something else" * 10, KEY, WHO, "no checkpoint"),
        (content[:4] + b"\7\0" + content[6:], KEY, WHO, "format version 7"),
        (content[:-1] + bytes([content[-1] ^ 1]), KEY, WHO, "damaged, or was tampered"),
    ):
        with pytest.raises(NotAuthentic, match=why):
            decode(bytearray(spoiled), who, Key(key))


@IN_A_FOLDER
@given(st.data())
def test_the_one_before_is_used_where_the_newest_is_damaged(
    store: CheckpointStore, tmp_path: Path, data: st.DataObject
) -> None:
    store.remove(WHO)
    store.write(WHO, "state", "first", 1)
    store.write(WHO, "state", "second", 2)
    path = newest(tmp_path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    found = store.read(WHO, "state")
    assert found is not None
    assert (found.state, found.attempt) == ("first", 1)
    assert path.name in found.trouble
    path.with_name(path.name + ".1").write_bytes(b"")
    with pytest.raises(CheckpointUnreadable, match="torn"):
        store.read(WHO, "state")


def test_nothing_of_another_home_is_unpickled(store: CheckpointStore, tmp_path: Path) -> None:
    CheckpointStore(str(tmp_path / "checkpoints"), bytes(32)).write(WHO, "state", Bomb(), 1)
    with pytest.raises(CheckpointUnreadable, match="another home"):
        store.read(WHO, "state")


def test_a_file_in_the_place_of_another_is_found_out(store: CheckpointStore, tmp_path: Path) -> None:
    store.write(WHO, "state", 1, 1)
    other = Path(store._path("task\0other", "state"))
    newest(tmp_path).rename(other)
    with pytest.raises(CheckpointUnreadable, match="belongs to"):
        store.read("task\0other", "state")
    other.unlink()
    other.symlink_to("/dev/zero")
    with pytest.raises(CheckpointUnreadable, match="cannot be read"):
        store.read("task\0other", "state")


class Bomb:
    def __reduce__(self) -> Any:
        return pytest.fail, ("it was unpickled",)


# -- crashes ----------------------------------------------------------------------------------------------------------

STEPS = ("open", "writev", "close", "rename")


class Crash(BaseException):
    """The process ends here."""


@pytest.fixture
def crash_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Have the process end at the n-th of the store's file operations, before or half-way through it."""
    counted = types.SimpleNamespace(left=-1, half=False)

    def breaking(name: str) -> Any:
        real = getattr(os, name)

        def operation(*args: Any, **options: Any) -> Any:
            if counted.left == 0:
                if name == "writev" and counted.half:
                    os.write(args[0], bytes(args[1][0])[:20])
                raise Crash
            counted.left -= 1
            return real(*args, **options)

        return operation

    crashing = types.SimpleNamespace(**{name: getattr(os, name) for name in dir(os)})
    for step in STEPS:
        setattr(crashing, step, breaking(step))

    def unlink(*_: Any) -> None:
        raise Crash  # a process that has ended cleans nothing up

    crashing.unlink = unlink

    def arm(steps: int, half: bool) -> None:
        counted.left, counted.half = steps, half
        monkeypatch.setattr(checkpoint, "os", crashing)

    yield arm
    monkeypatch.undo()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("steps", range(7))
def test_a_crash_at_any_step_leaves_the_newest_or_the_one_before(
    store: CheckpointStore, crash_at: Any, monkeypatch: pytest.MonkeyPatch, steps: int, before: int, half: bool
) -> None:
    for number in range(before):
        store.write(WHO, "state", number, 1)
    crash_at(steps, half)
    crashed = False
    try:
        store.write(WHO, "state", before, 1)
    except Crash:
        crashed = True
    monkeypatch.undo()
    assert state_of(store) in {before if not crashed else None, before, before - 1 if before else None}
    assert before == 0 or state_of(store) is not None
    store.write(WHO, "state", "after", 1)
    assert state_of(store) == "after"
    store.remove(WHO)
    assert state_of(store) is None


def test_leftovers_of_killed_writers_go_with_the_rest(store: CheckpointStore, tmp_path: Path) -> None:
    store.write(WHO, "state", 1, 1)
    path = newest(tmp_path)
    path.with_name(f"{path.name}.123.tmp").touch()
    store.write("once\0x", "state", 1, 1)
    store.remove(WHO)
    assert [left.name[:5] for left in (tmp_path / "checkpoints").iterdir()] == ["once-"]
    clear_unkeyed(str(tmp_path / "checkpoints"))
    assert not list((tmp_path / "checkpoints").iterdir())
    clear_unkeyed(str(tmp_path / "nowhere"))


def test_what_killed_writers_have_begun_is_removed_and_nothing_else(store: CheckpointStore, tmp_path: Path) -> None:
    store.write(WHO, "state", 1, 1)
    store.write(WHO, "state", 2, 2)
    store.write("task\0another", "state", 3, 1)
    with subprocess.Popen(["true"]) as process:
        pass
    name = newest(tmp_path).name.split(".")[0]
    whose = store._path(WHO, "state").rpartition("/")[2]
    left = tmp_path / "checkpoints" / f"{whose}.{process.pid}.tmp"
    others = [
        tmp_path / "checkpoints" / f"{whose}.{os.getpid()}.tmp",
        tmp_path / "checkpoints" / f"{whose}.nobody.tmp",
        tmp_path / "checkpoints" / f"another-{name}.{process.pid}.tmp",
    ]
    for path in (left, *others):
        path.touch()
    before = set((tmp_path / "checkpoints").iterdir())
    store.tidy(WHO)
    assert set((tmp_path / "checkpoints").iterdir()) == before - {left}
    assert state_of(store) == 2
    CheckpointStore(str(tmp_path / "nowhere"), KEY).tidy(WHO)


# -- code that has changed --------------------------------------------------------------------------------------------


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    made = types.ModuleType("a_project_of_tests")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def define(module: types.ModuleType, text: str) -> Any:
    exec(text, vars(module))
    return module


DATACLASS = "from dataclasses import dataclass\n@dataclass\nclass State:\n    done: int\n    left: int = 0\n"
PLAIN_CLASS = "class State:\n    def __init__(self, done):\n        self.done = done\n        self.left = 0\n"
TUPLE = "from typing import NamedTuple\nclass State(NamedTuple):\n    done: int\n    left: int = 0\n"


@pytest.mark.parametrize("text", [DATACLASS, PLAIN_CLASS, TUPLE])
def test_a_class_with_other_fields_is_refused_and_one_with_other_methods_is_not(
    store: CheckpointStore, module: types.ModuleType, text: str
) -> None:
    store.write(WHO, "state", [define(module, text).State(3)], 1)
    define(module, text + "    def mended(self):\n        return 1\n")
    assert state_of(store)[0].mended() == 1
    define(module, text.replace("left", "remaining"))
    with pytest.raises(CheckpointUnreadable, match=r"State has changed: its .*done, left were saved.*done, remaining"):
        store.read(WHO, "state")
    del module.State
    with pytest.raises(CheckpointUnreadable, match="class a_project_of_tests:State is gone"):
        store.read(WHO, "state")


def test_a_class_that_restores_itself_answers_for_its_past(store: CheckpointStore, module: types.ModuleType) -> None:
    text = PLAIN_CLASS + "    def __setstate__(self, state):\n        self.remaining = state['left']\n"
    store.write(WHO, "state", define(module, text).State(3), 1)
    define(module, text.replace("self.left = 0", "self.remaining = 0"))
    assert state_of(store).remaining == 0


def test_what_cannot_be_pickled_is_said_to_be_so(store: CheckpointStore) -> None:
    for kept in (store, MemoryStore()):
        with pytest.raises(PayloadError, match="the state of a checkpoint cannot be pickled: .*lock"):
            kept.write(WHO, "state", [__import__("threading").Lock()], 1)


def test_local_classes_and_functions_are_saved_by_value(store: CheckpointStore) -> None:
    Local = make_dataclass("Local", ["x"])  # noqa: N806
    store.write(WHO, "state", (Local(3), lambda: 5), 1)
    state = state_of(store)
    assert (state[0].x, state[1]()) == (3, 5)


class Pair(NamedTuple):
    a: int
    b: int


def test_the_home_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        CheckpointStore(str(tmp_path / "gone" / "checkpoints"), KEY).write(WHO, "state", Pair(1, 2), 1)
