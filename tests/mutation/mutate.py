# SPDX-License-Identifier: GPL-3.0-or-later
"""Kills mutants of srs and relay: each is the code with one small change, which some test should notice."""

from __future__ import annotations

import ast
import collections
import copy
import os
import re
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Callable, Union

import coverage
import pytest
from hypothesis import HealthCheck, settings

TOP = Path(__file__).resolve().parents[2]
EXPLAINED = Path(__file__).with_name("equivalent.txt")
CPU_S = 60
MANY = 40
"""Tests from which on their whole files are run: naming each of them takes longer."""
OPTIONS = ["-x", "-q", "--noconftest", "-p", "no:cacheprovider", "-p", "no:faulthandler"]
SLOW = ("_propert", "_remedies")
"""Files of properties, which try a lot: asked only where none of the others has killed a mutant."""
COMPARED = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
COMPUTED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.BitXor: ast.BitAnd,
}
WITHOUT_PROPERTIES = ["-p", "_hypothesis_pytestplugin", "-m", "not hypothesis"]
"""Hypothesis runs code, slowly while it is traced, under no test's name: nothing is learnt of it."""
Mutant = tuple[int, str, ast.Module]
"""The line, what is changed, and the module so."""


def mutants(source: str) -> Iterator[Mutant]:
    """Yield the module with each change. Annotations, docstrings and the texts of exceptions are left alone."""
    tree, lines = ast.parse(source), source.splitlines()
    nodes = list(_nodes(tree, "module"))
    for place, (node, where) in enumerate(nodes):
        for number, (line, _) in enumerate(_changes(copy.deepcopy(node))):
            changed = copy.deepcopy(tree)
            target, _ = list(_nodes(changed, "module"))[place]
            before = ast.unparse(target).splitlines()
            list(_changes(target))[number][1]()
            near = f" in {lines[line - 1].strip()}" if isinstance(node, ast.Constant) else ""
            yield line, f"{where}: {_difference(before, ast.unparse(target).splitlines())}{near}", changed


def _difference(before: list[str], after: list[str]) -> str:
    """Return the line that is another one, as it was and as it is."""
    number = next((index for index, (one, other) in enumerate(zip(before, after)) if one != other), 0)
    return f"{before[number].strip()} → {after[number].strip()}"


def _nodes(node: ast.AST, where: str) -> Iterator[tuple[ast.AST, str]]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        where = node.name
    yield node, where
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or isinstance(node, ast.Raise):
            continue
        for child in value if isinstance(value, list) else [value]:
            docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            if isinstance(child, ast.AST) and not docstring:
                yield from _nodes(child, where)


def _changes(node: ast.AST) -> Iterator[tuple[int, Callable[[], None]]]:
    """Yield what changes *node* in place, in each small way that there is for its kind, with the line."""

    def put(field: str, value: object, line: int = getattr(node, "lineno", 1)) -> tuple[int, Callable[[], None]]:
        return line, lambda: setattr(node, field, value)

    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            ops: list[ast.cmpop] = [*node.ops[:index], COMPARED[type(operator)](), *node.ops[index + 1 :]]
            yield put("ops", ops)
    elif isinstance(node, ast.BoolOp):
        yield put("op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
        for index in range(len(node.values)):
            yield put("values", node.values[:index] + node.values[index + 1 :])
    elif isinstance(node, (ast.If, ast.IfExp)):
        for value in (True, False):
            yield put("test", ast.Constant(value))
    elif isinstance(node, ast.comprehension):
        for index in range(len(node.ifs)):
            yield put("ifs", node.ifs[:index] + node.ifs[index + 1 :])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield put("operand", ast.UnaryOp(ast.Not(), node.operand))
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in COMPUTED:
        yield put("op", COMPUTED[type(node.op)]())
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield put("value", not node.value)
        elif isinstance(node.value, int):
            yield put("value", node.value + 1)
        elif isinstance(node.value, (str, bytes)):
            other: Union[str, bytes] = "mutant" if isinstance(node.value, str) else b"mutant"
            yield put("value", other[:0] if node.value else other)
    elif isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield put("value", ast.Constant(None))
    for field in ("body", "orelse"):
        statements = getattr(node, field, None)
        if isinstance(statements, list) and not isinstance(node, (ast.Module, ast.ClassDef)):
            for index, statement in enumerate(statements):
                if isinstance(statement, (ast.Raise, ast.AugAssign, ast.Continue, ast.Break)) or _is_call(statement):
                    yield put(field, [*statements[:index], ast.Pass(), *statements[index + 1 :]], statement.lineno)


def _is_call(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Constant)


def tests_by_line(files: Sequence[str]) -> dict[str, dict[int, list[str]]]:
    """Run the tests in *files* once; return which of them run each line of each file, where that is known."""
    measured = coverage.Coverage(data_file=None, source=[str(TOP / "srs"), str(TOP / "relay")])
    measured.set_option("run:dynamic_context", "test_function")
    measured.start()
    status = pytest.main([*OPTIONS, *WITHOUT_PROPERTIES, *files])
    measured.stop()
    if status:
        sys.exit("the tests fail without any change")
    found: dict[str, dict[int, list[str]]] = {}
    data = measured.get_data()
    for file in data.measured_files():
        for line, names in data.contexts_by_lineno(file).items():
            tests = sorted(map(_node_id, filter(re.compile(r"(.*\.)?test_\w+\.test_").match, names)))
            found.setdefault(file, {})[line] = tests
    return found


def _node_id(context: str) -> str:
    module, _, function = context.rpartition(".")
    return f"tests/{module.rpartition('.')[2]}.py::{function}"


def survives(path: Path, tree: ast.Module, tests: Sequence[str]) -> bool:
    """Tell whether *tests* pass with *tree* in the place of the file *path*. What takes for ever is killed."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    usual = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, name: str) -> Union[CodeType, None]:
        return compile(tree, str(path), "exec") if self.path == str(path) else usual(self, name)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign,assignment]
    status = 1
    try:
        status = int(pytest.main([*OPTIONS, *tests]))
    finally:
        os._exit(status)


def main() -> int:
    os.chdir(TOP)
    settings.register_profile(
        "mutation", max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    settings.load_profile("mutation")
    modules = sorted([*TOP.glob("srs/gatepost/srs/*.py"), *TOP.glob("relay/gatepost/relay/*.py")])
    modules = [path for path in modules if path.name != "__init__.py"]  # names only
    wanted = [path for path in modules if not sys.argv[1:] or str(path).endswith(tuple(sys.argv[1:]))]
    prefixes = tuple({f"test_{path.parent.name}_" for path in wanted})
    core = [f"tests/{path.name}" for path in sorted(TOP.glob("tests/test_*.py")) if path.name.startswith(prefixes)]
    slow = [file for file in core if any(part in file for part in SLOW)]
    known = tests_by_line([file for file in core if file not in slow])
    # What stays is what takes long to import; the tests and what they test is imported anew with each mutant.
    for name in [name for name in sys.modules if name.startswith(("gatepost", "test_", "tests"))]:
        del sys.modules[name]
    lines = EXPLAINED.read_text().splitlines() if EXPLAINED.exists() else []
    explained = {line for line in lines if line and not line.startswith("#")}
    counted: dict[str, collections.Counter[str]] = {}
    for path in wanted:
        relative, count = str(path.relative_to(TOP)), counted.setdefault(path.name, collections.Counter())
        own = [file for file in core if file.startswith(f"tests/test_{path.parent.name}_")]
        by_line = known.get(str(path), {})
        everywhere = sorted(set().union(*by_line.values())) or [file for file in own if file not in slow]
        if not survives(path, ast.parse(path.read_text()), everywhere):
            sys.exit(f"{relative}: its tests fail without any change")
        began = time.monotonic()
        for line, text, tree in mutants(path.read_text()):
            # What a test's file does as it is imported is under no name either.
            tests = [*by_line.get(line, ()), *(file for file in own if path.stem in file and file not in slow)]
            tests = tests or [file for file in own if file not in slow]
            if len(tests) > MANY:
                tests = sorted({test.partition("::")[0] for test in tests}, key=lambda file: path.stem not in file)
            ast.fix_missing_locations(tree)
            alive = survives(path, tree, tests) and survives(path, tree, own)
            what = "killed" if not alive else "equivalent" if f"{relative}: {text}" in explained else "survived"
            count[what] += 1
            if what == "survived":
                print(f"{relative}:{line}: {text}", flush=True)
        print(f"{relative}: {dict(count)}, {time.monotonic() - began:.0f} s", flush=True)
    return int(any(count["survived"] for count in counted.values()))


if __name__ == "__main__":
    sys.exit(main())
