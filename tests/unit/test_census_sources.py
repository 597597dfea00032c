"""Which files the census finds, and where it says that they come from."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest
from source_census.sources import Catalogue, Origin, find_files, roots_for


def write(path: Path, text: str = "x = 1\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def found(*paths: Path) -> list[Path]:
    return find_files(roots_for([str(path) for path in paths]))


def test_files_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    paths = [write(tmp_path / name) for name in ("b.py", "a/z.py", "a/b/c.py")]
    assert found(tmp_path) == paths[::-1]


def test_only_python_files_in_visible_folders_count(tmp_path: Path) -> None:
    kept = write(tmp_path / "tests" / "site-packages" / "kept.py")
    write(tmp_path / "notes.txt")
    write(tmp_path / "__pycache__" / "a.py")
    write(tmp_path / ".venv" / "a.py")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.py")
    assert found(tmp_path) == [kept]


def test_a_file_named_by_two_arguments_counts_once(tmp_path: Path) -> None:
    path = write(tmp_path / "package" / "a.py")
    assert found(tmp_path, tmp_path / "package", path) == [path]


def test_a_file_may_be_named_whatever_its_suffix(tmp_path: Path) -> None:
    script = write(tmp_path / "script")
    assert found(script) == [script]


def test_links_that_lead_in_a_circle_are_not_followed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.py")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert found(tmp_path) == [path]


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*missing"):
        roots_for([str(tmp_path / "missing")])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_an_unreadable_folder_is_named_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.py")
    locked = write(tmp_path / "locked" / "b.py").parent
    locked.chmod(0)
    try:
        assert found(tmp_path) == [path]
    finally:
        locked.chmod(0o700)
    assert str(locked) in capsys.readouterr().err


def test_the_default_is_the_standard_library_and_what_is_installed() -> None:
    roots = roots_for([])
    paths = set(find_files(roots))
    shipped, installed = Path(json.__file__).resolve(), Path(pytest.__file__).resolve()
    assert paths >= {shipped, installed}
    catalogue = Catalogue.of(roots)
    python = f"Python {platform.python_version()}"
    assert catalogue.origin(shipped) == Origin(python, "json", "json/__init__.py")
    assert catalogue.origin(installed) == Origin(f"pytest {pytest.__version__}", "pytest", "pytest/__init__.py")


def test_a_folder_of_packages_is_told_apart_from_a_package(tmp_path: Path) -> None:
    project = tmp_path / "project"
    module = write(project / "package" / "part" / "module.py")
    write(project / "package" / "__init__.py")
    script = write(project / "script.py")
    whole = Catalogue.of(roots_for([str(project)]))
    assert whole.origin(module) == Origin("project", "package", "package/part/module.py")
    assert whole.origin(script) == Origin("project", "script", "script.py")
    package = Catalogue.of(roots_for([str(project / "package")]))
    assert package.origin(module) == Origin("package", "package", "package/part/module.py")
    single = Catalogue.of(roots_for([str(script)]))
    assert single.origin(script) == Origin("script.py", "script", "script.py")


def test_the_innermost_root_is_the_origin(tmp_path: Path) -> None:
    module = write(tmp_path / "outer" / "inner" / "a.py")
    catalogue = Catalogue.of(roots_for([str(tmp_path), str(tmp_path / "outer" / "inner"), str(tmp_path / "outer")]))
    assert catalogue.origin(module) == Origin("inner", "a", "a.py")


def test_a_file_below_no_root_has_no_origin(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of the roots"):
        Catalogue.of(roots_for([str(tmp_path)])).origin(Path("/elsewhere/a.py"))
