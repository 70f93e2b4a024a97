#!/bin/sh
# Programs that read and write their pipes themselves, in sh and in Python, each in a seat that `hold` takes for it.
set -eu
command -v ask-model >/dev/null || PATH=$(cd "$(dirname "$0")/../bin" && pwd):$PATH

# A room of our own, gone at the end: the members leave when their pipes do.
place=$(mktemp -d)
export PATH PIPE_DIR="$place/room"
trap 'cleanup-pipes -f; wait; rm -r "$place"' EXIT
trap 'exit 1' HUP INT TERM

cat >"$place/counter.sh" <<'END'
# Numbers its answers. What it needs of a message, its id, is cut out of the line.
answers=0
while read -r line; do
    case $line in
        '{"type":"say"'*) ;;
        *) continue ;; # an empty line, a ping …
    esac
    id=${line#*'"id":"'} id=${id%%\"*}
    answers=$((answers + 1))
    # <> does not wait for a reader: who asked may have gone.
    printf '{"type":"reply","id":"%s","reply_to":"%s","from":"%s","to":"hub","content":"%s","stop":"end"}\n' \
        "$id-$answers" "$id" "$MODELPIPES_SEAT" "This is answer $answers." 1<>"$PIPE_TO_HUB"
done <"$PIPE_FROM_HUB"
END

cat >"$place/reverse.py" <<'END'
"""Says everything backwards: what is on the pipe is described by `modelpipes schema message`."""

import json
import os
import uuid

seat = os.environ["MODELPIPES_SEAT"]


def send(message: dict) -> None:
    # O_RDWR does not wait for a reader: who asked may have gone.
    pipe = os.open(os.environ["PIPE_TO_HUB"], os.O_RDWR)
    os.write(pipe, json.dumps(message).encode() + b"\n")
    os.close(pipe)


with open(os.environ["PIPE_FROM_HUB"], encoding="utf-8") as pipe:
    for line in pipe:
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("type") == "say":
            # In a conversation the words are those of the last turn.
            words = message["heard"][-1]["content"] if message.get("heard") else message["content"]
            answer = {"id": uuid.uuid4().hex, "reply_to": message["id"], "content": words[::-1], "stop": "end"}
            send({"type": "reply", "from": seat, "to": "hub", **answer})
END

setup-pipes counter reverse >"$place/pipes"
modelpipes hold counter -- sh "$place/counter.sh" &
modelpipes hold reverse -- python3 "$place/reverse.py" &
list-seats --wait counter reverse --max-seconds 1m

ask-model counter "Are you there?"
ask-model counter "And now?"
ask-model reverse "a man, a plan"

echo "-- in a conversation they speak when it is their turn"
chat-models counter reverse --opening "Hello." --rounds 2
