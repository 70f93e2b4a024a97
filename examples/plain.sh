#!/bin/sh
# No command of ours to ask with: echo and head, or any program that can open a file.
set -eu
command -v ask-model >/dev/null || PATH=$(cd "$(dirname "$0")/../bin" && pwd):$PATH
model_a=${MODEL_A:-tiny-chat} # your own GGUF files, if you name them
model_b=${MODEL_B:-$model_a}

# A room of our own, gone at the end: the members leave when their pipes do.
place=$(mktemp -d)
export PATH PIPE_DIR="$place/room"
trap 'cleanup-pipes -f; wait; rm -r "$place"' EXIT
trap 'exit 1' HUP INT TERM

# --print-env prints PIPE_TO_BOB and PIPE_FROM_BOB. Two plain askers need two seats: carol is the second.
eval "$(setup-pipes bob --print-env)"
setup-pipes bob --hub carol >"$place/pipes"
attach-model bob --model "$model_b" --system "You are bob." --temperature 0 &
list-seats --wait bob --timeout 5m

echo "Say the word lantern." >"$PIPE_TO_BOB"
head -n 1 "$PIPE_FROM_BOB"

for sum in "1 and 2" "3 and 4" "5 and 6"; do
    echo "What is $sum?" >"$PIPE_TO_BOB"
    echo "$sum: $(head -n 1 "$PIPE_FROM_BOB")"
done

# Both ask before either collects its answer.
echo "Say the word piano." >"$PIPE_TO_BOB"
echo "Say the word garden." >"$PIPE_DIR/carol_to_bob"
head -n 1 "$PIPE_DIR/bob_to_carol"
head -n 1 "$PIPE_FROM_BOB"
