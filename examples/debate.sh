#!/bin/sh
# A debate of three models. A moderator, here a program that lets speak who has spoken least, says who is next.
set -eu
command -v ask-model >/dev/null || PATH=$(cd "$(dirname "$0")/../bin" && pwd):$PATH
model_a=${MODEL_A:-tiny-chat} # your own GGUF files, if you name them
model_b=${MODEL_B:-$model_a}
model_c=${MODEL_C:-$model_b}
export PATH

place=$(mktemp -d)
trap 'rm -r "$place"' EXIT
trap 'exit 1' HUP INT TERM

# It is asked with "How often each has spoken: alice 2, bob 1, carol 0." and "Who should speak next: bob or carol? ...".
# A model does as well: --model "mod=$MODEL_D", with --system "mod=You moderate. Let nobody repeat themselves."
cat >"$place/moderator" <<'END'
/^How often each has spoken: / {
    split(substr($0, 28), spoken, /[,.] */)
    for (i in spoken) if (split(spoken[i], count, " ") == 2) times[count[1]] = count[2]
}
/^Who should speak next: / {
    sub(/^Who should speak next: /, ""); sub(/[?].*/, ""); n = split($0, names, /, | or /)
    for (i = 1; i <= n; i++) if (best == "" || times[names[i]] < times[best]) best = names[i]
    print best
}
END

set -- --model "alice=$model_a" --model "bob=$model_b" --model "carol=$model_c" \
    --exec "mod=awk -f $place/moderator" --turns moderator --moderator mod \
    --opening "Do you like the sea, or the mountains?" --rounds 2

echo "-- what each is told first"
chat-models "$@" --dry-run

echo "-- the debate"
chat-models "$@" --transcript "$place/debate.jsonl"

chosen=$(grep -c '"by":"mod"' "$place/debate.jsonl")
echo "chosen by the moderator: $chosen of 6"
