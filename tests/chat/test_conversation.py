from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelpipes.chat import telling
from modelpipes.chat.conversation import Conversation, Listener
from modelpipes.chat.moderator import MODERATOR_TRIES
from modelpipes.chat.telling import cast_of
from modelpipes.chat.transcript import VERSION, Choice, Header, Transcript, Turn
from modelpipes.chat.turns import Random, RoundRobin, StopRules
from modelpipes.chat.voices import Finish, Work
from modelpipes.errors import DeadlineError, MessageError, PeerError, PeerFailed, PeerGone, ProgramError
from modelpipes.pipe.message import Cast, new_id
from modelpipes.pipe.room import Room, star
from modelpipes.values.deadline import Deadline
from tests.chat.conftest import ScriptedVoice, Seat, Seated
from tests.peers import LIMIT_S, eventually

Lead = Callable[..., str]
ONE_TURN_S = 2.0  # in which a member answers once, on a machine that does other things as well, and another begins to
SILENCE_S = 1.0  # in which one who answers shows life


class Recorder(Listener):
    """A listener that remembers everything."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.choices: list[Choice] = []

    def starts(self, speaker: str, turn: int) -> None:
        self.events.append(("starts", (speaker, turn)))

    def says(self, content: str, thinking: str) -> None:
        self.events.append(("says", content + thinking))

    def ends(self, turn: Turn) -> None:
        self.events.append(("ends", turn.turn))

    def chose(self, choice: Choice) -> None:
        self.choices.append(choice)


def unseated(seat: str, why: PeerError, limit: Deadline) -> None:
    raise why


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "talk.jsonl")


@pytest.fixture
def lead(room: Room, path: str) -> Iterator[Lead]:
    """`lead("alice", "bob", rounds=2)` leads a conversation in the file, which is resumed if it is there."""

    def start(
        *members: str,
        rounds: int | None = None,
        stop_word: str | None = None,
        seed: int | None = None,
        max_s: float = LIMIT_S,
        silence_s: float = LIMIT_S,
        bring_back: Callable[[str, PeerError, Deadline], None] = unseated,
        listener: Recorder | None = None,
        moderator: str | None = None,
        moderator_speaks: bool = False,
        opening: str | None = "Hello.",
        **options: Any,
    ) -> str:
        debates = moderator_speaks or not moderator
        speaking = tuple(name for name in members if debates or name != moderator)
        taking = RoundRobin(speaking) if seed is None else Random(speaking, seed)
        header = Header(VERSION, "c" * 32, members, moderator=moderator or "", debates=debates)
        with Transcript.resume(path, header) as transcript:
            conversation = Conversation(
                room,
                members,
                transcript,
                listener or Recorder(),
                taking=taking,
                rules=StopRules(rounds, stop_word),
                limit=Deadline.after(max_s),
                bring_back=bring_back,
                silence_s=silence_s,
                moderator=moderator,
                moderator_speaks=moderator_speaks,
                **options,
            )
            return conversation.lead(opening)

    yield start


def turns_in(path: str) -> list[tuple[int, str, str]]:
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [(line["turn"], line["from"], line["content"]) for line in lines if "from" in line]


def speakers_in(path: str) -> list[str]:
    return [sender for _, sender, _ in turns_in(path)]


def why_in(path: str) -> str:
    ended = json.loads(Path(path).read_text().splitlines()[-1])
    assert ended["type"] == "end"
    return str(ended["why"])


def numbered(name: str) -> ScriptedVoice:
    """A voice whose every answer is another."""
    count = iter(range(1000))
    return ScriptedVoice(lambda work: work.emit(f"{name}-{next(count)}"))


# -- hearing and taking turns


def test_every_member_hears_once_all_that_was_said_since_its_last_turn(
    room: Room, seat: Seat, lead: Lead, path: str
) -> None:
    room.make_pipes(star("hub", ["carol"]))
    voices = {name: numbered(name) for name in ("alice", "bob", "carol")}
    for name, voice in voices.items():
        seat(voice, name)
    assert lead("carol", "alice", "bob", rounds=2) == "rounds"
    turns = turns_in(path)
    assert [(number, sender) for number, sender, _ in turns] == list(
        enumerate(["hub", "carol", "alice", "bob", "carol", "alice", "bob"])
    )
    for first, name in enumerate(("carol", "alice", "bob")):
        for again in (0, 1):
            asked = 1 + first + 3 * again
            assert voices[name].heard[again] == [(sender, content) for _, sender, content in turns[:asked]]


def test_a_turn_is_in_the_file_before_the_next_one_starts(seat: Seat, lead: Lead, path: str) -> None:
    seen: list[int] = []

    def look(work: Work) -> None:
        seen.append(len(turns_in(path)))
        work.emit("seen")

    seat(ScriptedVoice(look), "alice")
    seat(ScriptedVoice(look), "bob")
    lead("alice", "bob", rounds=3)
    assert seen == [1, 2, 3, 4, 5, 6]


def test_a_listener_hears_the_turn_begin_its_pieces_and_its_end(seat: Seat, lead: Lead) -> None:
    seat(ScriptedVoice(), "alice")
    seat(ScriptedVoice(), "bob")
    listener = Recorder()
    lead("alice", "bob", rounds=1, listener=listener)
    assert listener.events[:4] == [("ends", 0), ("starts", ("alice", 1)), ("says", "Hello."), ("ends", 1)]


def test_words_that_turned_out_to_be_thoughts_are_told_to_nobody(seat: Seat, lead: Lead) -> None:
    def think_aloud(work: Work) -> None:
        work.emit("The user asks of the sea.")
        work.begin_anew(thinking="The user asks of the sea.")
        work.emit("Blue.")

    bob = ScriptedVoice()
    seat(ScriptedVoice(think_aloud), "alice")
    seat(bob, "bob")
    lead("alice", "bob", rounds=1)
    assert [words for _, words in bob.heard[0]][-1] == "Blue."


def test_random_turns_go_on_alike_after_a_resume(seat: Seat, lead: Lead, path: str) -> None:
    seat(numbered("alice"), "alice")
    seat(numbered("bob"), "bob")
    lead("alice", "bob", seed=4, rounds=4)
    whole = speakers_in(path)
    Path(path).unlink()
    lead("alice", "bob", seed=4, rounds=1)
    lead("alice", "bob", seed=4, rounds=4)
    assert speakers_in(path) == whole
    assert all(a != b for a, b in itertools.pairwise(whole))


def test_rounds_count_from_the_first_turn_of_the_file(seat: Seat, lead: Lead, path: str) -> None:
    seat(numbered("alice"), "alice")
    seat(numbered("bob"), "bob")
    lead("alice", "bob", rounds=1)
    before = turns_in(path)
    assert lead("alice", "bob", rounds=1) == "rounds"
    assert turns_in(path) == before
    lead("alice", "bob", rounds=2)
    assert turns_in(path)[: len(before)] == before
    assert speakers_in(path) == ["hub", "alice", "bob", "alice", "bob"]


# -- a leader who resumes


def test_a_turn_that_a_dead_leader_never_wrote_down_is_forgotten_by_who_said_it(
    seat: Seat, lead: Lead, path: str
) -> None:
    voices = {name: numbered(name) for name in ("alice", "bob")}
    for name, voice in voices.items():
        seat(voice, name)
    lead("alice", "bob", rounds=2)
    lines = Path(path).read_text().splitlines(keepends=True)
    Path(path).write_text("".join(lines[:4]))  # header, opening, alice, bob: they also said two more
    lead("alice", "bob", rounds=3)
    turns = turns_in(path)
    assert [content for _, _, content in turns] == [
        "Hello.",
        "alice-0",
        "bob-0",
        "alice-2",
        "bob-2",
        "alice-3",
        "bob-3",
    ]
    assert voices["alice"].heard[2] == [(sender, content) for _, sender, content in turns[:3]]
    assert voices["bob"].heard[-1] == [(sender, content) for _, sender, content in turns[:6]]


def test_new_members_who_know_nothing_are_told_everything(seat: Seat, lead: Lead, path: str) -> None:
    for name in ("alice", "bob"):
        seat(numbered(name), name).end()
    first = [seat(numbered(name), name) for name in ("alice", "bob")]
    lead("alice", "bob", rounds=2)
    for one in first:
        one.end()
    voices = [numbered("new"), numbered("new")]
    seat(voices[0], "alice")
    seat(voices[1], "bob")
    lead("alice", "bob", rounds=3)
    turns = [(sender, content) for _, sender, content in turns_in(path)]
    assert voices[0].heard == [turns[:5]]
    assert voices[1].heard == [turns[:6]]


def test_a_turn_cut_off_at_the_deadline_is_not_one_that_its_speaker_surely_knows() -> None:
    transcript = Transcript.unwritten(Header(VERSION, "talk", ("bob", "al")))
    turns = [Turn(0, "hub", "a"), Turn(1, "bob", "b", "end"), Turn(2, "al", "c", "end"), Turn(3, "bob", "d", "timeout")]
    transcript.append(*turns)
    assert [transcript.known_by(seat) for seat in ("bob", "al", "carol")] == [1, 2, -1]


def test_a_member_that_missed_more_than_can_travel_is_told_the_opening_and_the_newest_turns(
    seat: Seat, lead: Lead, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A gap of 20 MB went into one message, which was refused, at every resume again.
    monkeypatch.setattr(telling, "RETELL_BYTES", 250)
    voices = {name: numbered(name) for name in ("alice", "bob", "carol", "dave")}
    for name, voice in voices.items():
        seat(voice, name) if name in ("alice", "bob") else None
    lead("alice", "bob", rounds=1)
    turns = [Turn(n, "bob", f"said {n}") for n in range(3, 8)]
    with Transcript.resume(path, Header(VERSION, "", ())) as transcript:
        transcript.append(*turns)
    lead("bob", "alice", rounds=5)
    told = voices["alice"].heard[1]
    assert told[0] == ("hub", "Hello.")
    assert [content for _, content in told[-2:]] == ["said 6", "said 7"]
    assert len(told) == 3


# -- why it ends


def test_the_stop_word_ends_it_and_is_named_but_thoughts_and_the_opening_may_say_it(
    seat: Seat, lead: Lead, path: str
) -> None:
    answers = iter(["no", "well, HELLO there"])
    seat(ScriptedVoice(lambda work: work.emit(next(answers), thinking="hello")), "alice")
    seat(ScriptedVoice(lambda work: work.emit("othello")), "bob")
    assert lead("alice", "bob", stop_word="hello", rounds=9) == "stop-word"
    assert speakers_in(path) == ["hub", "alice", "bob", "alice"]
    assert why_in(path) == "stop-word"


def test_at_the_deadline_in_mid_answer_what_was_said_is_kept_and_the_work_stopped(
    seat: Seat, lead: Lead, path: str
) -> None:
    cancelled = threading.Event()

    def endless(work: Work) -> None:
        stop = threading.Event()
        work.when_cancelled(stop.set)
        work.emit("so far")
        assert stop.wait(LIMIT_S)
        cancelled.set()

    seat(numbered("alice"), "alice")
    seat(ScriptedVoice(endless), "bob")
    began_s = time.monotonic()
    assert lead("alice", "bob", rounds=5, max_s=ONE_TURN_S) == "max-seconds"
    assert time.monotonic() - began_s >= ONE_TURN_S
    assert cancelled.wait(LIMIT_S)
    assert turns_in(path)[1:] == [(1, "alice", "alice-0"), (2, "bob", "so far")]
    assert json.loads(Path(path).read_text().splitlines()[-2])["stop"] == "timeout"
    assert why_in(path) == "max-seconds"


def test_at_the_deadline_who_said_nothing_yet_has_no_turn(seat: Seat, lead: Lead, path: str) -> None:
    def silent(work: Work) -> None:
        stop = threading.Event()
        work.when_cancelled(stop.set)
        assert stop.wait(LIMIT_S)

    seat(ScriptedVoice(silent), "alice")
    seat(ScriptedVoice(), "bob")
    assert lead("alice", "bob", rounds=5, max_s=0.3) == "max-seconds"
    assert speakers_in(path) == ["hub"]


def test_a_conversation_that_was_cut_off_goes_on(seat: Seat, lead: Lead, path: str) -> None:
    def slow(work: Work) -> None:
        stop = threading.Event()
        work.when_cancelled(stop.set)
        work.emit("cut")
        stop.wait(LIMIT_S if len(bob.heard) == 1 else 0)

    bob = ScriptedVoice(slow)
    seat(numbered("alice"), "alice")
    seat(bob, "bob")
    lead("alice", "bob", rounds=2, max_s=ONE_TURN_S)
    assert lead("alice", "bob", rounds=2) == "rounds"
    turns = [(sender, content) for _, sender, content in turns_in(path)]
    assert [sender for sender, _ in turns] == ["hub", "alice", "bob", "alice", "bob"]
    assert bob.heard[1] == turns[:4]


# -- members that fail


def leave_amid(work: Work, seated: Seated) -> None:
    """The member leaves while its voice still works, which it then breaks off."""
    stop = threading.Event()
    work.when_cancelled(stop.set)
    seated.member.stop(0)
    assert stop.wait(LIMIT_S)


def test_a_failed_turn_is_tried_as_often_as_allowed_and_begins_anew_for_the_listener(seat: Seat, lead: Lead) -> None:
    def fail(work: Work) -> None:
        work.emit("half")
        raise ProgramError("broken")

    voice = ScriptedVoice(fail)
    seat(voice, "alice")
    listener = Recorder()
    with pytest.raises(PeerFailed, match="alice: broken"):
        lead("alice", "bob", rounds=1, retries=2, listener=listener)
    assert len(voice.heard) == 3
    assert listener.events.count(("starts", ("alice", 1))) == 3
    assert listener.events[-1] != ("ends", 1)


def test_a_message_that_is_too_large_is_not_tried_again(seat: Seat, lead: Lead) -> None:
    def fail(work: Work) -> None:
        raise MessageError("far too large")

    voice = ScriptedVoice(fail)
    seat(voice, "alice")
    with pytest.raises(PeerFailed, match="far too large"):
        lead("alice", "bob", rounds=1, retries=2)
    assert len(voice.heard) == 1


def test_a_member_that_leaves_in_mid_answer_is_brought_back_and_told_everything_once(
    seat: Seat, lead: Lead, path: str
) -> None:
    seated: list[Seated] = []

    def leave(work: Work) -> None:
        if len(work.turns) > 2:
            work.emit("lost words")
            leave_amid(work, seated[0])
        else:
            work.emit("first")

    second = ScriptedVoice(lambda work: work.emit("second"))
    lost: list[PeerError] = []

    def bring_back(name: str, why: PeerError, limit: Deadline) -> None:
        assert name == "alice"
        lost.append(why)
        seated[0].join()
        seat(second, "alice")

    seated.append(seat(ScriptedVoice(leave), "alice"))
    seat(numbered("bob"), "bob")
    lead("alice", "bob", rounds=2, bring_back=bring_back)
    turns = turns_in(path)
    assert turns == [
        (0, "hub", "Hello."),
        (1, "alice", "first"),
        (2, "bob", "bob-0"),
        (3, "alice", "second"),
        (4, "bob", "bob-1"),
    ]
    assert second.heard == [[(sender, content) for _, sender, content in turns[:3]]]
    assert len(lost) == 1


def test_a_member_that_left_between_two_turns_is_missed_at_once_and_brought_back(
    seat: Seat, lead: Lead, path: str
) -> None:
    alice = seat(numbered("alice"), "alice")

    def end_alice(work: Work) -> None:
        alice.end()
        work.emit("bye, alice")

    seat(ScriptedVoice(end_alice), "bob")
    again = numbered("again")

    def bring_back(name: str, why: PeerError, limit: Deadline) -> None:
        assert str(why) == "alice has left; seat it again with attach-model"
        seat(again, "alice")

    lead("alice", "bob", rounds=2, bring_back=bring_back)
    assert [content for _, _, content in turns_in(path)] == ["Hello.", "alice-0", "bye, alice", "again-0", "bye, alice"]
    assert len(again.heard[0]) == 3


@pytest.mark.parametrize("retries", [1, 2])
def test_a_member_that_dies_again_while_it_is_brought_back_costs_a_try_and_no_more(
    seat: Seat, lead: Lead, retries: int
) -> None:
    alice = seat(numbered("alice"), "alice")

    def end_alice(work: Work) -> None:
        alice.end()
        work.emit("bye")

    seat(ScriptedVoice(end_alice), "bob")
    starts: list[PeerError] = []

    def bring_back(name: str, why: PeerError, limit: Deadline) -> None:
        starts.append(why)
        if len(starts) == 1:
            raise PeerGone("alice died again")
        seat(numbered("again"), "alice")

    if retries == 1:
        with pytest.raises(PeerGone, match="alice died again"):
            lead("alice", "bob", rounds=2, retries=retries, bring_back=bring_back)
    else:
        assert lead("alice", "bob", rounds=2, retries=retries, bring_back=bring_back) == "rounds"


def test_nobody_is_brought_back_when_no_try_is_left(seat: Seat, lead: Lead) -> None:
    def leave(work: Work) -> None:
        leave_amid(work, seated)

    seated = seat(ScriptedVoice(leave), "alice")
    with pytest.raises(PeerError, match="alice"):
        lead("alice", "bob", rounds=1, retries=0, bring_back=pytest.fail)


@pytest.mark.parametrize("retries", [0, 2])
def test_a_guest_may_leave_which_ends_the_conversation(seat: Seat, lead: Lead, path: str, retries: int) -> None:
    def leave(work: Work) -> None:
        leave_amid(work, seated)

    seated = seat(ScriptedVoice(leave), "bob")
    seat(numbered("alice"), "alice")
    assert lead("alice", "bob", retries=retries, guests=("bob",), bring_back=pytest.fail) == "bob left"
    assert speakers_in(path) == ["hub", "alice"]
    assert why_in(path) == "bob left"


def test_whoever_is_waited_for_is_not_waited_for_beyond_the_deadline(room: Room, seat: Seat, lead: Lead) -> None:
    def wait(name: str, why: PeerError, limit: Deadline) -> None:
        room.wait_for([name], limit, grace_s=LIMIT_S)

    def leave(work: Work) -> None:
        leave_amid(work, seated)

    seated = seat(ScriptedVoice(leave), "alice")
    assert lead("alice", "bob", rounds=1, max_s=ONE_TURN_S, bring_back=wait) == "max-seconds"


def test_a_member_that_is_silent_ends_it_with_its_name(room: Room, seat: Seat, lead: Lead) -> None:
    began_s = time.monotonic()
    with pytest.raises(DeadlineError, match="alice: nobody took the seat"):
        lead("alice", "bob", rounds=1, silence_s=0.4)
    assert time.monotonic() - began_s >= 0.4


# -- the moderator


def moderated(answer: Callable[[Work], Finish | None]) -> tuple[ScriptedVoice, list[str]]:
    """A moderator that answers so, and what it was asked."""
    asked: list[str] = []

    def script(work: Work) -> Finish | None:
        if work.say.conversation:
            work.emit("as a member")
            return None
        asked.append(work.turns[-1].content)
        return answer(work)

    return ScriptedVoice(script), asked


def lines_in(path: str, kind: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
    return [line for line in lines if line.get("type") == kind]


@pytest.fixture
def moderate(room: Room, seat: Seat, lead: Lead) -> Callable[..., str]:
    """Let a moderator `mod` lead alice and bob."""
    room.make_pipes(star("hub", ["mod"]))

    def start(moderator: ScriptedVoice, **how: object) -> str:
        seat(moderator, "mod")
        seat(numbered("alice"), "alice")
        seat(numbered("bob"), "bob")
        return lead("alice", "bob", "mod", moderator="mod", **how)

    return start


def test_the_moderator_says_who_speaks_next_and_does_not_speak(moderate: Callable[..., str], path: str) -> None:
    named = iter(["Bob, please", "**alice**", "I would like to hear bob.", "alice"])
    moderator, asked = moderated(lambda work: work.emit(next(named)))
    assert moderate(moderator, rounds=2) == "rounds"
    assert speakers_in(path) == ["hub", "bob", "alice", "bob", "alice"]
    assert asked[0].startswith(
        "You moderate a conversation of alice and bob.\nHow often each has spoken: alice 0, bob 0"
    )
    assert "hub: Hello.\n\nWho should speak next: alice or bob?" in asked[0]
    assert "alice 0, bob 1" in asked[1]
    assert "Who should speak next: alice? " in asked[1]  # bob has just spoken
    assert lines_in(path, "choice")[0] == {"type": "choice", "turn": 1, "by": "mod", "chose": "bob", "tries": 1}


def test_a_moderator_that_speaks_as_well_is_one_of_those_to_choose(
    room: Room, seat: Seat, lead: Lead, path: str
) -> None:
    named = iter(["alice", "bob", "alice", "bob"])
    moderator, asked = moderated(lambda work: work.emit(next(named)))
    seat(moderator, "alice")
    seat(numbered("bob"), "bob")
    lead("alice", "bob", rounds=2, moderator="alice", moderator_speaks=True)
    assert speakers_in(path)[1:] == ["alice", "bob", "alice", "bob"]
    assert "alice or bob" in asked[0]


@pytest.mark.parametrize("rubbish", ["", "nobody at all", "alicebob", "alice-2", "🙂", "mod", "<think>bob</think>"])
def test_where_a_moderator_names_nobody_the_round_goes_on_and_it_is_told(
    moderate: Callable[..., str], path: str, rubbish: str
) -> None:
    moderator, asked = moderated(lambda work: work.emit(rubbish))
    heard = Recorder()
    assert moderate(moderator, rounds=2, listener=heard) == "rounds"
    assert speakers_in(path)[1:] == ["alice", "bob", "alice", "bob"]
    assert len(asked) == 4 * MODERATOR_TRIES
    why = "mod named nobody of them"
    assert [(choice.by, choice.why) for choice in heard.choices] == [("hub", why)] * 4
    assert lines_in(path, "choice")[0] == {
        "type": "choice", "turn": 1, "by": "hub", "chose": "alice", "tries": MODERATOR_TRIES, "why": why,
    }  # fmt: skip


def test_a_moderator_that_names_one_and_the_same_starves_nobody(room: Room, seat: Seat, lead: Lead, path: str) -> None:
    room.make_pipes(star("hub", ["carol", "mod"]))
    turn = itertools.count()
    moderator, _ = moderated(lambda work: work.emit(("alice", "bob")[next(turn) % 2]))
    for name in ("alice", "bob", "carol"):
        seat(numbered(name), name)
    seat(moderator, "mod")
    lead("alice", "bob", "carol", "mod", rounds=5, moderator="mod")
    spoke = speakers_in(path)[1:]
    assert spoke.index("carol") == 6
    assert [line["why"] for line in lines_in(path, "choice") if "why" in line] == ["it was passed over too often"] * 2


def test_a_moderator_may_end_the_conversation(moderate: Callable[..., str], path: str) -> None:
    named = iter(["alice", "<think>They agree.</think>END."])
    moderator, _ = moderated(lambda work: work.emit(next(named)))
    assert moderate(moderator, rounds=9) == "moderator"
    assert speakers_in(path) == ["hub", "alice"]
    assert lines_in(path, "choice")[-1]["chose"] == "END"
    assert lines_in(path, "end") == [{"type": "end", "why": "moderator"}]


def test_a_conversation_that_a_moderator_ended_can_be_resumed(
    moderate: Callable[..., str], lead: Lead, path: str
) -> None:
    named = iter(["END", "bob", "alice"])
    moderator, _ = moderated(lambda work: work.emit(next(named)))
    assert moderate(moderator, rounds=1) == "moderator"
    assert lead("alice", "bob", "mod", moderator="mod", rounds=1) == "rounds"
    assert speakers_in(path) == ["hub", "bob", "alice"]


def test_who_was_chosen_before_the_leader_died_speaks_next_and_is_not_chosen_again(
    moderate: Callable[..., str], path: str
) -> None:
    header = Header(VERSION, new_id(), ("alice", "bob", "mod"), moderator="mod", debates=False)
    with Transcript.create(path, header) as transcript:
        transcript.append(Turn(0, "hub", "Hello."))
        transcript.choose(Choice(1, "mod", "bob", 1))
    moderator, asked = moderated(lambda work: work.emit("alice"))
    moderate(moderator, rounds=1)
    assert speakers_in(path) == ["hub", "bob", "alice"]
    assert len(asked) == 1


def test_a_moderator_that_fails_stops_nothing(moderate: Callable[..., str], path: str) -> None:
    def fail(work: Work) -> None:
        raise ProgramError("broken")

    moderator, asked = moderated(fail)
    moderate(moderator, rounds=2)
    assert speakers_in(path)[1:] == ["alice", "bob", "alice", "bob"]
    assert len(asked) == 4
    assert lines_in(path, "choice")[0]["why"] == "mod: broken"


def test_a_moderator_whose_seat_nobody_takes_stops_nothing(room: Room, seat: Seat, lead: Lead, path: str) -> None:
    room.make_pipes(star("hub", ["mod"]))
    seat(numbered("alice"), "alice")
    seat(numbered("bob"), "bob")
    lead("alice", "bob", "mod", rounds=1, moderator="mod", silence_s=SILENCE_S)
    assert speakers_in(path) == ["hub", "alice", "bob"]
    assert "mod: nobody took the seat" in str(lines_in(path, "choice")[0]["why"])


def test_a_moderator_that_never_stops_talking_is_broken_off(moderate: Callable[..., str], path: str) -> None:
    def endless(work: Work) -> None:
        for _ in range(100_000):
            if work.is_cancelled:
                return
            work.emit("hm " * 50)
            time.sleep(0.001)

    moderator, asked = moderated(endless)
    moderate(moderator, rounds=1)
    assert speakers_in(path)[1:] == ["alice", "bob"]
    assert len(asked) == 2 * MODERATOR_TRIES


def test_a_dead_moderator_is_brought_back_for_the_next_choice(room: Room, seat: Seat, lead: Lead, path: str) -> None:
    room.make_pipes(star("hub", ["mod"]))

    def leave(work: Work) -> None:
        leave_amid(work, seated)

    moderator, asked = moderated(leave)
    seated = seat(moderator, "mod")
    seat(numbered("alice"), "alice")
    seat(numbered("bob"), "bob")
    again, asked_again = moderated(lambda work: work.emit("bob"))

    def bring_back(name: str, why: PeerError, limit: Deadline) -> None:
        seated.join()
        seat(again, name)

    lead("alice", "bob", "mod", rounds=2, moderator="mod", bring_back=bring_back)
    assert len(speakers_in(path)) == 5
    assert len(asked) == 1
    assert asked_again


def test_a_moderator_that_is_lost_for_good_stops_nothing(room: Room, seat: Seat, lead: Lead, path: str) -> None:
    room.make_pipes(star("hub", ["mod"]))
    moderator, asked = moderated(lambda work: leave_amid(work, seated))
    seated = seat(moderator, "mod")
    seat(numbered("alice"), "alice")
    seat(numbered("bob"), "bob")
    lead("alice", "bob", "mod", rounds=2, moderator="mod")
    assert speakers_in(path)[1:] == ["alice", "bob", "alice", "bob"]
    assert len(asked) == 1


# -- what members are told


def told_in(room: Room, seat: Seat, lead: Lead, *names: str, **how: object) -> dict[str, Cast | None]:
    casts: dict[str, Cast | None] = {}

    def listening(name: str) -> ScriptedVoice:
        def script(work: Work) -> None:
            assert casts.setdefault(name, work.say.cast) == work.say.cast  # the same for the whole conversation
            work.emit("I see.")

        return ScriptedVoice(script)

    room.make_pipes([pair for pair in star("hub", names) if pair not in room.pipes()])
    for name in names:
        seat(listening(name), name)
    lead(*names, rounds=2, **how)
    return casts


def test_two_who_heard_an_opening_are_told_names(room: Room, seat: Seat, lead: Lead) -> None:
    assert told_in(room, seat, lead, "alice", "bob") == {
        "alice": Cast(("bob",), labels=True),
        "bob": Cast(("alice",), labels=True),
    }


def test_two_of_whom_one_opens_are_told_no_names(room: Room, seat: Seat, lead: Lead, path: str) -> None:
    assert told_in(room, seat, lead, "alice", "bob", opening=None) == {"alice": Cast(("bob",)), "bob": Cast(("alice",))}
    assert speakers_in(path) == ["alice", "bob", "alice", "bob"]


def test_three_are_told_names_whoever_opens(room: Room, seat: Seat, lead: Lead) -> None:
    casts = told_in(room, seat, lead, "alice", "bob", "carol", opening=None)
    assert casts["carol"] == Cast(("alice", "bob"), labels=True)


def test_a_moderator_that_only_chooses_is_no_voice_that_is_heard(
    moderate: Callable[..., str], room: Room, path: str
) -> None:
    header = Header(VERSION, new_id(), ("alice", "bob", "mod"), moderator="mod", debates=False)
    assert cast_of("alice", header, "") == Cast(("bob",))
    assert cast_of("alice", header, "hub") == Cast(("bob",), labels=True)
    assert cast_of("mod", header, "hub").others == ("alice", "bob")


def test_the_room_is_free_for_others_between_two_turns(room: Room, seat: Seat, lead: Lead) -> None:
    seat(ScriptedVoice(), "alice")
    seat(ScriptedVoice(), "bob")
    lead("alice", "bob", rounds=1)
    eventually(lambda: not room.is_asked("hub", "alice") and not room.is_asked("hub", "bob"), "the locks are free")
