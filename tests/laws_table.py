"""Every command with the lines on which tests/test_laws.py tries what docs/reference.md says of all.

Lines are the shell's, in a folder of their own, with bin/ on PATH. There are small models a.gguf, b.gguf,
llama-3.1-8b.gguf and qwen2.5-7b.gguf, a questions.txt, a models.toml and a torn.toml, which has a wrong key; what is
in ~/hostile has control characters, and so has $HOSTILE. In the manned home `bob` and `alice` give back what they are
told, `mallory` answers with control characters, `slow1` not at all, `broken` fails, and nobody sits in `carol`; in
the other home the default room is made by whoever needs it.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field

# Colour, a title that BEL ends, CSI as one character, an override and an isolate, backspace, DEL, a line of its own.
HOSTILE = "\x1b[31mred\x1b]0;title\x07\x9b1m\u202eback\u2066\x08\x7f\r\nnext\x1b"
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
MEMBERS = {
    "alice": "--filter cat",
    "bob": "--filter cat",
    "mallory": """--exec "printf %s '$HOSTILE'\"""",
    "slow1": "--exec 'sleep 1000'",
    "broken": "--exec false",
}
SIGTERM = 143  # what a shell makes of it


@dataclass(frozen=True)
class Line:
    """A command line, what must be there before it, and how it ends."""

    text: str
    before: str = ""  # run first
    until: str = ""  # run beside it: when this has ended the line is as far as it is to come, and gets a SIGTERM
    is_manned: bool = False  # in the home with members
    needs: str = ""  # "driver", "daemon"
    code: int = 0
    shell: str = "sh"
    unrun: str = ""  # why it is only parsed


@dataclass(frozen=True)
class Failure:
    """A command line that fails, its exit code, and what its one line on stderr names."""

    line: Line
    code: int
    names: str
    has_data: bool = False  # on stdout


@dataclass(frozen=True)
class Report:
    """A command line that reports JSON of a schema, once or a line each."""

    line: Line
    schema: str
    is_lines: bool = False


@dataclass(frozen=True)
class Case:
    """One command. `arguments` are the fewest that parse; `prints` writes to stdout, and says nothing else."""

    verb: str
    arguments: str = ""
    examples: tuple[Line, ...] = ()
    prints: Line | None = None
    failures: tuple[Failure, ...] = ()
    reports: tuple[Report, ...] = ()
    hostile: tuple[Line, ...] = ()
    waits: tuple[Line, ...] = ()
    endings: dict[str, int] = field(default_factory=lambda: {"TERM": 143, "INT": 130, "HUP": 129})


def manned(text: str, **more: object) -> Line:
    """A line in the home with members."""
    return dataclasses.replace(Line(text, is_manned=True), **more)  # type: ignore[arg-type]  # what Line takes


def driver(text: str, **more: object) -> Line:
    """A line that finds a card."""
    return dataclasses.replace(Line(text, needs="driver"), **more)  # type: ignore[arg-type]


def daemon(text: str, **more: object) -> Line:
    """A line that finds a serve-models."""
    return dataclasses.replace(Line(text, is_manned=True, needs="daemon"), **more)  # type: ignore[arg-type]


# An engine that ends at once, with words of its own, which are its version too.
ENGINE = """cat >engine <<'END' && chmod +x engine
#!/bin/sh
[ "$1" != --help ] || echo "--model FILE"
echo "version: $HOSTILE" >&2
[ "$1" = --help ]
END"""
CONFIGURED = "export MODELPIPES_CONFIG=config/rtx4080.toml"
TALK = "cp ~/talk.jsonl talk.jsonl"
TORN = "echo torn >libnvidia-ml.so.1; export LD_LIBRARY_PATH=$PWD"
SAID = "while ! test -s stdout; do :; done"

CASES = (
    Case(
        "",
        prints=Line("modelpipes"),
        failures=(Failure(Line("modelpipes talk"), 2, "talk"),),
        hostile=(Line('modelpipes "$HOSTILE"'),),
    ),
    Case(
        "setup",
        examples=(
            Line("setup-pipes alice bob"),
            Line("setup-pipes --num 3 --prefix model -d ./room"),
            manned('eval "$(setup-pipes alice bob --print-env)"; echo hi > "$PIPE_TO_ALICE"'),
        ),
        prints=Line("setup-pipes -d room alice"),
        failures=(
            Failure(Line("setup-pipes hub"), 2, "'hub'"),
            Failure(Line("setup-pipes -d questions.txt alice"), 1, "questions.txt"),
        ),
        hostile=(Line('setup-pipes alice -d questions.txt/"$HOSTILE"'),),
    ),
    Case(
        "cleanup",
        examples=(
            Line("cleanup-pipes"),
            Line("cleanup-pipes -d ./room -f", before="setup-pipes bob -d room"),
            Line("cleanup-pipes --prefix model -v", before="setup-pipes"),
        ),
        failures=(
            Failure(Line("cleanup-pipes -d questions.txt"), 1, "questions.txt"),
            Failure(manned("cleanup-pipes -p slow"), 1, "slow1"),
        ),
        hostile=(Line('cleanup-pipes -d "$HOSTILE"', before='touch "$HOSTILE"'),),
    ),
    Case(
        "attach",
        arguments="alice --filter cat",
        examples=(
            Line(
                'attach-model alice --model tiny-chat --system "You are alice."',
                before="setup-pipes alice",
                until="list-seats --wait alice",
                code=SIGTERM,
            ),
            Line("attach-model bob --server http://127.0.0.1:8080", unrun="it needs a server on port 8080"),
            Line(
                'attach-model upper --filter "stdbuf -oL tr a-z A-Z"',
                before="setup-pipes upper",
                until="list-seats --wait upper",
                code=SIGTERM,
            ),
        ),
        failures=(
            Failure(Line("attach-model nobody --filter cat", before="setup-pipes alice"), 1, "nobody"),
            Failure(manned("attach-model bob --filter cat"), 1, "bob"),
            Failure(Line("attach-model alice"), 2, "--model"),
            Failure(Line("attach-model alice --exec 'wc | rev'"), 2, "sh -c 'wc | rev'"),
        ),
        hostile=(
            manned("attach-model mallory --filter cat"),  # is told who sits there
            Line('attach-model alice --exec "$HOSTILE" --once', before="setup-pipes alice"),
            Line('attach-model alice --model "$HOSTILE"', before="setup-pipes alice"),
            Line("LLAMA_SERVER=./engine attach-model alice --model tiny-chat", before=f"{ENGINE}\nsetup-pipes alice"),
        ),
        waits=(Line("attach-model alice --filter cat", before="setup-pipes alice", until="list-seats --wait alice"),),
    ),
    Case(
        "seats",
        examples=(
            manned("list-seats"),
            manned("list-seats --wait alice bob --max-seconds 5m"),
            manned("list-seats --json"),
        ),
        prints=manned("list-seats"),
        failures=(
            Failure(manned("list-seats --wait carol --timeout 50ms"), 124, "carol"),
            Failure(manned("list-seats dora"), 1, "dora"),
            Failure(Line("list-seats -d nowhere"), 1, "nowhere"),
        ),
        reports=(Report(manned("list-seats --json"), "list-seats"),),
        hostile=(manned("list-seats"), manned("list-seats --format github"), manned('list-seats "$HOSTILE"')),
        waits=(Line("list-seats --wait alice", before="setup-pipes alice"),),
    ),
    Case(
        "ask",
        arguments="bob Hello",
        examples=(
            manned('ask-model bob "What is 3 and 4?"'),
            manned("git diff | ask-model bob --max-seconds 2m", before="git init -q . && git add a.gguf && rm a.gguf"),
            manned('ask-model bob --transcript talk.jsonl "And the day after?"'),
            manned("ask-model bob --each-line --json < questions.txt"),
        ),
        prints=manned("ask-model bob Hello"),
        failures=(
            Failure(manned("ask-model carol --timeout 50ms Hello"), 124, "carol"),
            Failure(manned("ask-model broken Hello"), 1, "broken"),
            Failure(manned("ask-model dora Hello"), 1, "dora"),
            Failure(manned("ask-model bob --transcript questions.txt Hello"), 1, "questions.txt"),
            Failure(manned("ask-model bob --each-line Hello"), 2, "--each-line"),
        ),
        reports=(
            Report(manned("ask-model bob --json Hello"), "ask-model"),
            Report(manned("ask-model broken --each-line --json < questions.txt", code=1), "ask-model", is_lines=True),
        ),
        hostile=(
            manned("ask-model mallory Hello"),
            manned("ask-model mallory --whole -v Hello"),
            manned("ask-model mallory --each-line < questions.txt"),
            manned('ask-model "$HOSTILE" Hello'),
        ),
        waits=(
            manned("ask-model slow1 Hello", until="while ! list-seats slow1 | grep -q busy; do :; done"),
            manned("ask-model carol Hello --timeout none"),
        ),
    ),
    Case(
        "chat",
        arguments="alice bob",
        examples=(
            Line("chat-models --model alice=a.gguf --model bob=b.gguf --rounds 4"),
            manned('chat-models alice bob --opening "What is a pipe?" --transcript talk.jsonl'),
            Line("chat-models me --model alice=tiny-chat"),
            Line("chat-models --serve models.toml alice=qwen bob=gemma carol=phi"),
        ),
        prints=manned("chat-models alice bob --rounds 2"),
        failures=(
            Failure(Line("chat-models --model alice=none.gguf --model bob=none.gguf"), 1, "none.gguf"),
            Failure(Line("chat-models --filter a=cat --filter b=cat --turns moderator"), 2, "--moderator"),
            Failure(manned("chat-models alice bob --transcript questions.txt --resume"), 1, "questions.txt"),
            Failure(manned("chat-models alice bob --transcript talk.jsonl", before=TALK), 2, "talk.jsonl"),
        ),
        reports=(
            Report(manned("chat-models alice bob --rounds 1 --json"), "chat-models", is_lines=True),
            Report(Line("chat-models --model a=tiny-chat --filter b=cat --dry-run --json"), "prompt", is_lines=True),
            Report(
                Line("chat-models --model alice=tiny-chat --filter bob=cat --rounds 1 --json"),
                "chat-models",
                is_lines=True,
            ),
        ),
        hostile=(
            manned("chat-models mallory bob --rounds 1"),
            manned('chat-models alice bob --rounds 1 --opening "$HOSTILE"'),
            manned('chat-models alice bob --transcript none/"$HOSTILE"'),
        ),
        waits=(
            Line("chat-models --exec 'alice=sleep 100' --filter bob=cat", until=SAID),
            manned(
                "chat-models bob slow1 --transcript talk.jsonl",
                until="while ! grep -q '\"turn\":1' talk.jsonl 2>&-; do :; done",
            ),
        ),
    ),
    Case(
        "ping",
        arguments="--self",
        examples=(
            Line("ping-pipes --self"),
            manned("ping-pipes bob --count 10000 --histogram"),
            Line("ping-pipes --self --sweep --pin 0 --json", unrun="it takes seconds; the reports have a short one"),
            Line("ping-pipes --self --flood --size 4KiB --seconds 10", unrun="it takes ten seconds"),
        ),
        prints=manned("ping-pipes bob --count 20"),
        failures=(
            Failure(manned("ping-pipes carol --timeout 50ms"), 124, "carol"),
            Failure(manned("ping-pipes dora"), 1, "dora"),
            Failure(Line("ping-pipes --self --pin 99999"), 2, "99999"),
        ),
        reports=(
            Report(manned("ping-pipes bob --count 20 --json"), "ping-pipes"),
            Report(Line("ping-pipes --self --flood --seconds 50ms --json"), "ping-pipes"),
            Report(Line("ping-pipes --self --sweep --count 2 --json"), "ping-pipes"),
            Report(manned("ping-pipes bob --sweep --flood --seconds 20ms --json"), "ping-pipes"),
        ),
        hostile=(manned('ping-pipes "$HOSTILE"'),),
        waits=(
            manned("ping-pipes bob --count 2 --warmup 0 --interval 1h"),
            Line("ping-pipes --self --flood --seconds none"),
        ),
    ),
    Case(
        "find",
        examples=(
            Line("find-gguf"),
            Line("find-gguf ~/models --gpu rtx4090 --ctx-size 16384 --sort fit"),
            Line("find-gguf --fits --vram 8GB --format json | jq -r '.files[].path'"),
            Line("find-gguf --gpu '2x rtx3060' --kv-type q8_0 --sort memory"),
            Line("find-gguf --use two --fits", before=CONFIGURED),
            Line("find-gguf --check-data ~/models"),
        ),
        prints=Line("find-gguf --vram 8GB"),
        failures=(
            Failure(
                Line("find-gguf torn.gguf --vram 8GB", before="echo GGUF >torn.gguf"), 1, "torn.gguf", has_data=True
            ),
            Failure(
                Line("find-gguf torn.gguf --vram 8GB --check-data", before="echo GGUF >torn.gguf"),
                1,
                "torn.gguf",
                has_data=True,
            ),
            Failure(Line("find-gguf --vram 8XB"), 2, "8XB"),
        ),
        reports=(
            Report(Line("find-gguf . --json", before="echo GGUF >torn.gguf"), "find-gguf"),
            Report(Line("find-gguf --json --no-gpu-fit"), "find-gguf"),
            Report(Line("find-gguf ~/models --check-data --json"), "find-gguf"),
            Report(Line("find-gguf --format jsonl"), "find-gguf-jsonl", is_lines=True),
        ),
        hostile=(
            Line("find-gguf ~/hostile -v"),
            Line("find-gguf ~/hostile --format csv"),
            Line("find-gguf ~/hostile --check-data"),
            Line("find-gguf ~/hostile --format tsv"),
            Line('find-gguf "$HOSTILE" --vram 8GB'),
        ),
    ),
    Case(
        "fit",
        arguments="a.gguf",
        examples=(
            Line("fit-models llama-3.1-8b.gguf qwen2.5-7b.gguf"),
            Line("fit-models *.gguf --gpu 'RTX 3060' --ctx-size 8192 --kv-type q8_0"),
            Line("fit-models a.gguf b.gguf --format json | jq '.models[].context'"),
            Line("fit-models a.gguf b.gguf --gpu '2x rtx3090' --format sh > engines.sh"),
            Line("fit-models a.gguf b.gguf --use two", before=CONFIGURED),
        ),
        prints=Line("fit-models a.gguf --vram 8GB"),
        failures=(
            Failure(Line("fit-models none.gguf"), 1, "none.gguf"),
            Failure(Line("fit-models a.gguf --gpu rtx9999"), 2, "rtx9999"),
        ),
        reports=(
            Report(Line("fit-models a.gguf b.gguf --json"), "fit-models"),
            Report(driver("fit-models a.gguf b.gguf --vram 8MB --reserve 0 --json", code=1), "fit-models"),
        ),
        hostile=(
            Line("fit-models ~/hostile/evil*"),
            Line("fit-models ~/hostile/evil* --format sh"),
            Line("fit-models ~/hostile/evil* --format html"),
            Line('fit-models "$HOSTILE"'),
        ),
    ),
    Case(
        "serve",
        arguments="status",
        examples=(
            Line("serve-models models.toml", until="serve-models status --wait 30s", code=SIGTERM),
            daemon("serve-models status"),
            daemon("serve-models logs qwen -f", before="serve-models load qwen", until=SAID, code=SIGTERM),
            daemon("serve-models events -f", before="serve-models load qwen", until=SAID, code=SIGTERM),
        ),
        prints=daemon("serve-models status --json"),
        failures=(
            Failure(Line("serve-models status"), 1, "serve-models CONFIG.toml"),
            Failure(Line("serve-models none.toml"), 2, "none.toml"),
            Failure(daemon("serve-models load none"), 1, "none"),
            Failure(Line("serve-models torn.toml"), 2, "timeout"),
        ),
        reports=(
            Report(daemon("serve-models status --json", before="serve-models load qwen"), "serve-models"),
            Report(daemon("serve-models pin gemma --json"), "serve-models-load"),
            Report(daemon("serve-models events --json", before="serve-models load qwen"), "events", is_lines=True),
        ),
        hostile=(
            daemon('serve-models status --listen "$HOSTILE"'),
            daemon("serve-models logs evil", before="serve-models load evil"),
            Line('serve-models "$HOSTILE"'),
        ),
        waits=(Line("serve-models models.toml", until="serve-models status --wait 30s"),),
        endings={"TERM": 143, "INT": 130},  # SIGHUP has it read its configuration again
    ),
    Case(
        "gpu",
        examples=(
            driver("watch-gpu --per-process"),
            driver("watch-gpu --continuous --interval 2", until=SAID, code=SIGTERM),
            driver(
                "watch-gpu --continuous --format csv --output gpu.csv",
                until="while ! test -s gpu.csv; do :; done",
                code=SIGTERM,
            ),
            driver("watch-gpu --json | jq '.gpus[].memory_free_bytes'"),
            driver(
                "watch-gpu --continuous --exec-on-alert 'notify-send \"$MODELPIPES_MESSAGE\"'", until=SAID, code=SIGTERM
            ),
        ),
        prints=driver("watch-gpu"),
        failures=(
            Failure(Line("watch-gpu", before=TORN), 1, "no NVIDIA driver"),
            Failure(driver("watch-gpu --gpu 7"), 2, "7"),
        ),
        reports=(
            Report(driver("watch-gpu --json"), "watch-gpu"),
            Report(driver("FAKE_TEMPERATURE=95 watch-gpu --json --system"), "watch-gpu"),
            Report(
                driver("watch-gpu --continuous --count 2 --interval 10ms --format jsonl"), "watch-gpu", is_lines=True
            ),
        ),
        hostile=(
            driver(
                """sh -c 'read it' sh --model "$HOSTILE" 0<>pipe & FAKE_PIDS=$!:1 watch-gpu --per-process; kill $!""",
                before="mkfifo pipe",
            ),
            driver(
                """sh -c 'read it' sh --model "$HOSTILE" 0<>pipe &
FAKE_PIDS=$!:1 watch-gpu --per-process --format tsv; kill $!""",
                before="mkfifo pipe",
            ),
            driver('watch-gpu --gpu "$HOSTILE"'),
            driver('watch-gpu --output none/"$HOSTILE"'),
        ),
        waits=(driver("watch-gpu --continuous --interval 1h", until=SAID),),
    ),
    Case(
        "check",
        examples=(
            Line("check-system"),
            Line("check-system --json | jq -r '.checks[] | select(.state != \"ok\") | .advice'"),
        ),
        prints=Line("check-system"),
        failures=(
            Failure(Line("LLAMA_SERVER=/none/llama-server check-system"), 1, "/none/llama-server", has_data=True),
        ),
        reports=(Report(Line("check-system --json"), "check-system"),),
        hostile=(
            Line('SEARCH_PATH="$HOSTILE" check-system'),
            Line('SEARCH_PATH="$HOSTILE" check-system --format html'),
            Line('LLAMA_SERVER="$HOSTILE" check-system'),
            Line("LLAMA_SERVER=./engine check-system", before=ENGINE),
        ),
    ),
    Case(
        "hold",
        arguments="bob cat",
        examples=(
            Line("modelpipes hold bob -- python3 bob.py", before="setup-pipes bob; echo 'open(0).read()' >bob.py"),
            Line(
                """modelpipes hold bob -- sh -c 'exec cat "$PIPE_FROM_HUB"'""",
                before="setup-pipes bob",
                until="list-seats --wait bob",
                code=SIGTERM,
            ),
        ),
        failures=(
            Failure(manned("modelpipes hold bob -- cat"), 1, "bob"),
            Failure(Line("modelpipes hold alice -- no-such-program", before="setup-pipes alice"), 1, "no-such-program"),
            Failure(Line("modelpipes hold alice"), 2, "COMMAND"),
        ),
        hostile=(
            manned("modelpipes hold mallory -- cat"),  # is told who sits there
            Line('modelpipes hold alice -- "$HOSTILE"', before="setup-pipes alice"),
            Line('modelpipes hold "$HOSTILE" -- cat', before="setup-pipes alice"),
        ),
        waits=(
            Line(
                """modelpipes hold bob -- sh -c 'cat "$PIPE_FROM_HUB"'""",
                before="setup-pipes bob",
                until="list-seats --wait bob",
            ),
        ),
    ),
    Case(
        "run",
        arguments="tiny-chat Hello.",
        examples=(
            Line('modelpipes run tiny-chat "What is 3 and 4?"'),
            Line(
                'git diff | modelpipes run a.gguf "Say what was changed:" -',
                before="git init -q . && git add a.gguf && rm a.gguf && cp ~/models/a.gguf .",
            ),
            Line('modelpipes run llama3.2 --server http://127.0.0.1:11434 --json "Hello."', unrun="it needs a server"),
            Line("modelpipes run tiny-chat", unrun="it talks with who sits at a terminal"),
        ),
        prints=Line("modelpipes run tiny-chat Hello."),
        failures=(
            Failure(Line("modelpipes run none.gguf Hello."), 1, "none.gguf"),
            Failure(Line("modelpipes run tiny-chat </dev/null"), 2, "empty"),
            Failure(Line("modelpipes run tiny-chat --max-seconds 50ms 0<>pipe", before="mkfifo pipe"), 124, "stdin"),
            Failure(Line("modelpipes run x --server http://127.0.0.1:1 Hello."), 1, "http://127.0.0.1:1"),
        ),
        reports=(Report(Line("modelpipes run tiny-chat --json Hello."), "run"),),
        hostile=(
            Line('modelpipes run "$HOSTILE" Hello.'),
            Line('modelpipes run "$HOSTILE" --server http://127.0.0.1:1/"$HOSTILE" Hello.'),
        ),
        waits=(Line("modelpipes run tiny-chat 0<>pipe", before="mkfifo pipe"),),
    ),
    Case(
        "show",
        arguments="talk.jsonl",
        examples=(
            Line("modelpipes show talk.jsonl", before=TALK),
            Line("modelpipes show talk.jsonl --format html > talk.html", before=TALK),
            Line("modelpipes show - --format json < talk.jsonl", before=TALK),
            Line("modelpipes show talk.jsonl --as bob --turn 2", before=TALK),
        ),
        prints=Line("modelpipes show talk.jsonl", before=TALK),
        failures=(
            Failure(Line("modelpipes show none.jsonl"), 1, "none.jsonl"),
            Failure(Line("modelpipes show questions.txt"), 1, "questions.txt"),
            Failure(Line("modelpipes show talk.jsonl --as mallory", before=TALK), 2, "mallory"),
            Failure(Line("modelpipes show talk.jsonl --turn 1", before=TALK), 2, "--as"),
            Failure(Line("modelpipes show - --max-seconds 50ms 0<>pipe", before="mkfifo pipe"), 124, "stdin"),
        ),
        reports=(
            Report(Line("modelpipes show talk.jsonl --format json", before=TALK), "show"),
            Report(Line("modelpipes show talk.jsonl --as bob --format json", before=TALK), "prompt"),
        ),
        hostile=(
            Line("modelpipes show ~/hostile/talk.jsonl --show-thinking"),
            Line("modelpipes show ~/hostile/talk.jsonl --format markdown --show-thinking"),
            Line("modelpipes show ~/hostile/talk.jsonl --format html --show-thinking"),
            Line('modelpipes show ~/hostile/talk.jsonl --as "$HOSTILE"'),
            Line('modelpipes show "$HOSTILE"'),
        ),
    ),
    Case(
        "config",
        arguments="show",
        examples=(
            Line("modelpipes config show"),
            Line("modelpipes config show --json"),
            Line("modelpipes config example --gpu rtx3090 > config.toml"),
        ),
        prints=Line("modelpipes config show"),
        failures=(
            Failure(Line("modelpipes config tell"), 2, "tell"),
            Failure(Line("modelpipes config show --config none.toml"), 2, "none.toml"),
            Failure(Line("modelpipes config example --gpu rtx9999"), 2, "rtx9999"),
        ),
        reports=(Report(Line("modelpipes config show --json --config config/rtx4080.toml"), "config-show"),),
        hostile=(
            Line('modelpipes config "$HOSTILE"'),
            Line('PIPE_DIR="$HOSTILE" modelpipes config show'),
            Line('PIPE_DIR="$HOSTILE" modelpipes config show --format github'),
            Line('modelpipes config show --config "$HOSTILE"'),
            Line('modelpipes config show --config "$HOSTILE"', before='touch "$HOSTILE"'),
        ),
    ),
    Case(
        "build-engine",
        examples=(
            Line("modelpipes build-engine --dry-run"),
            Line("modelpipes build-engine", unrun="it takes minutes, and a network"),
            Line("modelpipes build-engine --source ~/llama.cpp --variant cuda", unrun="it takes minutes, and a card"),
            Line("modelpipes build-engine --list"),
        ),
        prints=Line("modelpipes build-engine --list"),
        failures=(
            Failure(Line("modelpipes build-engine --remove none"), 2, "none"),
            Failure(Line("modelpipes build-engine --list --dry-run"), 2, "--list"),
        ),
        reports=(
            Report(Line("modelpipes build-engine --list --json"), "build-engine-list"),
            Report(Line("modelpipes build-engine --dry-run --json"), "build-engine-dry-run"),
        ),
        hostile=(
            Line('modelpipes build-engine --remove "$HOSTILE"'),
            Line("LLAMA_SERVER=./engine modelpipes build-engine --list", before=ENGINE),
            Line("LLAMA_SERVER=./engine modelpipes build-engine --list --format tsv", before=ENGINE),
            Line('modelpipes build-engine --dry-run --source "$HOSTILE"'),
        ),
    ),
    Case(
        "schema",
        examples=(
            Line("modelpipes schema"),
            Line("modelpipes schema message"),
            Line("""modelpipes schema find-gguf | jq '."$defs".Line.properties | keys'"""),
        ),
        prints=Line("modelpipes schema message"),
        failures=(Failure(Line("modelpipes schema mesage"), 2, "did you mean message?"),),
        hostile=(Line('modelpipes schema "$HOSTILE"'),),
    ),
    Case(
        "completion",
        arguments="bash",
        examples=(
            Line('eval "$(modelpipes completion bash)"', shell="bash"),
            Line("modelpipes completion zsh > ~/.zfunc/_modelpipes", before="mkdir ~/.zfunc"),
            Line(
                "modelpipes completion fish > ~/.config/fish/conf.d/modelpipes.fish",
                before="mkdir -p ~/.config/fish/conf.d",
            ),
        ),
        prints=Line("modelpipes completion bash"),
        failures=(
            Failure(Line("modelpipes completion tcsh"), 2, "tcsh"),
            Failure(Line("SHELL=/bin/tcsh modelpipes completion"), 2, "$SHELL"),
        ),
        hostile=(Line('modelpipes completion "$HOSTILE"'),),
    ),
    Case(
        "man",
        examples=(
            Line("modelpipes man ask-model | man -l -"),
            Line("modelpipes man build-engine | mandoc | less"),
        ),
        prints=Line("modelpipes man ask-model"),
        failures=(Failure(Line("modelpipes man none"), 2, "none"),),
        hostile=(Line('modelpipes man "$HOSTILE"'),),
    ),
)
