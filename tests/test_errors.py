"""The tree of errors, and that it has all of them."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

from modelpipes import errors
from tests.test_api import PACKAGE


def test_the_drawing_shows_every_error_at_its_place_with_its_exit_code() -> None:
    drawn: dict[str, tuple[str, str]] = {}
    above = ["Exception"]
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"^((?:[│ ] {3})*(?:[├└]── )?)(\w+) +(\d+)", line):
            depth = len(found[1]) // 4
            above[depth + 1 :] = [found[2]]
            drawn[found[2]] = above[depth], found[3]
    drawn["Cancelled"] = "Exception", ""  # beside the tree, as the next
    drawn["MisuseError"] = "RuntimeError", ""
    drawn["Ended"] = "PipesError", "1"  # 128 and the signal, once there is one
    kinds = {
        name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, BaseException)
    }
    there = {name: (kind.__mro__[1].__name__, str(getattr(kind, "exit_code", ""))) for name, kind in kinds.items()}
    assert there == drawn


def test_no_other_module_has_an_error_of_its_own() -> None:
    names = [name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.PipesError)]
    derived = re.compile(rf"^\s*class \w+\(({'|'.join(names)})\b", re.MULTILINE)
    assert {str(path) for path in PACKAGE.rglob("*.py") if derived.search(path.read_text("utf-8"))} == {
        str(PACKAGE / "errors.py")
    }


def test_they_import_nothing_of_ours() -> None:
    program = (
        "import sys; from modelpipes import errors; print(*(n for n in sys.modules if n.startswith('modelpipes')))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True, timeout=20)
    assert set(done.stdout.split()) == {"modelpipes", "modelpipes.errors"}
