"""How far a model is that loads, on stderr: what chat-models and attach-model say while nothing else can happen."""

from __future__ import annotations

from modelpipes.chat.voices.loading import Arriving, Show
from modelpipes.terminal.waiting import Waiting


def show_arriving(waiting: Waiting) -> Show:
    """To be told, again and again, of the member that is being seated."""

    def show(arriving: Arriving | None) -> None:
        if arriving is None:
            waiting.done()
            return
        loading = arriving.loading
        share = loading.done_bytes / loading.total_bytes if loading else None
        # One that was lost may have been in the middle of a line, which a line in place would wipe.
        waiting.show(str(arriving), share, may_wipe=arriving.number > 0)

    return show
