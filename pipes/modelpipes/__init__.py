"""Local language models that talk to each other, and to any Unix program, through named pipes.

A room is a directory of named pipes between the seat `hub`, which is you, and other seats. Who takes a seat
answers what it is told: a model, a program, a person. The shortest program that does something:

    from modelpipes import Room, Seating, ask, clean_up

    room = Room.make("talk", ["bob"])
    with Seating(room) as seating:
        seating.seat({"bob": ["--model", "tiny-chat", "--temperature", "0"]})
        print(ask("bob", "What is 3 and 4?", room=room).content)
    clean_up(room)

Words through pipes:

    Room            a directory of pipes: its seats, and who sits where
    Seating         members as processes of ours, which end with us
    ask             one message to a seat, and its reply
    Conversation    a talk among several seats, led from the hub; ends by StopRules
    Endpoint        the open ends of one seat, for who takes a seat or measures
    clean_up        what a room holds is removed, and nothing else

Model files and engines:

    Client          one server over HTTP: a chat, a stream, a completion, with their times and tokens
    Engine          a llama-server of ours, or the embedded engine, with one model
    read_header     what a GGUF file says of itself, without loading it
    EngineSpec      what an engine is given: its model, and how it runs it; Settings is its former name
    predict_memory  the memory that a model takes under such a spec, in bytes
    plan            which models share a Space, and with which settings

Every wait is bounded by a Deadline, or by seconds that make one. What can be foreseen to fail raises a
PipesError; modelpipes.errors has the tree of them. A name is loaded when it is first asked for.

The rest: modelpipes.pipe.message has what travels on a pipe, modelpipes.chat.transcript the file of a conversation,
modelpipes.pipe.asker one exchange with its deltas, modelpipes.chat.turns who speaks next, modelpipes.gguf model files
in shards, modelpipes.fit.rating what fits a card. A change to a name of this page stands in CHANGELOG.md; the rest
may change with any release. The commands are modelpipes.commands: `modelpipes --help`.
"""

TYPE_CHECKING = False  # typing's takes 5 ms to import; type checkers go by the name
if TYPE_CHECKING:
    from modelpipes.chat.conversation import Conversation
    from modelpipes.chat.seating import Seating
    from modelpipes.chat.turns import StopRules
    from modelpipes.engine.client import Client
    from modelpipes.engine.lifecycle import Engine
    from modelpipes.errors import PipesError
    from modelpipes.fit.memory import predict_memory
    from modelpipes.fit.plan import plan
    from modelpipes.fit.rating import Space
    from modelpipes.fit.spec import EngineSpec, Settings
    from modelpipes.gguf.header import read_header
    from modelpipes.pipe.asker import ask
    from modelpipes.pipe.cleanup import clean_up
    from modelpipes.pipe.endpoint import Endpoint
    from modelpipes.pipe.room import Room
    from modelpipes.values.deadline import Deadline
    from modelpipes.values.version import __version__

__all__ = [
    "Client",
    "Conversation",
    "Deadline",
    "Endpoint",
    "Engine",
    "EngineSpec",
    "PipesError",
    "Room",
    "Seating",
    "Settings",
    "Space",
    "StopRules",
    "__version__",
    "ask",
    "clean_up",
    "plan",
    "predict_memory",
    "read_header",
]

_HOMES = {
    "Client": "engine.client",
    "Conversation": "chat.conversation",
    "Deadline": "values.deadline",
    "Endpoint": "pipe.endpoint",
    "Engine": "engine.lifecycle",
    "EngineSpec": "fit.spec",
    "PipesError": "errors",
    "Room": "pipe.room",
    "Seating": "chat.seating",
    "Settings": "fit.spec",
    "Space": "fit.rating",
    "StopRules": "chat.turns",
    "__version__": "values.version",
    "ask": "pipe.asker",
    "clean_up": "pipe.cleanup",
    "plan": "fit.plan",
    "predict_memory": "fit.memory",
    "read_header": "gguf.header",
}

if not TYPE_CHECKING:  # or a type checker would take any name for one of ours

    def __getattr__(name):
        """Load a name once it is asked for: commands that only touch pipes must not pay for the others."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = found
        return found

    def __dir__():
        return sorted({*globals(), *__all__})
