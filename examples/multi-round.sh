#!/bin/sh
# A conversation of several rounds: led by hand, then by chat-models, which goes on after an interruption.
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
attach-model alice --model "$model_a" --system "You are alice." &
attach-model bob --model "$model_b" --system "You are bob." &
list-seats --wait alice bob --timeout 5m

echo "-- led by hand: what one says the other hears; each has a memory of its own, in a file"
said="Hello, do you like trains?"
for round in 1 2; do
    for seat in alice bob; do
        said=$(ask-model "$seat" --transcript "$place/$seat.jsonl" "$said")
        echo "$seat, round $round: $said"
    done
done

echo "-- led by chat-models"
chat-models alice bob --opening "Do you like trains?" --rounds 2 --transcript "$place/talk.jsonl"

echo "-- two more rounds of the same conversation"
chat-models alice bob --rounds 4 --transcript "$place/talk.jsonl" --resume
