"""The layers of the package: imports point one way, and the pure layer knows no clock, socket, thread or process."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import poolkeeper

PACKAGE = Path(poolkeeper.__file__).parent

# Top to bottom. A module imports only from the rows above its own, and from what stands before it in its row.
LAYERS = {
    "words": "errors losses recovered service_model model messages",
    "pure": "fields ratelimit strategies policy lifecycle ledger backlog roster summons commands timers backoff "
    "connection dispatch succession blame remains core versions frames session remarks refusals holdings "
    "service_states service_spec replica service_commands service_groups service_exits service_handover launch_queue "
    "service_changes service_stopping service_watch service_adoption service_rolling service_replicas "
    "service_starting service_departures service_ends supervisor notification hazards loglines since "
    "origins by_value shapes code_names fingerprint checkpoint_format outcomes store handover reexec_pace "
    "invocation selection",
    "io": "descriptors sources limits rotation logbuffer logreader logmirror logs reporting keeper_log output "
    "process_identity filesystems places file_locking lock_file instance pidfile checkpoint startup "
    "living inheritance home page arena payload spool link postmortem process_setup orphans families "
    "sdnotify preflight_answer preflight preflight_program reexec notify_socket stand_in survey "
    "logprocess logwriter event_log register control_client homes journal_file journal_runs run_outcome "
    "sealed_file result_files left_behind journal recall",
    "runtime": "settings cancellation interrupts held_signals init_process resumption task_context program "
    "worker_config belonging worker_line worker_session worker_call worker_results worker service_line "
    "service_context service_worker forking keeper_line forkserver delivery retrying peer reception switchboard "
    "futures settlement calls recording launching service_preflight children nursery adoption workforce recovery "
    "traffic driving loop status program_notices service_peer service_restart control service_news service_policies "
    "service_survivors service_processes supervision foundation incarnation departure mainloop keeper configuration "
    "inline",
    "faces": "services mapping feed batch fleet loading fleet_services runner progress bars summary view pool "
    "display steering tables attachment background watching cli_control fleet_run cli __main__",
}
ORDER = [module for modules in LAYERS.values() for module in modules.split()]

IMPURE = {
    "asyncio",
    "multiprocessing",
    "os",
    "select",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
}


def imports_of(module: str) -> Iterator[tuple[str, bool]]:
    """Every module that ``module`` imports, wherever in its text, and whether only type checkers see it."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text("utf-8"))
    guarded = {
        node
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test).endswith("TYPE_CHECKING")
        for statement in test.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in guarded
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(filter(None, ("poolkeeper" if node.level else "", node.module or "")))
            if origin == "poolkeeper":  # from . import frames
                for alias in node.names:
                    yield f"poolkeeper.{alias.name}", node in guarded
            else:
                yield origin, node in guarded


def own_imports(module: str) -> set[str]:
    return {name.split(".")[1] for name, _ in imports_of(module) if name.startswith("poolkeeper.")}


def modules() -> list[str]:
    return sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def test_every_module_has_its_place_and_every_place_its_module() -> None:
    assert sorted(ORDER) == modules()


@pytest.mark.parametrize("module", modules())
def test_imports_point_one_way(module: str) -> None:
    assert module in ORDER, f"{module} has no place in the layers"
    above = set(ORDER[: ORDER.index(module)])
    wrong = sorted(own_imports(module) & set(ORDER) - above)
    assert not wrong, f"{module} imports {', '.join(wrong)}, which the layers put below it"


@pytest.mark.parametrize("module", LAYERS["pure"].split())
def test_the_pure_layer_is_pure(module: str) -> None:
    wrong = sorted({name for name, types_only in imports_of(module) if not types_only and name.split(".")[0] in IMPURE})
    assert not wrong, f"{module} imports {', '.join(wrong)}; pass in what it needs"
