#!/bin/sh
# Two models in a room, and a message to each.
set -eu
command -v ask-model >/dev/null || PATH=$(cd "$(dirname "$0")/../bin" && pwd):$PATH
model_a=${MODEL_A:-tiny-chat} # your own GGUF files, if you name them
model_b=${MODEL_B:-$model_a}

# A room of our own, gone at the end: the members leave when their pipes do.
place=$(mktemp -d)
export PATH PIPE_DIR="$place/room"
trap 'cleanup-pipes -f; wait; rm -r "$place"' EXIT
trap 'exit 1' HUP INT TERM

setup-pipes alice bob
attach-model alice --model "$model_a" --system "You are alice." --temperature 0 &
attach-model bob --model "$model_b" --system "You are bob." --temperature 0 &
list-seats --wait alice bob --timeout 5m

# The answer comes on stdout, piece by piece; -v adds its times on stderr.
ask-model alice "Hello, I am carol."
ask-model bob -v "What is 3 and 4?"

# Text from stdin, answer whole and as JSON.
echo "Do you like boats?" | ask-model bob --json

list-seats
