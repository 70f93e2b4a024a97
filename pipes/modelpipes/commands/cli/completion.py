"""A shell script that completes every command; and the answers that the script asks for.

The script calls the command itself, with VARIABLE set, as click does it. click says what may be meant; the scripts
are our own: click's know one command, take no NAME=VALUE, show files or names but not both.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal

import click
from click import shell_completion
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ShellComplete, ZshComplete

from modelpipes.commands import COMPLETION as VARIABLE
from modelpipes.commands import VERBS, load
from modelpipes.commands.cli import configured, options
from modelpipes.errors import PipesError

LIMIT_S = 3  # for a folder on a disk that does not answer; then there is nothing to offer
CURSOR = "\0"  # stands where the person is typing; no word of a command line has one
NAMES = " ".join(["modelpipes", *(command for command, _ in VERBS.values() if command)])

# Each script hands over the line up to the cursor. What comes back are lines of a kind (plain, dir or file), a value,
# and help. A path has before its value what else stands in the word, as in --model=alice=~/mod, and how it must end.

BASH = r"""
%(complete_func)s() {
    local - line=${COMP_LINE:0:COMP_POINT} kind ending kept before value is_file=
    local -a plain=()
    set -o noglob
    local IFS=$'\n'
    if [[ $3 == [\<\>]* ]]; then  # a redirection is no word of the command
        compopt -o default
        return
    fi
    while IFS=, read -r kind ending kept before value; do
        if [[ $kind == plain ]]; then
            plain+=("$value")
        elif [[ $kind == dir || $ending ]]; then
            is_file=yes
            COMPREPLY+=($(compgen -P "$before" -d -- "$value"))
            [[ $kind == dir ]] || COMPREPLY+=($(compgen -P "$before" -f -X "!*$ending" -- "$value"))
        elif [[ $kind == file ]]; then
            is_file=yes
            COMPREPLY+=($(compgen -P "$before" -f -- "$value"))
        fi
        ((kept == 0)) || COMPREPLY=("${COMPREPLY[@]#"${value:0:kept}"}")  # what bash takes for another word
    done <<<"$(COMP_WORDS=$line COMP_CWORD=$2 %(complete_var)s=bash_complete "${1/#\~/$HOME}" 2>/dev/null)"
    if [[ $is_file ]]; then  # bash quotes what it takes for names of files
        compopt -o filenames
    elif [[ ${line%%%%"$2"} != *[\"\'] ]]; then
        for value in "${!plain[@]}"; do
            printf -v "plain[$value]" %%q "${plain[$value]}"
        done
    fi
    COMPREPLY+=("${plain[@]}")
    [[ ${#COMPREPLY[@]} -ne 1 || ${COMPREPLY[0]} != *= ]] || compopt -o nospace
}

complete -o nosort -F %(complete_func)s NAMES
"""

ZSH = r"""
#compdef NAMES

%(complete_func)s() {
    local kind value help
    local -a answer described plain unfinished place
    answer=("${(@f)$(COMP_WORDS="${(j: :)words[1,CURRENT-1]} $QIPREFIX$PREFIX" \
        %(complete_var)s=zsh_complete ${words[1]/#\~/$HOME} 2>/dev/null)}")
    for kind value help in "${(@)answer}"; do
        if [[ $kind == (dir|file) ]]; then
            place=($kind "$value" $help)
        elif [[ $kind != plain ]]; then
            continue
        elif [[ $help != _ ]]; then
            described+=("$value:$help")
        elif [[ $value == *= ]]; then
            unfinished+=("$value")
        else
            plain+=("$value")
        fi
    done
    (( $#described )) && _describe -V unsorted described -U
    (( $#plain )) && compadd -U -V unsorted -a plain
    (( $#unfinished )) && compadd -U -S '' -V unsorted -a unfinished
    case $place[1] in  # last, for it moves where the word begins
    dir)
        compset -p $#place[2]
        _files -/
        ;;
    file)
        compset -p $#place[2]
        if [[ $place[3] == _ ]]; then _files; else _files -g "*$place[3](-.)"; fi
        ;;
    esac
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s NAMES
fi
"""

FISH = r"""
function %(complete_func)s
    set -l line (commandline -cp)
    for answer in (env COMP_WORDS="$line" %(complete_var)s=fish_complete $argv[1] 2>/dev/null)
        set -l item (string split \t -- $answer)
        set -l paths
        switch $item[1]
            case plain
                string join \t -- $item[2..-1]
            case dir
                set paths (__fish_complete_directories $item[4])
            case file
                set -l ending '(/|'(string escape --style=regex -- $item[3])')(\t|$)'
                set -l typed (string replace --all ' ' '\ ' -- $item[4])
                set paths (complete --do-complete "'' $typed" | string match -re $ending)
        end
        for path in $paths
            printf '%%s\n' $item[2]$path
        end
    end
end

for name in NAMES
    complete --erase --command $name
    complete --no-files --command $name --arguments "(%(complete_func)s $name)"
end
"""


class _Line(ShellComplete):
    """What the three have in common: the line up to the cursor, as it was typed."""

    _begun = ""  # of the word with the cursor, what stands before the part to complete: --model=

    def get_completion_args(self) -> tuple[list[str], str]:
        words = shell_completion.split_arg_string(os.environ["COMP_WORDS"] + CURSOR)
        # PIPE_DIR=room, sudo and the like may come before the command.
        start = next((i for i, word in enumerate(words) if os.path.basename(word) == self.prog_name), 0) + 1
        *args, word = [*words[start:]] or [CURSOR]
        for option, value in itertools.pairwise(args):
            if option == "--config":
                os.environ[configured.CONFIG] = value
        word = word.removesuffix(CURSOR)
        option, has_value, value = word.partition("=")
        if has_value and option.startswith("--") and "--" not in args:
            self._begun, word = f"{option}=", value
            args.append(option)
        self._incomplete = word
        return args, word

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        found: dict[str, CompletionItem[str]] = {}
        for item in super().get_completions(args, incomplete):
            if item.type != "plain" or item.value.startswith(incomplete):
                found.setdefault(f"{item.type} {item.value}", item)
        return list(found.values())

    def _before(self, item: CompletionItem[str]) -> str:
        """Of the word with the cursor, what stands before the item."""
        return self._begun + (self._incomplete.removesuffix(item.value) if item.type != "plain" else "")


class Bash(_Line, BashComplete):
    source_template = BASH.lstrip().replace("NAMES", NAMES)

    def source(self) -> str:
        return ShellComplete.source(self)  # BashComplete's asks the bash that is here for its version

    def format_completion(self, item: CompletionItem[str]) -> str:
        """The item without what bash keeps of the word: up to a character of $COMP_WORDBREAKS, such as "="."""
        word, replaced = self._begun + self._incomplete, os.environ["COMP_CWORD"]
        if not word.endswith(replaced):  # it has quotes or backslashes
            replaced = "".join(shell_completion.split_arg_string(replaced))
        n_kept = len(word) - len(replaced)
        if item.type == "plain":
            return f"plain,,0,,{(self._begun + item.value)[n_kept:]}"
        before = self._before(item)
        return f"{item.type},{item.suffix or ''},{max(0, n_kept - len(before))},{before[n_kept:]},{item.value}"


class Zsh(_Line, ZshComplete):
    source_template = ZSH.lstrip().replace("NAMES", NAMES)

    def format_completion(self, item: CompletionItem[str]) -> str:
        before = self._before(item)
        if item.type == "plain":
            return super().format_completion(CompletionItem(before + item.value, help=item.help))
        return f"{item.type}\n{before}\n{item.suffix or '_'}"


class Fish(_Line, FishComplete):
    source_template = FISH.lstrip().replace("NAMES", NAMES)

    def format_completion(self, item: CompletionItem[str]) -> str:
        before = self._before(item)
        if item.type == "plain":
            return "\t".join(["plain", before + item.value, *([" ".join(item.help.split())] if item.help else [])])
        return "\t".join([item.type, before, item.suffix or "", item.value])


SHELLS: dict[str, type[ShellComplete]] = {"bash": Bash, "zsh": Zsh, "fish": Fish}


class _Verbs(click.Group):
    """`modelpipes` with its verbs, each loaded when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load(cmd_name) if cmd_name in VERBS else None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        verbs = [CompletionItem(verb, help=text) for verb, (_, text) in VERBS.items()]
        return [*verbs, *click.Command.shell_complete(self, ctx, incomplete)]


def answer(verb: str | None, name: str) -> int:
    """Answer a shell's script: what may be meant goes to stdout. Whatever happens, nothing else does."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
    signal.alarm(LIMIT_S)
    try:
        for each in SHELLS.values():
            shell_completion.add_completion_class(each)
        command = load(verb) if verb else options.common(_Verbs(context_settings=options.settings))
        _configure(command)
        return shell_completion.shell_complete(command, {}, name, VARIABLE, os.environ[VARIABLE])
    except Exception:  # noqa: BLE001  # the outermost edge: a person who pressed TAB sees no candidates, and no error
        return 1


def _configure(command: click.Command) -> None:
    """Have the configuration name the room and the folders with models; to complete, click leaves out callbacks."""
    with contextlib.suppress(PipesError):  # it is wrong, which whoever runs the command is told
        for param in command.params:
            if param.name == "config" and param.callback:
                param.callback(click.Context(command), param, os.environ.get(configured.CONFIG))


def script(shell: str) -> str:
    """The completion of all commands, for one of SHELLS."""
    return SHELLS[shell](click.Command(None), {}, "modelpipes", VARIABLE).source()
