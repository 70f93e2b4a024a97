"""Kept conversations: the slots of a llama-server saved before it ends, and restored once it runs again."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import Any

import msgspec

from modelpipes.engine.client import QUERY_LIMIT_S, Client, figure_of
from modelpipes.errors import EngineError, Refused
from modelpipes.values.deadline import Deadline

TRIAL = "trial.slot"
# More than a batch of our engines (32 tokens on a CPU) in any vocabulary, and the same on every model: what a
# server holds of it after a restore is what it may hold of a conversation.
TRIAL_PROMPT = " ".join(str(number) for number in range(1, 60))
TRIAL_MORE = " and so on"
# The last token is always computed again, and a tokenizer may join the last one with what follows.
REUSED_SHARE = 0.9


class SavedSlot(msgspec.Struct, frozen=True):
    """One conversation in a file of the folder; `tokens` is what the server says it holds.

    `scales` are those of the server's LoRA adapters, in its order, with which it was computed: a request may ask for
    others than the server has, and the server be told others while it runs.
    """

    slot: int
    file: str
    tokens: int
    size_bytes: int
    scales: tuple[float, ...] = ()


def save(client: Client, folder: str, deadline: Deadline, *, has_adapters: bool = False) -> list[SavedSlot]:
    """Save every slot that is idle and holds something; `folder` is what the server was started with.

    `has_adapters`: whether it was started with any.

    What only its prompt cache holds is not in a slot, and is lost. A slot that cannot be saved is left out.
    Raises EngineError where the server cannot be spoken to, DeadlineError.
    """
    saved: list[SavedSlot] = []
    common = _scales(client, deadline) if has_adapters else ()
    for number, own in _idle_slots(client, deadline).items():
        name = f"{uuid.uuid4().hex}.slot"
        try:
            answer = _act(client, number, "save", deadline, name)
        except Refused:
            _remove(folder, name)
            continue
        except BaseException:
            _remove(folder, name)
            discard(folder, saved)
            raise
        slot = SavedSlot(number, name, _number(answer, "n_saved"), _number(answer, "n_written"), own or common)
        if slot.tokens and _is_whole(folder, slot):
            saved.append(slot)
        else:
            _remove(folder, name)
    return saved


def restore(
    client: Client, folder: str, saved: list[SavedSlot], deadline: Deadline, *, has_adapters: bool = False
) -> list[SavedSlot]:
    """Put saved slots back into a server of the same `cachekey.CacheKey`, just started; those that it took.

    Taken is what it counts as many tokens of as it had saved. Any other slot that was tried is empty afterwards: a
    llama-server empties a slot before it reads the file that it then refuses, and what it took in part is erased. So
    nothing is warm but what this returns. A slot that works now, or that there is not any more, is left as it is; one
    that was computed with other scales of adapters than the server has is not tried.

    Nothing else is checked by the server: it takes the file of other weights of the same shape, and says 200. Of
    another number of slots, context or cache type it says "No available space in KV cache or invalid slot save file".

    The files remain: see `discard`. Raises EngineError where the server cannot be spoken to, also because it died of a
    damaged file (then discard them), DeadlineError.
    """
    idle = _idle_slots(client, deadline)
    common = _scales(client, deadline) if has_adapters else ()
    taken = []
    for slot in saved:
        if slot.slot not in idle or slot.scales != common or not _is_whole(folder, slot):
            continue
        restored = -1
        with contextlib.suppress(Refused):
            restored = _number(_act(client, slot.slot, "restore", deadline, slot.file), "n_restored")
        if restored == slot.tokens:
            taken.append(slot)
        else:
            with contextlib.suppress(Refused):
                _act(client, slot.slot, "erase", deadline)
    return taken


def discard(folder: str, saved: list[SavedSlot]) -> None:
    """Remove the files."""
    for slot in saved:
        _remove(folder, slot.file)


def sweep(folder: str) -> None:
    """Remove every saved slot, also those of a process that was killed amid its work; nothing else."""
    for path in Path(folder).glob("*.slot"):
        _remove(folder, path.name)


def works(client: Client, folder: str, deadline: Deadline) -> bool:
    """Whether this model goes on where a saved slot ended, by the server's own count of cached tokens.

    Tried with a text of ours in slot 0, which is empty afterwards: for a server just started, before `restore`.
    A model with a sliding window or a recurrent state may restore without an error and compute all anew, with
    a window not before the conversation is longer than that (`reused_tokens` shows it). Raises EngineError
    where the server cannot be spoken to, DeadlineError.
    """
    try:
        begun = _complete(client, TRIAL_PROMPT, deadline)
        tokens = _number(begun, "prompt_n") + _number(begun, "cache_n")
        _act(client, 0, "save", deadline, TRIAL)
        _act(client, 0, "erase", deadline)
        _act(client, 0, "restore", deadline, TRIAL)
        cached = _number(_complete(client, TRIAL_PROMPT + TRIAL_MORE, deadline), "cache_n")
        _act(client, 0, "erase", deadline)
        return tokens > 0 and cached >= tokens * REUSED_SHARE
    except Refused:
        return False
    finally:
        _remove(folder, TRIAL)


def reused_tokens(client: Client, deadline: Deadline) -> int | None:
    """Prompt tokens that the server took from its slots since its start; None where it does not count them.

    What grows after the first answer to a restored conversation is what its restore was worth.
    """
    count = figure_of(client.metrics(_limit_s(deadline)), "prompt_tokens_cached_total")
    return None if count is None else int(count)


def _idle_slots(client: Client, deadline: Deadline) -> dict[int, tuple[float, ...]]:
    """Their numbers, each with the adapters' scales that the last request in it asked for; (): for none."""
    deadline.check("saved conversations")
    answer = client.get("/slots", limit_s=_limit_s(deadline))
    if not isinstance(answer, list):
        raise EngineError(f"the server at {client.root} lists its slots in an unknown form")
    # Only numbers that it names: llama-server takes any other modulo their count.
    return {
        slot["id"]: _scales_of(params.get("lora")) if isinstance(params := slot.get("params"), dict) else ()
        for slot in answer
        if isinstance(slot, dict) and isinstance(slot.get("id"), int) and not slot["is_processing"]
    }


def _scales(client: Client, deadline: Deadline) -> tuple[float, ...]:
    """Those of the server's adapters, for requests that ask for none."""
    deadline.check("saved conversations")
    return _scales_of(client.get("/lora-adapters", missing_is_none=True, limit_s=_limit_s(deadline)))


def _scales_of(adapters: object) -> tuple[float, ...]:
    """Of a list of adapters in the server's order."""
    listed = adapters if isinstance(adapters, list) else []
    return tuple(float(one["scale"]) for one in listed if isinstance(one, dict) and "scale" in one)


def _act(client: Client, slot: int, action: str, deadline: Deadline, file: str = "") -> Any:
    deadline.check("saved conversations")
    return client.post(f"/slots/{slot}?action={action}", {"filename": file} if file else {}, _limit_s(deadline))


def _complete(client: Client, prompt: str, deadline: Deadline) -> Any:
    """The timings of one token after `prompt`."""
    asked = {"prompt": prompt, "n_predict": 1, "id_slot": 0, "cache_prompt": True, "temperature": 0}
    answer = client.post("/completion", asked, _limit_s(deadline))
    return answer.get("timings") if isinstance(answer, dict) else None


def _number(answer: Any, key: str) -> int:
    value = answer.get(key) if isinstance(answer, dict) else None
    return value if isinstance(value, int) else 0


def _limit_s(deadline: Deadline) -> float:
    return min(max(deadline.remaining_s(), 0.001), QUERY_LIMIT_S)


def _is_whole(folder: str, slot: SavedSlot) -> bool:
    """Whether all of a slot's file is there: a llama-server that restores half a file dies of it."""
    with contextlib.suppress(OSError):
        return os.path.getsize(os.path.join(folder, slot.file)) == slot.size_bytes
    return False


def _remove(folder: str, name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(folder, name))
