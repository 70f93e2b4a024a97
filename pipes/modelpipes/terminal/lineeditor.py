"""The line at the foot of a terminal where a person types, kept below all that is written there meanwhile.

A thread of its own runs prompt_toolkit. Whatever is written to the terminal goes through `terminal.output`, which hands
it over: whole lines go above, the line that is being said stands there as a part of what is drawn.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from modelpipes.errors import ProgramError
from modelpipes.terminal import output
from modelpipes.terminal.colours import has_colours
from modelpipes.terminal.safetext import make_line
from modelpipes.terminal.typed import Typed, typed_file
from modelpipes.terminal.width import clip

if TYPE_CHECKING:
    from prompt_toolkit.application import Application
    from prompt_toolkit.buffer import Buffer
    from prompt_toolkit.formatted_text import AnyFormattedText
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.layout import HSplit
    from prompt_toolkit.layout.dimension import Dimension

STDIN = 0
BEGIN_S = 20.0  # for the line to be there; importing takes 0.2 s, on a busy machine more
END_S = 2.0  # for the terminal to be as it was; it stands in the way of nothing
RESIZE_S = 0.1  # between two looks at the terminal's size: its signal belongs to the main thread
SUSPEND_S = 0.5  # for a stop to take effect; where there is no job control it never does
BLOCK = '"""'  # begins and ends a message of several lines
WAITING_SHOWN = 3  # of the messages that wait for their turn
SHARE = 2  # what is typed has half of the terminal's height at most


class Typist(Protocol):
    """Whom the editor tells what the person does; called in the editor's thread, and must not wait."""

    def typed(self, text: str) -> None:
        """A message, or a command, is whole."""

    def interrupted(self, has_text: bool) -> bool:
        """Ctrl-C was pressed, with text in the line or none; whether that text is to be dropped."""

    def left(self) -> None:
        """The input has ended: Ctrl-D in an empty line, or the terminal has gone."""


def is_possible() -> bool:
    """Does a person sit at stdin and stderr, on a terminal whose cursor can be moved, and that nobody else writes to?

    What reads our stdout (`| tee talk.log`) would write where the line stands.
    """
    can_move = os.environ.get("TERM", "dumb") != "dumb"
    return can_move and os.isatty(STDIN) and os.isatty(output.STDERR) and not _is_read(output.STDOUT)


def _is_read(descriptor: int) -> bool:
    """Does another program read what is written there?"""
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


class LineEditor:
    """Within `with` the line is there, and everything that is written to its terminal goes above it."""

    def __init__(self, name: str, typist: Typist) -> None:
        self._name = name
        self._typist = typist
        self._lock = threading.Lock()
        self._unshown: list[tuple[int, str]] = []
        self._is_showing = False  # a look at `_unshown` is due
        self._partial: dict[int, str] = {}  # of each descriptor the line that has no end yet
        self._sign = ""
        self._waiting: Sequence[str] = ()
        self._is_over = False
        self._began = threading.Event()
        self._continued = threading.Event()
        self._failure: BaseException | None = None
        self._app: Application[None] | None = None
        self._loop: Any = None
        device = os.fstat(STDIN).st_rdev
        self._ours = [fd for fd in (output.STDOUT, output.STDERR) if os.isatty(fd) and os.fstat(fd).st_rdev == device]

    # -- for other threads

    def __enter__(self) -> LineEditor:
        self._thread = threading.Thread(target=self._run, daemon=True)
        output.set_foot(self)  # before the line is drawn: what is written then must not go where it stands
        self._thread.start()
        try:
            self._began.wait(BEGIN_S)
            if self._failure or not self._began.is_set():
                raise ProgramError(f"the terminal cannot be used: {self._failure or 'it does not answer'}")
        except BaseException:  # a signal may end us while the terminal is no longer as we found it
            self.__exit__()
            raise
        with contextlib.suppress(ValueError):  # not in the main thread: then a stop is waited for a moment longer
            self._before = signal.signal(signal.SIGCONT, self._note_continued)
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # it has ended just now
                self._loop.call_soon_threadsafe(self._end)
        self._thread.join(END_S)
        output.set_foot(None)
        with contextlib.suppress(ValueError, AttributeError):
            signal.signal(signal.SIGCONT, self._before)
        self._is_over = True
        self._write_rest()

    def takes(self, descriptor: int) -> bool:
        return descriptor in self._ours

    def write(self, descriptor: int, text: str) -> None:
        with self._lock:
            if self._is_over:
                output.write_through(descriptor, text.encode("utf-8", "replace"))
                return
            self._unshown.append((descriptor, text))
            if self._is_showing or not self._began.is_set():
                return
            self._is_showing = True
        with contextlib.suppress(RuntimeError):  # the editor has ended; what is unshown is written at our end
            self._loop.call_soon_threadsafe(self._show)

    def show_sign(self, line: str) -> None:
        self._sign = line
        if self._app:
            self._app.invalidate()

    def show_waiting(self, messages: Sequence[str]) -> None:
        """Show that these wait for their turn."""
        self._waiting = tuple(messages)
        if self._app:
            self._app.invalidate()

    # -- the editor's thread

    def _run(self) -> None:
        import asyncio

        try:
            asyncio.run(self._serve())
        except Exception as e:  # noqa: BLE001  # the edge of this thread: whatever it is, who waits is told
            self._fail(e)
        finally:
            self._began.set()

    def _fail(self, error: BaseException | None) -> None:
        """There is no line any more: the terminal has gone, or it is a fault that nobody foresaw."""
        if self._failure is None:
            self._failure = error or ProgramError("the editor failed")
            if not isinstance(self._failure, (EOFError, OSError)):
                output.say(f"the line editor has failed, please report it: {type(error).__name__}: {error}")
            self._typist.left()

    async def _serve(self) -> None:
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(lambda _, context: self._fail(context.get("exception")))
        self._app = self._make_app()
        await self._app.run_async(pre_run=self._begin, set_exception_handler=False, handle_sigint=False)

    def _begin(self) -> None:
        self._began.set()
        self._loop.call_soon(self._show)  # what was written meanwhile

    def _end(self) -> None:
        if self._app and self._app.is_running and not self._app.is_done:
            self._app.exit()

    def _make_app(self) -> Application[None]:
        from prompt_toolkit.application import Application
        from prompt_toolkit.data_structures import Size
        from prompt_toolkit.input.vt100 import Vt100Input
        from prompt_toolkit.layout import Layout
        from prompt_toolkit.output import ColorDepth
        from prompt_toolkit.output.vt100 import Vt100_Output

        def size() -> Size:
            columns, rows = 0, 0
            with contextlib.suppress(OSError):
                columns, rows = os.get_terminal_size(output.STDERR)
            return Size(rows=rows or 24, columns=columns or output.DEFAULT_COLUMNS)

        # Without asking the terminal where its cursor stands: nothing here needs it, and an answer that comes when we
        # have gone would be typed into the shell.
        screen: Any = _Screen()
        out = Vt100_Output(screen, size, term=os.environ.get("TERM"), enable_cpr=False)
        container, buffer = self._layout(out.get_size)
        return Application(
            layout=Layout(container, focused_element=buffer),
            key_bindings=self._keys(buffer),
            input=Vt100Input(open(STDIN, encoding="utf-8", errors="replace", closefd=False)),
            output=out,
            erase_when_done=True,
            color_depth=None if has_colours() else ColorDepth.DEPTH_1_BIT,
            terminal_size_polling_interval=RESIZE_S,
        )

    def _layout(self, size: Callable[[], Any]) -> tuple[HSplit, Buffer]:
        from prompt_toolkit.buffer import Buffer
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.layout import BufferControl, ConditionalContainer, FormattedTextControl, HSplit, Window
        from prompt_toolkit.layout.dimension import Dimension
        from prompt_toolkit.layout.processors import HighlightIncrementalSearchProcessor
        from prompt_toolkit.widgets import SearchToolbar

        buffer = Buffer(multiline=True, history=_history(Typed(typed_file(), output.say)), accept_handler=self._accept)
        search = SearchToolbar()
        control = BufferControl(
            buffer,
            search_buffer_control=search.control,
            input_processors=[HighlightIncrementalSearchProcessor()],
            preview_search=True,
        )

        def height() -> Dimension:
            return Dimension(min=1, max=max(1, size().rows // SHARE))

        def shown(text: Callable[[], AnyFormattedText]) -> ConditionalContainer:
            window = Window(FormattedTextControl(text), wrap_lines=True, dont_extend_height=True, height=height)
            return ConditionalContainer(window, Condition(lambda: bool(text())))

        typing = Window(control, wrap_lines=True, dont_extend_height=True, height=height, get_line_prefix=self._prefix)
        return HSplit([shown(self._saying), shown(self._notes), typing, search]), buffer

    def _prefix(self, line: int, wraps: int) -> AnyFormattedText:
        label = f"{self._name}> "
        return [("bold", label)] if line == 0 and wraps == 0 else " " * len(label)

    def _saying(self) -> AnyFormattedText:
        """The line that is being said."""
        from prompt_toolkit.formatted_text import ANSI

        text = "".join(self._partial.values())
        return ANSI(text) if text else ""

    def _notes(self) -> AnyFormattedText:
        """What is waited for, and what waits to be said."""
        lines = [self._sign] if self._sign else []
        lines += [f"{self._name}, next: {make_line(text)}" for text in self._waiting[:WAITING_SHOWN]]
        if len(self._waiting) > WAITING_SHOWN:
            lines.append(f"and {len(self._waiting) - WAITING_SHOWN} more")
        return [("fg:ansibrightblack", "\n".join(clip(line, output.columns() - 1) for line in lines))] if lines else ""

    def _keys(self, buffer: Buffer) -> KeyBindings:
        from prompt_toolkit.filters import Condition, has_focus
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()
        is_typing = has_focus(buffer)
        is_empty = Condition(lambda: not buffer.text)

        @keys.add("enter", filter=is_typing)
        def _(event: KeyPressEvent) -> None:
            if _is_open_block(buffer.text):
                buffer.newline(copy_margin=False)
            elif buffer.text.strip():  # a stray Enter is no message
                buffer.validate_and_handle()

        @keys.add("escape", "enter", filter=is_typing)
        def _(event: KeyPressEvent) -> None:
            buffer.newline(copy_margin=False)

        @keys.add("c-c", filter=is_typing)
        def _(event: KeyPressEvent) -> None:
            if self._typist.interrupted(bool(buffer.text)):
                buffer.reset()

        @keys.add("c-d", filter=is_typing & is_empty)
        def _(event: KeyPressEvent) -> None:
            self._typist.left()

        @keys.add("c-z")
        def _(event: KeyPressEvent) -> None:
            from prompt_toolkit.application import run_in_terminal

            run_in_terminal(self._suspend)

        return keys

    def _accept(self, buffer: Buffer) -> bool:
        text = buffer.text
        words = text.strip()
        if words.startswith(BLOCK) and len(words) >= 2 * len(BLOCK):
            text = words.removeprefix(BLOCK).removesuffix(BLOCK).removeprefix("\n").removesuffix("\n")
        if text.strip():
            self._typist.typed(text)
        return False  # the line is empty again

    def _suspend(self) -> None:
        """Stop with the whole job, as the terminal would have it; return when we go on."""
        self._continued.clear()
        os.kill(0, signal.SIGTSTP)
        # The signal may be another thread's to take: until it is, this one would draw on the shell's screen.
        self._continued.wait(SUSPEND_S)

    def _note_continued(self, signum: int, frame: FrameType | None) -> None:
        self._continued.set()

    def _show(self) -> None:
        """Write above the line what has come, as far as its lines are whole."""
        whole = self._take_lines()
        if whole and self._app:
            self._app.renderer.erase(leave_alternate_screen=False)
            self._app.output.write_raw(whole)
            self._app.output.flush()
        if self._app:
            self._app.invalidate()

    def _take_lines(self) -> str:
        """The whole lines of what is unshown; the rest of each descriptor stays."""
        with self._lock:
            pieces, self._unshown, self._is_showing = self._unshown, [], False
        whole = ""
        for descriptor, text in pieces:
            head, newline, tail = (self._partial.pop(descriptor, "") + text).rpartition("\n")
            whole += head + newline
            if tail:
                self._partial[descriptor] = tail
        return whole

    def _write_rest(self) -> None:
        """What was not shown when the editor ended."""
        rest = self._take_lines() + "".join(self._partial.values())
        with contextlib.suppress(OSError):
            output.write_through(self._ours[0] if self._ours else output.STDERR, rest.encode("utf-8", "replace"))


class _Screen:
    """The terminal as prompt_toolkit writes to it: it has no number, so that its blocking mode stays as it is."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.buffer = self

    def write(self, data: bytes) -> int:
        output.write_through(output.STDERR, data)
        return len(data)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        import io

        raise io.UnsupportedOperation("fileno")


def _is_open_block(text: str) -> bool:
    words = text.strip()
    return words.startswith(BLOCK) and (len(words) < 2 * len(BLOCK) or not words.endswith(BLOCK))


def _history(typed: Typed) -> History:
    from prompt_toolkit.history import InMemoryHistory

    class Kept(InMemoryHistory):
        def store_string(self, string: str) -> None:
            typed.add(string)

    return Kept(typed.load())
