"""The members of a conversation, as the options of chat-models name them: who, in which order, seated how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from msgspec import Struct
from msgspec.structs import replace

from modelpipes.commands import load
from modelpipes.commands.cli import voices
from modelpipes.errors import FileError, UsageError
from modelpipes.pipe.room import HUB, About, check_seat, is_seat
from modelpipes.terminal import output
from modelpipes.values.deadline import Deadline

if TYPE_CHECKING:
    from modelpipes.chat.transcript import Header
    from modelpipes.gateway.private import PrivateDaemon

ME = "me"  # the member who is the person at the terminal
VOICES = ("model", "server", "exec", "filter", "filter-json")
ASK_SERVER_S = 30.0  # what it is and can, where nothing is to be started


class Members(Struct, frozen=True):
    """Who takes part, in the order of the command line."""

    names: tuple[str, ...]
    commands: dict[str, list[str]]  # of those seated here: what attach-model is given
    voices: dict[str, str]  # of those seated here, and of the person: as the transcript has it
    served: tuple[str, ...] = ()  # by a gateway of ours, which ends with us

    def overrides(self, header: Header) -> Iterator[str]:
        """What is not as the conversation that is continued has it, a line each."""
        for name, arguments in self.commands.items() if header.commands else ():
            if name not in header.commands:
                yield f"{name} is seated here now; the transcript has {header.voices.get(name) or 'no voice'}"
                continue
            if (voice := self.voices[name]) != (was := header.voices.get(name)):
                yield f"{name}: {voice} in place of {was}"
            before, now = (_parse(name, list(options)) for options in (header.commands[name], arguments))
            for option, value in now.items():
                was = before.get(option)
                if value != was and option not in ("no_fit_check", "in_json", *voices.KINDS):
                    yield f"{name}: --{option.strip('_').replace('_', '-')} {_shown(value)} in place of {_shown(was)}"

    def abouts(self) -> dict[str, About]:
        """The models among them, as far as is known before an engine runs; a server is asked."""
        return {name: about for name, options in self.commands.items() if (about := _about(_parse(name, options)))}

    def check_fit(self) -> None:
        """Raise FileError where the engines that are to be started have no room side by side."""
        options_of = [_parse(name, arguments) for name, arguments in self.commands.items()]
        for engine in {given["engine"] for given in options_of if given["model"]}:
            from modelpipes.engine.admission import Candidate, admit

            together = [given for given in options_of if given["model"] and given["engine"] == engine]
            candidates = [Candidate(given["seat"], voices.spec_of_options(given)) for given in together]
            for line in admit(candidates, engine or "auto"):
                output.say(line)


class InOrder(click.Command):
    """Keeps the names of members in the order typed: click gives arguments and options apart."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["names"] = list(self._names(iter(args)))
        return super().parse_args(ctx, args)

    def _names(self, words: Iterator[str]) -> Iterator[str]:
        flags = {name for option in self.params if getattr(option, "is_flag", False) for name in option.opts}
        for word in words:
            if word == "--":
                yield from words
            elif not word.startswith("-") or word == "-":
                yield word
            else:
                # --option=VALUE, --option VALUE, -oVALUE or -o VALUE
                option, has_value, value = word.partition("=") if word[1] == "-" else (word[:2], word[2:], word[2:])
                if not has_value and option not in flags:
                    value = next(words, "")
                if option[2:] in VOICES:
                    yield value.partition("=")[0]


def read_members(
    given: Mapping[str, Any], names: Sequence[str], gateway: PrivateDaemon | None = None, header: Header | None = None
) -> Members:
    """The members that the options ask for; UsageError, or FileError for a model file, before anything is started.

    With a `gateway` names may be NAME=MODEL: a model that it serves. A `header` is that of the conversation to be
    continued: who is not named takes part as it says, and all in its order.
    """
    served = [word.partition("=")[::2] for word in names if "=" in word]
    if served:
        if gateway is None:
            word = next(word for word in names if "=" in word)
            raise UsageError(f"{word}: a seat that is taken has a NAME; to seat a model give --model {word}")
        there = gateway.models()
        for name, model in served:
            if model not in there:
                raise UsageError(f"{name}={model}: no such model is served; there are {', '.join(there)}")
        names = [word.partition("=")[0] for word in names]
        given = {
            **given,
            "server_": [*given["server_"], *(f"{name}={gateway.url}" for name, _ in served)],
            "api_key_file": [
                *given["api_key_file"],
                *(f"{name}={gateway.key_file}" for name, _ in served if gateway.key_file),
            ],
            "model_name": [*given["model_name"], *(f"{name}={model}" for name, model in served)],
        }
    seated = {name: (kind, value) for kind in VOICES for name, value in _pairs(kind, _given(kind, given))}
    kept: dict[str, list[str]] = {}  # options of those who are seated as before, who are not named now
    if header:
        again = [name for name in header.members if name not in names]
        for name in again:
            if name in header.commands:
                seated[name], kept[name] = _as_before(name, header)
        if set(header.members) <= {*names, *again}:
            names = [*header.members, *(name for name in names if name not in header.members)]
    for name in names:
        if name == HUB:
            raise UsageError(f"'{HUB}' is who leads the conversation; give the member another name")
        if names.count(check_seat(name)) > 1:
            raise UsageError(f"{name} is named twice; a member has one voice and one seat")
    if len(names) < 2:
        raise UsageError("a conversation needs two members: chat-models --model alice=a.gguf --model bob=b.gguf")
    kinds = {name: seated[name][0] for name in names if name in seated}
    commands = _commands(kinds, given)
    for name, arguments in commands.items():
        kind, value = seated[name]
        # Models are checked here, all of them at once.
        arguments[:0] = [*_seating(kind, value), *kept.get(name, [])]
        _check(name, kind, arguments)
    said = {name: header.voices[name] if header and name in kept else " ".join(seated[name]) for name in commands}
    voices_of_all = said | ({ME: "the terminal"} if ME in names else {})
    return Members(tuple(names), commands, voices_of_all, tuple(name for name, _ in served))


def _given(kind: str, given: Mapping[str, Any]) -> Sequence[str]:
    values: Sequence[str] = given[f"{kind}_".replace("-", "_")]
    return values


def _seating(kind: str, value: str) -> list[str]:
    """How attach-model is told what makes the answers."""
    if kind == "filter-json":
        return [f"--filter={value}", "--json"]
    return [f"--{kind}={value}", *(["--no-fit-check"] if kind == "model" else [])]


def _as_before(name: str, header: Header) -> tuple[tuple[str, str], list[str]]:
    """How a member was seated, and its options; a model by the path that its file has now, wherever we stand."""
    first, *rest = header.commands[name]
    kind, _, value = first.removeprefix("--").partition("=")
    if kind not in VOICES:
        raise FileError(f"the transcript does not say how {name} was seated; name it: --model {name}=FILE")
    about = header.abouts.get(name)
    return (kind, about.file if kind == "model" and about and about.file else value), [
        option for option in rest if option != "--no-fit-check"
    ]


def _pairs(kind: str, values: Sequence[str]) -> Iterator[tuple[str, str]]:
    for value in values:
        name, _, rest = value.partition("=")
        if not rest:
            raise UsageError(f"--{kind} {value}: give it as NAME={'VALUE' if name != value else value or 'VALUE'}")
        if name == ME:
            raise UsageError(f"'{ME}' is you at the terminal; give the member another name")
        yield name, rest


def _commands(kinds: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, list[str]]:
    """Each member's options as attach-model takes them: NAME=VALUE is its own, VALUE for all that can use it."""
    silence_s = given["voice_timeout"]
    everyone = [f"--timeout={'none' if silence_s == float('inf') else silence_s}"] if silence_s else []
    commands = {name: list(everyone) for name in kinds}
    for option in voices.VOICE:
        common, own = _shared_and_own(option, given[option.replace("-", "_")], list(kinds))
        users = [name for name, kind in kinds.items() if voices.can_use(kind, option)]
        if common and not users and not (option == "seed" and given["taking"] == "random"):
            raise UsageError(f"--{option} {common[-1]}: no member that is seated here can use it")
        for name, command in commands.items():
            values = [*(common if name in users else []), *own[name]]
            command += [f"--{option}={value}" for value in (values if option in voices.REPEATABLE else values[-1:])]
    return commands


def _shared_and_own(option: str, values: Sequence[str], names: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    common: list[str] = []
    own: dict[str, list[str]] = {name: [] for name in names}
    for value in values:
        name, is_pair, rest = value.partition("=")
        if not is_pair or not is_seat(name):
            common.append(value)
        elif name in own:
            own[name].append(rest)
        else:
            there = f"those are {', '.join(names)}" if names else "nobody is"
            raise UsageError(f"--{option} {name}=…: no member '{name}' is seated here; {there}")
    return common, own


def _parse(name: str, arguments: list[str]) -> dict[str, Any]:
    """The options of attach-model that these arguments give."""
    return voices.read_options(load("attach").make_context("attach-model", [name, *arguments]))


def _shown(value: object) -> str:
    return "none" if value is None or value == () else str(value)


def _about(given: dict[str, Any]) -> About | None:
    voice = voices.make_voice(given["seat"], given)
    if given["server"]:
        voice.prepare(Deadline.after(ASK_SERVER_S))
    about = voice.about()
    if not about or not given["model"]:
        return about
    from modelpipes.chat.voices.engine import manner_of
    from modelpipes.engine.locate import found
    from modelpipes.gguf.template import refuses_system

    file = found(voices.spec_of_options(given)).model
    return replace(about, file=file, manner=manner_of(file), folds_system=refuses_system(file))


def _check(name: str, kind: str, arguments: list[str]) -> None:
    """Raise what attach-model would, while nothing is started yet."""
    try:
        given = _parse(name, arguments)
        voices.make_voice(name, given)
        if kind == "model":
            from modelpipes.engine.locate import found

            found(voices.spec_of_options(given))
    except click.UsageError as e:
        raise UsageError(f"{name}: {e.format_message()}") from None
    except (UsageError, FileError) as e:
        raise type(e)(f"{name}: {e}") from None
