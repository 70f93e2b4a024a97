from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelpipes.config import reading
from modelpipes.config.settings import Config, MemoryLimits, Model, Server, Size
from modelpipes.serving.changes import AT_START, HARMLESS, Change, difference

QWEN = "[models.qwen]\nfile = '/q.gguf'\n"


def read(text: str, folder: str) -> Config:
    return reading.read(text, folder).config


def test_a_reload_touches_only_what_changed() -> None:
    old = read(QWEN + "[models.b]\nfile='/b.gguf'\n[models.c]\nfile='/c.gguf'\n[models.d]\nfile='/d.gguf'", "/etc")
    new = read(
        "[server]\nlisten='127.0.0.1:1'\n[memory]\nbudget='1GB'\n"
        + QWEN
        + "pin = true\n[models.b]\nfile='/b.gguf'\nparallel=2\n[models.c]\nfile='/c.gguf'\n[models.e]\nfile='/e.gguf'",
        "/etc",
    )
    assert difference(old, new) == Change(
        added=("e",),
        removed=("d",),
        changed=("b",),
        touched=("qwen",),
        restart=("server.listen",),
        memory=True,
        budget=True,
    )


def test_what_was_put_into_the_environment_takes_a_new_start() -> None:
    new = read("[find-gguf]\nsearch_path = ['/m']\n[voice]\nllama_server = '/l'\nctx_size = 512\n", "/etc")
    assert difference(Config(), new) == Change(restart=("find-gguf.search_path", "voice.llama_server"))


MODELS = st.builds(
    Model,
    file=st.sampled_from(["/a", "/b"]),
    ctx_size=st.sampled_from([4096, 8192]),
    pin=st.booleans(),
    aliases=st.sampled_from([(), ("x",)]),
)
CONFIGS = st.builds(
    Config,
    server=st.builds(Server, listen=st.sampled_from(["a:1", "b:2"])),
    memory=st.builds(MemoryLimits, keep_conversations=st.booleans(), budget=st.sampled_from([None, Size(1)])),
    models=st.dictionaries(st.sampled_from("abcd"), MODELS),
)


@given(CONFIGS, CONFIGS)
def test_the_difference_names_every_model_that_differs_once_and_nothing_else(old: Config, new: Config) -> None:
    change = difference(old, new)
    named = (*change.added, *change.removed, *change.changed, *change.touched)
    assert len(set(named)) == len(named)
    assert set(named) == {name for name in {*old.models, *new.models} if old.models.get(name) != new.models.get(name)}
    assert (change == Change()) == (old == new)
    back = difference(new, old)
    assert (back.added, back.removed) == (change.removed, change.added)
    assert (back.changed, back.touched, back.restart) == (change.changed, change.touched, change.restart)


def test_the_keys_that_are_told_apart_exist() -> None:
    assert set(HARMLESS) <= set(Model.__struct_fields__)
    for key in AT_START:
        section, _, name = key.partition(".")
        assert name in type(getattr(Config(), section.replace("-", "_"))).__struct_fields__
