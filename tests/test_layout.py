# SPDX-License-Identifier: GPL-3.0-or-later
"""The layout holds: one namespace from six source roots, imports one way, pymilter's C module not shadowed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
MAY_IMPORT = {
    "srs": set(),
    "relay": set(),
    "service": {"srs", "relay"},
    "milter": {"srs", "relay", "service"},
    "policyd": {"srs", "relay", "service"},
    "admin": {"srs", "relay", "service", "milter", "policyd"},
}
OUTSIDE_WORLD = {
    *("asyncio", "glob", "http", "io", "logging", "multiprocessing", "os", "pathlib", "random"),
    *("requests", "secrets", "select", "shutil", "signal", "socket", "ssl", "subprocess", "syslog", "sys"),
    *("tempfile", "threading", "time", "urllib", "uuid"),
}
SOURCES = sorted(path for root in MAY_IMPORT for path in (TOP / root).rglob("*.py*") if path.suffix in (".py", ".pyi"))
FIRST_LINE = "# SPDX-License-Identifier: GPL-3.0-or-later"


def name(path: Path) -> str:
    return str(path.relative_to(TOP))


def modules(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each module that *path* imports, with the names taken from it; relative ones in full."""
    package = "gatepost." + path.parent.name
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = f"{package}.{module}".rstrip(".")
            yield module, [alias.name for alias in node.names]


def imported(path: Path) -> Iterator[str]:
    """Yield what *path* imports by its full name; `from a import b` counts as a and as a.b."""
    for module, names in modules(path):
        yield module
        yield from (f"{module}.{item}" for item in names)


@pytest.mark.parametrize("root", sorted(MAY_IMPORT))
def test_source_root_is_no_package_and_its_namespace_neither(root: str) -> None:
    assert not (TOP / root / "__init__.py").exists()
    assert not (TOP / root / "gatepost/__init__.py").exists()
    assert [path.name for path in (TOP / root / "gatepost").iterdir() if path.name != "__pycache__"] == [root]


@pytest.mark.parametrize("root", sorted(MAY_IMPORT))
def test_package_says_that_it_is_typed(root: str) -> None:
    assert (TOP / root / "gatepost" / root / "__init__.py").exists()
    assert (TOP / root / "gatepost" / root / "py.typed").exists()


def test_import_milter_from_the_top_folder_is_the_module_of_pymilter() -> None:
    environment = {**os.environ, "PYTHONPATH": ":".join(["", *(str(TOP / root) for root in MAY_IMPORT)])}
    done = subprocess.run(
        [sys.executable, "-c", "import milter, gatepost.milter.daemon; print(milter.P_NR_CONN)"],
        cwd=TOP,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "4096\n", "")


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_point_one_way(path: Path) -> None:
    root = path.relative_to(TOP).parts[0]
    ours = {item.split(".")[1] for item in imported(path) if item.startswith("gatepost.")}
    assert ours - {root} <= MAY_IMPORT[root]


@pytest.mark.parametrize("path", [path for path in SOURCES if name(path).startswith(("srs/", "relay/"))], ids=name)
def test_core_reads_no_clock_random_source_socket_file_or_logger(path: Path) -> None:
    assert {item.split(".")[0] for item in imported(path)} & OUTSIDE_WORLD == set()
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = {call.id if isinstance(call, ast.Name) else getattr(call, "attr", "") for call in calls}
    assert names & {"open", "print", "input", "exec", "eval", "now", "utcnow", "today", "__import__"} == set()


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_module_takes_what_another_keeps_to_itself(path: Path) -> None:
    private = [
        item
        for module, names in modules(path)
        for item in (*module.split("."), *names)
        if module.startswith("gatepost") and item.startswith("_") and not item.endswith("__")
    ]
    assert private == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_file_begins_with_its_licence_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if text:
        assert text.splitlines()[0] == FIRST_LINE
    if text and path.suffix == ".py":
        assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", sorted((TOP / "tests").rglob("*.py")), ids=name)
def test_test_file_begins_with_its_licence(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith(FIRST_LINE)
