"""The configuration in force as `modelpipes config show` shows it: TOML again, or a table, with where it is from."""

from __future__ import annotations

import os
from collections.abc import Sequence

from modelpipes.config.inforce import Setting
from modelpipes.config.writing import write_value
from modelpipes.terminal import output
from modelpipes.terminal.drawing import DOCUMENTS
from modelpipes.terminal.safetext import make_line
from modelpipes.terminal.table import Table
from modelpipes.values import paths

VALUE_COLUMN = 38


def write(settings: Sequence[Setting], path: str, format_: str) -> None:
    """Write what is in force to stdout; `path` is the file's, empty where there is none."""
    if format_ in DOCUMENTS:
        rows = [(each.key, "" if each.value is None else write_value(each.value), each.source) for each in settings]
        output.write_table(Table(["key", "value", "source"], rows), format_)
        return
    lines = [make_line(f"# {path or f'no configuration: {paths.config_file()} is not there'}")]
    section = ""
    for setting in settings:
        of, _, name = setting.key.rpartition(".")
        if of != section:
            section = of
            lines += ["", f"[{of}]"]
        source = os.path.basename(setting.source) if setting.source == path else setting.source
        written = f"{name} = {write_value(setting.value)}"
        if setting.value is None:
            written = f"# {name} is {'set, and not shown' if setting.is_hidden else 'not set'}"
        lines.append(f"{written:<{VALUE_COLUMN}}  # {make_line(source)}")
    output.write_text("".join(f"{line}\n" for line in lines))
