"""A worker of FastChat whose model is asked over HTTP; FastChat's own needs torch. Run by FastChat's Python.

fastchat_worker.py ENGINE PORT CONTROLLER
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastchat.conversation import (  # type: ignore[import-not-found]  # not in our environment
    Conversation,
    SeparatorStyle,
)
from fastchat.serve import base_model_worker  # type: ignore[import-not-found]  # for the same reason

CONTEXT_TOKENS = 1024
TINY_CHAT = Conversation(
    name="tiny-chat",
    roles=("<|user|>", "<|assistant|>"),
    sep_style=SeparatorStyle.NO_COLON_TWO,
    sep="</s>",
    sep2="</s>",
)
LIMIT_S = 60


class Worker(base_model_worker.BaseModelWorker):  # type: ignore[misc]  # for the same reason
    def __init__(self, engine: str, port: str, controller: str) -> None:
        super().__init__(controller, f"http://127.0.0.1:{port}", "tiny", "tiny-chat", ["tiny"], 4)
        self.engine = engine
        self.context_len = CONTEXT_TOKENS
        self.init_heart_beat()

    def make_conv_template(self, conv_template: Any = None, model_path: Any = None) -> Any:
        return TINY_CHAT.copy()

    def ask(self, page: str, body: dict[str, Any]) -> Any:
        asked = urllib.request.Request(self.engine + page, json.dumps(body).encode(), method="POST")
        return urllib.request.urlopen(asked, timeout=LIMIT_S)

    def count_token(self, params: dict[str, Any]) -> dict[str, Any]:
        with self.ask("/tokenize", {"content": params["prompt"], "parse_special": True}) as answer:
            return {"count": len(json.load(answer)["tokens"]), "error_code": 0}

    def generate_stream_gate(self, params: dict[str, Any]) -> Iterator[bytes]:
        """FastChat's protocol between worker and server: each piece has all of the text so far, and ends with NUL."""
        if "out of memory" in params["prompt"]:
            yield json.dumps({"text": "CUDA out of memory", "error_code": 50002}).encode() + b"\0"
            return
        stop = params.get("stop") or []
        body = {"prompt": params["prompt"], "temperature": params["temperature"], "stream": True}
        body |= {"stop": [stop] if isinstance(stop, str) else stop, "n_predict": int(params["max_new_tokens"])}
        text = ""
        with self.ask("/completion", body) as answer:
            for line in answer:
                if not line.startswith(b"data: "):
                    continue
                chunk = json.loads(line[6:])
                text += chunk["content"]
                read, said = chunk.get("tokens_evaluated", 0), chunk.get("tokens_predicted", 0)
                usage = {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}
                reason = "stop" if chunk["stop"] else None
                piece = {"text": text, "error_code": 0, "usage": usage, "finish_reason": reason}
                yield json.dumps(piece).encode() + b"\0"


Worker(*sys.argv[1:])
uvicorn.run(base_model_worker.app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
