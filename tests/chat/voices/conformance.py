"""What every kind of voice must do, as `modelpipes.chat.voices` says it: checks to begin a new one with.

A kind is described by a `Specimen`: how to make a voice of it, and how to have it answer, hang, fall silent and die.
`test_conformance.py` has those of all kinds that there are.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelpipes.chat.voices import Finish, Voice, Work
from modelpipes.errors import DeadlineError, MessageError, PipesError
from modelpipes.pipe.message import Heard, Say
from modelpipes.values.deadline import Deadline
from tests.chat.voices.conftest import Asked, prepared
from tests.peers import LIMIT_S, eventually, open_descriptors


class Specimen:
    """One kind of voice. What a kind cannot do is left as it is here, and not checked."""

    parallel = 1  # the most messages at a time that a voice of the check should work on
    shows_life = True  # without words: a server that somebody else runs need not
    can_be_silent = False  # has it a limit on silence?
    can_be_too_large = False
    can_fail_to_load = False

    def make(self, *, parallel: int = 1, silence_s: float = LIMIT_S) -> Voice:
        """A voice, not yet prepared, that answers what `ask` asks."""
        raise NotImplementedError

    def make_endless(self, *, parallel: int = 1) -> Voice:
        """One whose answers to `ask_endlessly` do not end."""
        return self.make(parallel=parallel)

    def make_unloadable(self) -> Voice:
        """One whose `prepare` fails."""
        raise NotImplementedError

    def ask(self, voice: Voice, words: str) -> Asked:
        """Begin an answer that ends, and has words."""
        return Asked(voice, words)

    def ask_endlessly(self, voice: Voice) -> Asked:
        """Begin an answer that does not end; it is in work when this returns."""
        raise NotImplementedError

    def ask_for_silence(self, voice: Voice) -> Asked:
        """Begin an answer in which what answers shows no life for longer than it may."""
        raise NotImplementedError

    def ask_for_too_much(self, voice: Voice) -> Asked:
        """Begin an answer that is too large, or to a message that is."""
        raise NotImplementedError

    def kill(self, voice: Voice) -> bool:
        """Kill what makes the answers; False where nothing lives between two of them."""
        return False


def children_of_ours() -> set[str]:
    """The processes that we started and that are still there."""
    found: set[str] = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that just ended
            found |= set(Path("/proc/self/task", task, "children").read_text().split())
    return found


@contextlib.contextmanager
def ready(voice: Voice) -> Iterator[Voice]:
    try:
        yield prepared(voice)
    finally:
        voice.close()


def check_answered(asked: Asked) -> None:
    """It ended well, and what was emitted is what there is."""
    assert asked.content, "an answer has words"
    assert asked.content == "".join(content for content, _ in asked.deltas)
    assert asked.thinking == "".join(thinking for _, thinking in asked.deltas)
    assert asked.finish is not None and asked.finish.stop in ("end", "length")
    assert asked.work.first_word_s is not None
    assert asked.work._break_off is None, "a cancel that comes late must find nothing to break off"


def check_it_tells_what_it_is(specimen: Specimen) -> None:
    voice = specimen.make(parallel=specimen.parallel)
    assert voice.kind
    assert voice.parallel == specimen.parallel
    assert voice.history_bytes > 0
    assert voice.death_fd() == -1, "nothing was started yet"
    voice.close()


def check_it_answers_one_message_after_the_other(specimen: Specimen) -> None:
    with ready(specimen.make()) as voice:
        for words in ("Hello", "Hello again", "grüße 日本"):
            check_answered(specimen.ask(voice, words).join())
            voice.tend()


def check_it_answers_as_many_at_a_time_as_it_says(specimen: Specimen) -> None:
    with ready(specimen.make_endless(parallel=specimen.parallel)) as voice:
        asked = [specimen.ask_endlessly(voice) for _ in range(specimen.parallel)]
        voice.tend()
        for one in asked:
            assert one.finish is None and one.error is None
        for one in asked:
            one.cancel()
            assert one.error is None


def check_who_waits_for_it_sees_life(specimen: Specimen) -> None:
    if not specimen.shows_life:
        return
    with ready(specimen.make_endless()) as voice:
        asked = specimen.ask_endlessly(voice)
        for _ in range(2):
            seen_s = asked.work.life_s
            eventually(lambda seen_s=seen_s: asked.work.life_s > seen_s, "sign of life")  # type: ignore[misc]
        asked.cancel()


def check_a_cancel_breaks_off_and_the_next_message_is_answered(specimen: Specimen) -> None:
    with ready(specimen.make_endless()) as voice:
        for _ in range(3):
            asked = specimen.ask_endlessly(voice)
            asked.cancel()
            assert (asked.error, asked.finish) == (None, Finish())
            assert asked.content == "".join(content for content, _ in asked.deltas)
            assert asked.work._break_off is None
            voice.tend()  # what we broke off has not died


def check_a_cancel_before_the_start_is_obeyed(specimen: Specimen) -> None:
    with ready(specimen.make_endless()) as voice:
        work = Work(Say("1", "hub", "bob"), [Heard(0, "hub", "Hello")], lambda *_: None)
        work.cancel()
        assert voice.answer(work) == Finish()
        assert work.content == []


def check_a_cancel_after_the_end_disturbs_nothing(specimen: Specimen) -> None:
    with ready(specimen.make()) as voice:
        asked = specimen.ask(voice, "Hello").join()
        asked.work.cancel()
        check_answered(specimen.ask(voice, "Hello again").join())


def check_what_dies_idle_is_noticed(specimen: Specimen) -> None:
    with ready(specimen.make()) as voice:
        check_answered(specimen.ask(voice, "Hello").join())
        if specimen.kill(voice):
            eventually(lambda: has_died(voice), "death of what answers")


def check_what_dies_amid_an_answer_is_no_answer(specimen: Specimen) -> None:
    with ready(specimen.make_endless()) as voice:
        asked = specimen.ask_endlessly(voice)
        if specimen.kill(voice):
            asked.join()
            assert isinstance(asked.error, PipesError)
            eventually(lambda: has_died(voice), "death of what answers")
        else:
            asked.cancel()


def has_died(voice: Voice) -> bool:
    """Does the member learn of the death, with the last words?"""
    try:
        voice.tend()
    except PipesError as died:
        assert len(str(died).splitlines()) == 1
        return True
    poll = select.poll()
    if voice.death_fd() < 0:
        return False
    poll.register(voice.death_fd(), select.POLLIN)
    if not poll.poll(0):
        return False
    assert len(voice.last_words().splitlines()) == 1
    return True


def check_silence_ends_an_answer_at_the_limit(specimen: Specimen) -> None:
    if not specimen.can_be_silent:
        return
    with ready(specimen.make(silence_s=0.2)) as voice:
        asked = specimen.ask_for_silence(voice).join()
        assert isinstance(asked.error, DeadlineError)


def check_too_much_is_refused_and_the_next_message_is_answered(specimen: Specimen) -> None:
    if not specimen.can_be_too_large:
        return
    with ready(specimen.make()) as voice:
        asked = specimen.ask_for_too_much(voice).join()
        assert isinstance(asked.error, MessageError)
        check_answered(specimen.ask(voice, "Hello").join())


def check_what_cannot_be_loaded_is_told_in_one_line(specimen: Specimen) -> None:
    if not specimen.can_fail_to_load:
        return
    voice = specimen.make_unloadable()
    with pytest.raises(PipesError) as failed:
        voice.prepare(Deadline.after(LIMIT_S))
    assert len(str(failed.value).splitlines()) == 1
    voice.close()


def check_its_end_leaves_no_process_and_no_descriptor(specimen: Specimen) -> None:
    before = open_descriptors(), children_of_ours()
    voice = prepared(specimen.make())
    check_answered(specimen.ask(voice, "Hello").join())
    voice.close()
    voice.close()
    await_the_same(before)


def check_its_end_amid_an_answer_leaves_nothing_either(specimen: Specimen) -> None:
    before = open_descriptors(), children_of_ours()
    voice = prepared(specimen.make_endless())
    asked = specimen.ask_endlessly(voice)
    asked.work.cancel()  # as a member does that leaves
    voice.close()
    asked.join()
    await_the_same(before)


def await_the_same(before: tuple[dict[str, str], set[str]]) -> None:
    """For a server of the test, which is in our process too, to notice that we have gone."""
    eventually(lambda: (open_descriptors(), children_of_ours()) == before, "end of all that was started")


def check_an_end_without_a_beginning_is_none(specimen: Specimen) -> None:
    voice = specimen.make()
    voice.close()
    voice.close()


CHECKS: list[Callable[[Specimen], None]] = [
    check_it_tells_what_it_is,
    check_it_answers_one_message_after_the_other,
    check_it_answers_as_many_at_a_time_as_it_says,
    check_who_waits_for_it_sees_life,
    check_a_cancel_breaks_off_and_the_next_message_is_answered,
    check_a_cancel_before_the_start_is_obeyed,
    check_a_cancel_after_the_end_disturbs_nothing,
    check_what_dies_idle_is_noticed,
    check_what_dies_amid_an_answer_is_no_answer,
    check_silence_ends_an_answer_at_the_limit,
    check_too_much_is_refused_and_the_next_message_is_answered,
    check_what_cannot_be_loaded_is_told_in_one_line,
    check_its_end_leaves_no_process_and_no_descriptor,
    check_its_end_amid_an_answer_leaves_nothing_either,
    check_an_end_without_a_beginning_is_none,
]
