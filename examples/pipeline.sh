#!/bin/sh
# Models in a pipeline: what one answers is what the next is asked.
set -eu
command -v ask-model >/dev/null || PATH=$(cd "$(dirname "$0")/../bin" && pwd):$PATH
model_a=${MODEL_A:-tiny-chat} # your own GGUF files, if you name them
model_b=${MODEL_B:-$model_a}

# A room of our own, gone at the end: the members leave when their pipes do.
place=$(mktemp -d)
export PATH PIPE_DIR="$place/room"
trap 'cleanup-pipes -f; wait; rm -r "$place"' EXIT
trap 'exit 1' HUP INT TERM

setup-pipes alice bob >"$place/pipes"
attach-model alice --model "$model_a" --system "You are alice." --temperature 0 &
attach-model bob --model "$model_b" --system "You are bob." --temperature 0 --parallel 2 &
list-seats --wait alice bob --timeout 5m

echo "-- alice is asked, bob answers her"
ask-model alice "Do you like boats?" | ask-model bob

echo "-- the same, with what alice said in between"
ask-model alice "Do you like boats?" | tee "$place/alice.txt" | ask-model bob >"$place/bob.txt"
sed 's/^/alice: /' "$place/alice.txt"
sed 's/^/bob: /' "$place/bob.txt"

echo "-- a file of questions, an answer to each, two at a time"
printf '%s\n' "What is 1 and 2?" "What is 3 and 4?" "What is 5 and 6?" >"$place/questions.txt"
ask-model bob --each-line --parallel 2 <"$place/questions.txt" | paste "$place/questions.txt" -
