#!/bin/sh
# Two models talk, a third criticises; at the end it is asked for its opinion of the whole.
set -eu
command -v ask-model >/dev/null || PATH=$(cd "$(dirname "$0")/../bin" && pwd):$PATH
model_a=${MODEL_A:-tiny-chat} # your own GGUF files, if you name them
model_b=${MODEL_B:-$model_a}

# A room of our own, gone at the end: the members leave when their pipes do.
place=$(mktemp -d)
export PATH PIPE_DIR="$place/room"
trap 'cleanup-pipes -f; wait; rm -r "$place"' EXIT
trap 'exit 1' HUP INT TERM
model_c=${MODEL_C:-$model_b}

setup-pipes alice bob critic >"$place/pipes"
attach-model alice --model "$model_a" --system "You are alice. You propose ideas, in two sentences." &
attach-model bob --model "$model_b" --system "You are bob. You make alice's ideas concrete, in two sentences." &
attach-model critic --model "$model_c" --system "You are critic. You name the weakest point of what was said." &
list-seats --wait alice bob critic --timeout 5m

chat-models alice bob critic --opening "What shall we plant in the garden?" --rounds 2 \
    --transcript "$place/talk.jsonl"

# The critic remembers the conversation: the transcript is what everybody has heard.
printf 'verdict: '
ask-model critic --transcript "$place/talk.jsonl" "What do you think of it all?"
