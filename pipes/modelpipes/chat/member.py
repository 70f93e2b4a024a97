"""A process in a seat: reads every pipe that leads to it, lets its voice answer, writes the answers back.

One thread owns the pipes; each message in work has a thread for its voice. They meet in a queue and a
wake-up pipe, so that one poll waits for everything. Whatever a thread dies of ends the member.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import threading
import time
from collections.abc import Callable

import msgspec

from modelpipes.chat.histories import Histories, OutOfStep
from modelpipes.chat.outbox import DELTA_S, UNSENT_LIMIT_BYTES, Outbox
from modelpipes.chat.pending import Pending, PendingQueue
from modelpipes.chat.plain import PlainAnswers
from modelpipes.chat.voices import LOAD_S, Finish, Voice, Work
from modelpipes.chat.voices.loading import Arriving, Show, show_nothing, watched
from modelpipes.errors import DeadlineError, EngineError, MessageError, PeerError, PipesError, Reason, RoomError
from modelpipes.pipe.endpoint import Arrival, Endpoint, Lost, Readable, Unended
from modelpipes.pipe.framing import encode
from modelpipes.pipe.log import NO_LOG, Log
from modelpipes.pipe.message import (
    Bye,
    Cancel,
    Delta,
    Malformed,
    Message,
    Plain,
    Reply,
    Say,
    Stop,
    Timing,
    new_id,
)
from modelpipes.pipe.room import Loading, Room, Sitting, State
from modelpipes.terminal import output
from modelpipes.values.deadline import Deadline

QUEUE_LIMIT = 64  # messages that wait; more are refused as busy, so that an asker learns of it
TICK_S = 0.5  # progress, lost pipes and dead guards are looked after twice a second, noticed within one
PLAIN_RETRY_S = 0.005  # the kernel has no event for a reader that comes, nor, as we hold one, for the last writer
SHOWN_CHARS = 40  # of a line that lacks its end
SETTLED_NS = 2_000_000_000  # far more than a tick of the file system's clock
DYING_S = 0.2  # between the end of an engine's connections and its own, on a busy machine


class Member:
    """A seat taken by a voice. `run` answers until `stop`, until the seat is gone, or the voice dies."""

    def __init__(
        self,
        room: Room,
        seat: str,
        voice: Voice,
        *,
        command: str = "",
        once: bool = False,
        load_s: float = LOAD_S,
        report: Callable[[str], None] = output.say,
        show: Show = show_nothing,
        log: Log = NO_LOG,
    ) -> None:
        """`show` is told twice a second, in a thread of its own, how far a voice is that loads; None once it has.

        `log` has what is heard and answered.
        """
        self.room = room
        self.seat = seat
        self.voice = voice
        self._command = command
        self._once = once
        self._load_s = load_s
        self._report = report
        self._pending = PendingQueue(voice.parallel, QUEUE_LIMIT)
        self._memory = Histories(voice.history_bytes)
        self._started: queue.SimpleQueue[Pending | None] = queue.SimpleQueue()  # for the voice's threads; None ends one
        self._news: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # what other threads hand over
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wake_lock = threading.RLock()  # a signal handler may wake while its own thread does
        self._listened_ns = 0  # when the room had last changed as we looked which pipes lead here
        self._show = show
        self._log = log
        self._loading: Loading | None = None
        self._is_ready = False
        self._shown: Sitting | None = None
        self._answers = 0
        self._seated_s = time.monotonic()
        self._end: PipesError | int | None = None  # why the member leaves: an error, or an exit code
        self._tick = Deadline.after(TICK_S)

    def stop(self, exit_code: int) -> None:
        """Leave soon, `run` returning this exit code; from any thread, or a signal handler."""
        self._leave(exit_code)
        self._wake()

    def _leave(self, why: PipesError | int) -> None:
        """End `run` after this step; the first reason counts."""
        self._end = why if self._end is None else self._end

    def run(self) -> int:
        """Take the seat and answer; the exit code. Raises the PipesError that the voice died of, or the member."""
        try:
            return self._run()
        except Exception as e:  # noqa: BLE001  # the edge of the member: what is ours to tell is one line
            raise self._why(e) from e.__cause__

    def _run(self) -> int:
        try:
            with self.room.take_seat(self.seat) as self._lock, Endpoint(self.room, self.seat) as self._endpoint:
                self._out = Outbox(self._endpoint, self._log)
                self._plain = PlainAnswers(self._endpoint, self._report)
                self._show_state()
                self._log.note(self.seat, "seated", pid=os.getpid(), voice=self.voice.kind)
                self._endpoint.watch(self._wake_r)
                self._endpoint.watch_lines()
                self._listen()
                try:
                    self._work_until_the_end()
                    self._say_goodbye()
                finally:
                    self.voice.close()
                    why = str(self._end) if isinstance(self._end, PipesError) else None
                    self._log.note(self.seat, "left", answers=self._answers, why=why)
                if not isinstance(self._end, PipesError):
                    self._lock.clear()  # else the last state stays, so that who waits for the seat learns of its death
        finally:
            for _ in range(self._pending.parallel):
                self._started.put(None)
            with self._wake_lock:
                os.close(self._wake_r)
                os.close(self._wake_w)
                self._wake_r = self._wake_w = -1
        if isinstance(self._end, PipesError):
            raise self._end
        return self._end or 0

    def _work_until_the_end(self) -> None:
        try:
            for work in (self._load, *[self._answer_pending] * self._pending.parallel):
                threading.Thread(target=self._in_thread, args=(work,), daemon=True).start()
            while self._end is None:
                self._step()
        except Exception as e:  # noqa: BLE001  # the edge of this thread: whatever it is, who waits is told
            self._leave(self._why(e))

    def _step(self) -> None:
        plain = [pending for pending in (*self._pending.waiting, *self._pending.working) if pending.is_plain]
        is_idle = self._plain.is_idle(pending.asker for pending in plain)
        waits_for_lock = any(not pending.work for pending in plain)
        is_pressing = waits_for_lock or not is_idle or self._endpoint.has_unended
        until = Deadline.after(PLAIN_RETRY_S) if is_pressing else self._tick
        if not self._out.is_idle():
            until = until.earlier(Deadline.after(DELTA_S))
        event = self._endpoint.receive(until.earlier(self._tick))
        if isinstance(event, Arrival):
            self._hear(event.sender, event.item)
        elif isinstance(event, Lost):
            self._forget_asker(event.receiver, event.unsent_bytes)
        elif isinstance(event, Readable):
            self._wake_up(event.fd)
        if self._endpoint.has_unended:
            for unended in self._endpoint.look_at_unended():
                self._hear_unended(unended)
        self._out.post_lagging()
        if self._plain.deliver() and self._once:
            self._leave(0)
        while self._is_ready and (pending := self._pending.next_to_start(self._may_start)):
            self._start(pending)
        if self._tick.has_passed():
            self._tick = Deadline.after(TICK_S)
            self._look_after()
        self._show_state()

    # -- other threads

    def _wake(self) -> None:
        with self._wake_lock, contextlib.suppress(BlockingIOError):  # full: it wakes up anyway
            if self._wake_w >= 0:
                os.write(self._wake_w, b"\0")

    def _hand_over(self, news: Callable[[], None]) -> None:
        self._news.put(news)
        self._wake()

    def _wake_up(self, fd: int) -> None:
        if fd != self._wake_r:
            self._leave(self._death())
            return
        os.read(self._wake_r, 65536)
        while not self._news.empty():
            self._news.get_nowait()()

    def _in_thread(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as e:  # noqa: BLE001  # the edge of this thread: nobody waits for it in vain
            why = self._why(e)
            self._hand_over(lambda: self._leave(why))

    def _why(self, error: BaseException) -> PipesError:
        """The error to end with: for what nobody foresaw one that says, in a line, what it was and where."""
        if isinstance(error, PipesError):
            return error
        if isinstance(error, OSError):  # the machine's own limits: no descriptors left, a full disk
            return PeerError(f"{self.seat}: {error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return PeerError(f"{self.seat}: a fault of modelpipes, please report it: {what} ({_place(error)})")

    def _load(self) -> None:
        with watched(self.voice, self.seat, self._show_loading):
            self.voice.prepare(Deadline.after(self._load_s))
        self._hand_over(self._be_ready)

    def _show_loading(self, arriving: Arriving | None) -> None:
        """In a thread of its own: the seat's line tells it too."""
        if arriving:
            self._loading = arriving.loading
            self._hand_over(lambda: None)
        self._show(arriving)

    def _be_ready(self) -> None:
        self._is_ready = True
        self._log.note(self.seat, "ready", ms=(time.monotonic() - self._seated_s) * 1000)
        if (fd := self.voice.death_fd()) >= 0:
            self._endpoint.watch(fd)

    # -- what comes in

    def _listen(self) -> None:
        changed_ns = os.stat(self.room.path).st_mtime_ns
        is_old = time.time_ns() - changed_ns > SETTLED_NS  # what is made in the tick that we look leaves no trace
        if changed_ns == self._listened_ns and is_old:
            return
        self._listened_ns = changed_ns
        for sender in self.room.senders_to(self.seat):
            try:
                self._endpoint.listen(sender)
            except RoomError:
                if os.path.lexists(self.room.pipe(sender, self.seat)):
                    raise  # not clean-up amid our look: something else lies there

    def _hear(self, sender: str, item: Message | Plain | Malformed) -> None:
        if isinstance(item, Say):
            self._hear_say(sender, item)
        elif isinstance(item, Plain):
            self._hear_plain(sender, item)
        elif isinstance(item, Malformed):
            self._hear_malformed(sender, item)
        elif isinstance(item, Cancel):
            pending = self._pending.find(item.reply_to)
            if pending and pending.asker == sender:
                self._cancel(pending)
        elif isinstance(item, Bye):
            self._forget_asker(sender, 0)

    def _hear_say(self, sender: str, say: Say) -> None:
        if not self._out.connect(sender):
            return  # a typed asker opens its answer pipe before it speaks: this one has gone
        if reply := self._memory.reply_to(say.id):
            self._log.note(self.seat, "repeated", id=say.id, to=sender, content=reply.content)
            self._out.post(sender, reply, limit_bytes=UNSENT_LIMIT_BYTES)
        elif (pending := self._pending.find(say.id)) and not pending.is_abandoned:
            if pending.work and pending.work.content:  # joined: tell what was said so far
                delta = Delta(say.id, self.seat, sender, "".join(pending.work.content))
                self._out.post(sender, delta, limit_bytes=UNSENT_LIMIT_BYTES)
        elif self._pending.add(Pending(sender, say)):
            self._note_heard(say)
        else:
            self._out.fail(sender, say.id, "busy", f"{self.seat} has {QUEUE_LIMIT} messages waiting; ask again later")

    def _hear_malformed(self, sender: str, item: Malformed) -> None:
        """Whose line was none is told so: a typed asker by a failure, who writes plain lines by a plain one."""
        if self._plain.refuses(sender):
            return  # and is still to be told of an earlier one
        is_typed = self._endpoint.is_typed(sender) or item.reply_to or self.room.is_asked(sender, self.seat)
        if is_typed and self._out.connect(sender):
            self._out.fail(sender, item.reply_to, "malformed", item.detail)
        elif self._may_be_plain(sender):
            self._supersede(sender)
            self._plain.refuse(sender, item.detail)

    def _hear_unended(self, unended: Unended) -> None:
        sender, item = unended.sender, unended.item
        line = unended.line.decode("utf-8", "replace")
        line = line if len(line) <= SHOWN_CHARS else f"{line[: SHOWN_CHARS - 1]}…"
        if item is None:
            self._report(f"{self.seat}: {sender} does not end its line '{line}'; it is read when its newline comes")
        elif isinstance(item, Malformed):
            self._report(f"{self.seat}: half a message of {sender}, which went away, is dropped: '{line}'")
        else:
            if isinstance(item, Plain):
                self._report(f"{self.seat}: {sender}'s line '{line}' has no newline at its end; it is read as it is")
            self._hear(sender, item)

    def _may_be_plain(self, sender: str) -> bool:
        """May a seat be answered plainly? Not that of a member: the two would talk for ever."""
        if self.room.sitting(sender).state in ("free", "died"):
            return True
        self._report(f"{self.seat}: a plain line from {sender}, which is a member, is not answered")
        return False

    def _supersede(self, sender: str) -> None:
        """Nobody wants the answers to older plain lines of a seat any more."""
        self._plain.drop(sender)
        for older in self._pending.of(sender):
            if older.is_plain and not older.is_abandoned:
                self._report(f"{self.seat}: {sender} asked again before it had its answer, which is lost")
                older.is_abandoned = True  # its words are heard all the same: a program may count them

    def _hear_plain(self, sender: str, plain: Plain) -> None:
        if not self._may_be_plain(sender):
            return
        self._supersede(sender)
        pending = Pending(sender, Say(new_id(), sender, self.seat, plain.content), is_plain=True)
        if self._pending.add(pending):
            self._note_heard(pending.say)
        else:
            self._report(f"{self.seat}: too busy for a plain line from {sender}; it is lost")

    def _note_heard(self, say: Say) -> None:
        if self._log.is_on:
            self._log.note(self.seat, "heard", id=say.id, by=say.sender, turn=say.turn, content=say.words)

    def _note_end(self, pending: Pending, what: str, content: str | None = None, **facts: str | None) -> None:
        if not self._log.is_on:
            return
        ms = (time.monotonic() - pending.arrived_s) * 1000
        say = pending.say
        self._log.note(self.seat, what, id=say.id, to=say.sender, turn=say.turn, content=content, ms=ms, **facts)

    def _forget_asker(self, asker: str, unsent_bytes: int) -> None:
        """A typed asker that has gone wants no answer; a plain one that comes and goes loses what it did not read."""
        if unsent_bytes and not self._pending.of(asker):
            self._report(f"{self.seat}: {asker} went away before it read the whole answer")
        for pending in self._pending.of(asker):
            if not pending.is_plain:
                pending.is_abandoned = True
                self._cancel(pending)

    def _cancel(self, pending: Pending) -> None:
        if pending.work:
            pending.work.cancel()
            return
        self._pending.remove(pending)
        self._reply(pending, "cancelled", "")

    # -- work

    def _may_start(self, pending: Pending) -> bool:
        return not (pending.is_plain and self.room.is_asked(pending.asker, self.seat))

    def _start(self, pending: Pending) -> None:
        try:
            turns = self._memory.turns_for(pending.say)
        except MessageError as e:
            self._pending.remove(pending)
            self._out.fail(pending.asker, pending.say.id, "malformed", str(e))
            return
        if isinstance(turns, OutOfStep):
            self._pending.remove(pending)
            self._out.fail(
                pending.asker, pending.say.id, "out-of-step", f"{self.seat} knows turn {turns.have}", turns.have
            )
            return
        pending.work = Work(pending.say, turns, lambda _, *piece: self._pass_on(pending, *piece))
        self._started.put(pending)

    def _answer_pending(self) -> None:
        """A voice's thread, one of `parallel`: started beforehand, as that takes 0.1 ms of the first token's time."""
        while pending := self._started.get():
            if pending.work:
                self._answer(pending, pending.work)
            del pending  # or the message stays until the next one comes

    def _answer(self, pending: Pending, work: Work) -> None:
        try:
            finish = self.voice.answer(work)
        except PipesError as e:
            error = e
            if not work.is_cancelled and (death := self._why_voice_dies()):
                # The message learns of it as one that the leaving member owes.
                self._hand_over(lambda: self._leave(death))
            else:
                self._hand_over(lambda: self._give_up(pending, error))
        except Exception as e:  # noqa: BLE001  # the edge of one answer: it fails, and the seat answers the next one
            fault = self._why(e)
            self._report(str(fault))
            self._hand_over(lambda: self._give_up(pending, fault))
        else:
            self._hand_over(lambda: self._finish(pending, finish))

    def _why_voice_dies(self) -> PipesError | None:
        """Did an answer fail because what makes the answers dies? Its connections end before itself."""
        try:
            self.voice.tend()
        except PipesError as died:
            return PeerError(f"{self.seat}: {died}")
        fd = self.voice.death_fd()
        poll = select.poll()
        if fd >= 0:
            poll.register(fd, select.POLLIN)
        return self._death() if fd >= 0 and poll.poll(DYING_S * 1000) else None

    def _death(self) -> EngineError:
        return EngineError(f"{self.seat}: {self.voice.last_words()}")

    def _pass_on(self, pending: Pending, content: str, thinking: str, anew: bool) -> None:
        """In the voice's thread: pieces that come faster than they go travel together."""
        if pending.is_plain:
            return
        pending.pieces.append((content, thinking, anew))
        if not pending.is_posting:
            pending.is_posting = True
            self._hand_over(lambda: self._out.post_soon(pending))

    def _give_up(self, pending: Pending, error: PipesError) -> None:
        if pending.work and pending.work.is_cancelled:
            self._reply(pending, "cancelled", "".join(pending.work.content))
        elif isinstance(error, MessageError):
            self._fail_pending(pending, "too-large", str(error))
        else:
            self._fail_pending(pending, "silent" if isinstance(error, DeadlineError) else "voice", str(error))
        self._forget(pending)

    def _finish(self, pending: Pending, finish: Finish) -> None:
        assert pending.work, "what finishes has been in work"
        content = "".join(pending.work.content)
        if pending.work.is_cancelled:
            self._reply(pending, "cancelled", content, finish)
        else:
            self._memory.add_own(pending.say, self.seat, content)
            self._reply(pending, finish.stop, content, finish)
        self._forget(pending)

    def _forget(self, pending: Pending) -> None:
        self._pending.remove(pending)
        pending.work = (
            None  # each knows the other: without this both, and a message, stay until Python looks for cycles
        )

    def _reply(self, pending: Pending, stop: Stop, content: str, finish: Finish | None = None) -> None:
        finish = finish or Finish()
        self._answers += stop != "cancelled"
        self._note_end(pending, "answered", content, stop=stop)
        if pending.is_plain:
            if not pending.is_abandoned:
                self._plain.keep(pending.asker, content)
            return
        if self._once and stop != "cancelled":
            self._leave(0)
        self._out.post_pieces(pending)
        reply = Reply(
            id=new_id(),
            reply_to=pending.say.id,
            sender=self.seat,
            to=pending.asker,
            content=content,
            stop=stop,
            thinking="".join(pending.work.thinking) if pending.work else "",
            usage=finish.usage,
            timing=_timing(pending, finish),
            dropped=finish.dropped,
            is_cut=finish.is_cut,
        )
        try:
            size = len(encode(reply))
        except MessageError as e:
            self._out.fail(pending.asker, pending.say.id, "too-large", str(e))
            return
        if stop != "cancelled":
            self._memory.remember(reply, size)
        if not pending.is_abandoned:
            self._out.post(pending.asker, reply)

    def _fail_pending(self, pending: Pending, reason: Reason, detail: str) -> None:
        if self._once:
            self._leave(PeerError(f"{self.seat}: {detail}"))
        if pending.is_plain and not pending.is_abandoned:
            self._note_end(pending, "failed", reason=reason, why=detail)
            self._plain.keep(pending.asker, f"error: {detail}")
        elif not pending.is_abandoned:
            self._out.fail(pending.asker, pending.say.id, reason, detail)

    # -- twice a second

    def _look_after(self) -> None:
        if self._lock.is_lost() or not os.path.isdir(self.room.path):
            self._leave(0)
            return
        self._endpoint.refresh()
        try:
            self._listen()
        except (RoomError, FileNotFoundError):
            if os.path.isdir(self.room.path):
                raise
            self._leave(0)  # the room went amid our look
            return
        if not self._endpoint.listens_to():
            self._leave(0)  # the seat's pipes are gone
        try:
            self.voice.tend()
        except PipesError as died:
            self._leave(PeerError(f"{self.seat}: {died}"))
        alive_s = time.monotonic() - 2 * TICK_S
        for pending in self._pending.working:
            if pending.work and pending.work.life_s > alive_s:
                self._out.tell_progress(pending, pending.work.phase)
        for position, pending in enumerate(self._pending.waiting, 1):
            self._out.tell_progress(pending, "queued" if self._is_ready else "loading", position)

    def _show_state(self) -> None:
        state: State = "loading" if not self._is_ready else "busy" if self._pending.working else "ready"
        kind, command = (text.encode("utf-8", "replace").decode() for text in (self.voice.kind, self._command))
        about = self.voice.about() if self._is_ready else None
        loading = self._loading if state == "loading" else None
        queue = len(self._pending.waiting)
        who = Sitting(self.seat, state, os.getpid(), kind, queue, self._answers, command, about, loading)
        if who != self._shown:
            self._shown = who
            self._lock.write(msgspec.json.encode(who) + b"\n")

    def _say_goodbye(self) -> None:
        detail = str(self._end) if isinstance(self._end, PipesError) else f"{self.seat} is leaving"
        for pending in [*self._pending.working, *self._pending.waiting]:
            if pending.work:
                pending.work.cancel()
            if pending.is_plain and not pending.is_abandoned:
                self._note_end(pending, "failed", reason="leaving", why=detail)
                self._plain.keep(pending.asker, f"error: {detail}")
            elif not pending.is_abandoned:
                self._out.fail(pending.asker, pending.say.id, "leaving", detail)
        self._plain.deliver()
        self._out.say_goodbye()


def _place(error: BaseException) -> str:
    """Where it was raised: file and line."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace else "nowhere"


def _timing(pending: Pending, finish: Finish) -> Timing:
    now_s = time.monotonic()
    started_s = pending.started_s or now_s
    first_s = pending.work.first_word_s if pending.work else None
    return Timing(
        queued_ms=round((started_s - pending.arrived_s) * 1000, 3),
        first_token_ms=None if first_s is None else round((first_s - started_s) * 1000, 3),
        total_ms=round((now_s - pending.arrived_s) * 1000, 3),
        tokens_per_second=finish.tokens_per_second and round(finish.tokens_per_second, 1),
    )
