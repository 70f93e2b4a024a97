"""Where every command starts: `ask-model …`, `python -m modelpipes ask …`."""

from __future__ import annotations

import gc


def main() -> None:
    """Run the command by whose name we were called."""
    gc.disable()  # while modules load there is no garbage, and looking for it took 18 of 60 ms; `commands` enables it
    from modelpipes import commands

    commands.main()


if __name__ == "__main__":
    main()
