"""A server of LitServe whose model is asked over HTTP: litserve_server.py ENGINE PORT, run by LitServe's Python."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import litserve  # type: ignore[import-not-found]  # not in our environment, but in the one that runs this

LIMIT_S = 60


class TinyChat(litserve.LitAPI):  # type: ignore[misc]  # for the same reason
    def setup(self, device: str) -> None:
        self.engine = sys.argv[1]

    def predict(self, request: Any, context: dict[str, Any]) -> Iterator[str]:
        messages = [message.model_dump(include={"role", "content"}) for message in request.messages]
        body = {"messages": messages, "stream": True, "temperature": request.temperature}
        said = json.dumps(body).encode()
        asked = urllib.request.Request(f"{self.engine}/v1/chat/completions", said, method="POST")
        with urllib.request.urlopen(asked, timeout=LIMIT_S) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        yield choice["delta"].get("content") or ""


if __name__ == "__main__":
    server = litserve.LitServer(TinyChat(spec=litserve.OpenAISpec()), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False)
