"""The table of architectures: whatever `fit/` knows of one, it knows under the name that llama.cpp has."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest

from modelpipes import fit
from modelpipes.fit.architectures import ARCHITECTURES


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(fit.__path__, f"{fit.__name__}."):
        yield importlib.import_module(found.name)


@pytest.mark.parametrize("module", list(modules()), ids=lambda module: module.__name__)
def test_no_table_names_an_architecture_that_nobody_has(module: ModuleType) -> None:
    # "granite-switch" stood where llama.cpp says "graniteswitch": a rule that never held.
    for name, table in vars(module).items():
        if isinstance(table, dict | frozenset | tuple | list) and not ARCHITECTURES.keys().isdisjoint(
            texts := {text for text in table if isinstance(text, str)}
        ):
            assert texts <= ARCHITECTURES.keys(), name


@pytest.mark.parametrize("module", list(modules()), ids=lambda module: module.__name__)
def test_no_rule_asks_for_an_architecture_by_its_name(module: ModuleType) -> None:
    # A new architecture is an entry of the table and a graph: nobody looks through the rules for names like its own.
    functions = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.FunctionDef)]
    named = {node.value for function in functions for node in ast.walk(function) if isinstance(node, ast.Constant)}
    assert ARCHITECTURES.keys().isdisjoint(named)
