"""A member that is asked who speaks next; where it does not say, or starves somebody, the leader chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

from modelpipes.chat.transcript import Choice, Transcript
from modelpipes.chat.turns import TurnTaking, moderator_question, overdue, parse_choice, without_thoughts
from modelpipes.errors import DeadlineError, PeerError, PeerFailed, Reason
from modelpipes.pipe.asker import Asker
from modelpipes.pipe.message import Delta, Reply, Say, new_id

MODERATOR_TRIES = 2  # then the next in the round speaks: a moderator that names nobody must not stop the talk
MODERATOR_CHARS = 2000  # of the last turns, for the moderator to go by
MODERATOR_ANSWER_CHARS = 1000  # longer answers are broken off: one that names nobody by then may never end


class Moderator:
    """Chooses among those who speak."""

    def __init__(
        self,
        seat: str,
        speaking: Sequence[str],
        taking: TurnTaking,
        hub: str,
        open_asker: Callable[[str], Asker],
        bring_back: Callable[[PeerError], None],
    ) -> None:
        """`taking` decides where it names nobody. `bring_back` returns once it is there again, and raises where it
        will not be.
        """
        self._seat = seat
        self._speaking = speaking
        self._taking = taking
        self._hub = hub
        self._open_asker = open_asker
        self._bring_back = bring_back
        self._is_deserted = False  # it was lost, and could not be brought back

    def choose(self, transcript: Transcript) -> Choice:
        """Whom it lets speak; where that is nobody, or somebody must not wait longer, the leader does."""
        turn, tries, why = transcript.last + 1, 0, ""
        if late := overdue({name: transcript.passed_over(name) for name in self._speaking}):
            return Choice(turn, self._hub, late, why="it was passed over too often")
        try:
            for tries in range(1, MODERATOR_TRIES + 1):
                if chosen := self._ask(transcript):
                    return Choice(turn, self._seat, chosen, tries)
            why = f"{self._seat} named nobody of them"
        except DeadlineError as silent:
            why = str(silent)
        except PeerError as lost:
            why = str(lost)
            if reason_of(lost) == "leaving":
                self._mend(lost)
        return Choice(turn, self._hub, self._taking.next(turn, transcript.speakers), tries, why)

    def _mend(self, lost: PeerError) -> None:
        """Bring it back for the next choice, if that can be: a talk goes on without."""
        if not self._is_deserted:
            try:
                self._bring_back(lost)
            except (PeerError, DeadlineError):
                self._is_deserted = True

    def _ask(self, transcript: Transcript) -> str | None:
        """Whom it names; None where it names nobody."""
        last = transcript.speakers[-1:]
        candidates = [name for name in self._speaking if name not in last] or list(self._speaking)
        counts = {name: transcript.count(name) for name in self._speaking}
        newest = transcript.after(transcript.last - len(self._speaking) - 1)
        talk = "\n\n".join(f"{turn.sender}: {turn.content}" for turn in newest)
        asked = moderator_question(counts, candidates, talk[-MODERATOR_CHARS:])
        said = ""
        with (
            self._open_asker(self._seat) as asker,
            closing(asker.ask(Say(new_id(), self._hub, self._seat, asked))) as answers,
        ):
            for answer in answers:
                if isinstance(answer, Delta):
                    said = answer.content if answer.anew else said + answer.content
                if isinstance(answer, Reply):
                    said = answer.content
                if isinstance(answer, Reply) or len(without_thoughts(said)) > MODERATOR_ANSWER_CHARS:
                    break
        return parse_choice(said, candidates)


def reason_of(error: PeerError) -> Reason:
    """Why there is no answer: the reason of the failure, which is "leaving" where the member is gone."""
    return error.reason if isinstance(error, PeerFailed) else "leaving"
