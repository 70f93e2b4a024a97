#!/bin/sh
# Programs as members: a Python script and sed kept running (--filter), awk run for each message (--exec).
set -eu
command -v ask-model >/dev/null || PATH=$(cd "$(dirname "$0")/../bin" && pwd):$PATH
model_a=${MODEL_A:-tiny-chat} # your own GGUF files, if you name them
model_b=${MODEL_B:-$model_a}

# A room of our own, gone at the end: the members leave when their pipes do.
place=$(mktemp -d)
export PATH PIPE_DIR="$place/room"
trap 'cleanup-pipes -f; wait; rm -r "$place"' EXIT
trap 'exit 1' HUP INT TERM

cat >"$place/adder.py" <<'END'
"""Adds up the numbers of each line."""

import re
import sys

for line in sys.stdin:
    print("That makes", sum(map(int, re.findall(r"\d+", line))), flush=True)
END

setup-pipes alice adder polite counter >"$place/pipes"
attach-model alice --model "$model_a" --system "You are alice." &
# A filter answers each line at once. It must neither hold back what it writes (flush=True, sed -u,
# stdbuf -oL) nor wait for more to read, as mawk does; what cannot help it is run for each message.
attach-model adder --filter "python3 $place/adder.py" &
attach-model polite --filter "sed -u -e 's/^/Dear friend, /' -e 's/$/ Yours truly./'" &
attach-model counter --exec "awk '{ words += NF } END { print words, \"words\" }'" &
list-seats --wait alice adder polite counter --timeout 5m

ask-model adder "3 apples, 4 pears and 12 nuts"
ask-model counter "how many words are these"
ask-model alice "Do you like rain?" | ask-model polite

echo "-- in a conversation they speak when it is their turn"
chat-models alice counter --opening "Hello." --rounds 2
