"""Where the daemon's models come from: each source says which ones a configuration leads to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from modelpipes.config.settings import Config, Model
from modelpipes.gguf.catalog import Catalog
from modelpipes.serving.budget import is_model

Source: TypeAlias = Callable[[Config], Iterator[tuple[str, Model]]]  # names, and how each is to be run


def named(config: Config) -> Iterator[tuple[str, Model]]:
    """What the configuration itself names."""
    yield from config.models.items()


def found(config: Config) -> Iterator[tuple[str, Model]]:
    """What lies in its folders; where it names neither folders nor models, where model files usually lie."""
    scan = config.scan
    if config.models and not scan.directories:
        return
    for file in Catalog.scan(scan.directories).files:
        if is_model(file.path):
            yield file.name, Model(file.path, ctx_size=scan.ctx_size, parallel=scan.parallel)
