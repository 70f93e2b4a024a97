#!/bin/sh
# Which models there are, which of them fit the card, and the largest of those in a seat.
set -eu
command -v find-gguf >/dev/null || PATH=$(cd "$(dirname "$0")/../bin" && pwd):$PATH
# Your own folder of GGUF files, if you name it; $SEARCH_PATH is where find-gguf looks when it is told nothing.
checkout=$(cd "$(dirname "$0")/.." && pwd)
SEARCH_PATH=${MODELS:-${SEARCH_PATH:-$checkout/pipes/modelpipes/models}}

# A room of our own, gone at the end: the member leaves when its pipes do.
place=$(mktemp -d)
export PATH SEARCH_PATH PIPE_DIR="$place/room"
trap 'cleanup-pipes -f; wait; rm -r "$place"' EXIT
trap 'exit 1' HUP INT TERM

# On the card of this machine; without one, on an RTX 4080.
find-gguf

# On a card that is still to be bought, with a long context and a smaller cache.
find-gguf --gpu rtx3060 --ctx-size 32768 --kv-type q8_0 --sort context

# For a script, a line of JSON each: the first is the one with the most parameters.
best=$(find-gguf --fits --sort params --format jsonl | sed -n '1s/.*"name":"\([^"]*\)".*/\1/p')
[ -n "$best" ] || exit 1
echo "largest that fits: $best"

# Wherever a model is named, a name that find-gguf prints will do.
setup-pipes bob
attach-model bob --model "$best" --system "You are bob." --temperature 0 &
list-seats --wait bob --timeout 5m
ask-model bob "What is 3 and 4?"
