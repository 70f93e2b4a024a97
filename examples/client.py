#!/usr/bin/env python3
"""Ask one server from Python, and time it: client.py [URL [MODEL-NAME]]; without a URL, tiny-chat is started for it."""

import os
import sys
from contextlib import ExitStack

try:
    from modelpipes import Client, Deadline, Engine, PipesError
except ModuleNotFoundError:
    sys.exit("client.py: run it with the Python that has modelpipes; in the checkout that is .venv/bin/python")


def main() -> None:
    with ExitStack() as stack:
        if len(sys.argv) > 1:
            url = sys.argv[1]
        else:
            engine = stack.enter_context(Engine("tiny-chat"))
            engine.be_ready(Deadline.after(60))
            url = engine.base_url
        name = sys.argv[2] if len(sys.argv) > 2 else None
        client = Client(url, model_name=name, api_key=os.environ.get("OPENAI_API_KEY"))

        answer = client.chat("What is 3 and 4?", temperature=0)
        print("chat:", answer.text)
        tokens = f"{answer.usage.prompt_tokens} + {answer.usage.completion_tokens}" if answer.usage else "uncounted"
        print(f"took {answer.latency_ms:.0f} ms, first word after {answer.first_token_ms or 0:.0f} ms, {tokens} tokens")

        print("stream:", end=" ")
        with client.stream("Do you like boats?", temperature=0, max_tokens=60) as pieces:
            for piece in pieces:
                print(piece.content, end="", flush=True)
        print(f"\nended by {pieces.finish}")


if __name__ == "__main__":
    try:
        main()
    except PipesError as error:
        sys.exit(f"client.py: {error}")
