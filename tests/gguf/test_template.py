from __future__ import annotations

from pathlib import Path

import pytest

from modelpipes.engine.locate import find_model
from modelpipes.errors import ModelFileError
from modelpipes.gguf.template import read_template, refuses_system
from tests import models


def test_the_packaged_models_template_is_read_whole_and_takes_a_system_text() -> None:
    path = find_model("tiny-chat")
    assert "message" in read_template(path)
    assert not refuses_system(path)


@pytest.mark.parametrize(
    ("template", "refuses"),
    [
        ("{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}", False),
        ("{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}", True),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ '[I]' + m.content }}{% endif %}{% endfor %}", True),
        ("{% if m['role'] == 'system' %}{{ m['content'] }}{% endif %}" + " " * 2000, False),
    ],
)
def test_a_template_tells_by_its_text_whether_it_takes_a_system_text(
    tmp_path: Path, template: str, refuses: bool
) -> None:
    path = models.scripted_model(tmp_path / "model.gguf", "Hello.", template=template)
    assert read_template(str(path)) == template
    assert refuses_system(str(path)) is refuses


def test_what_is_no_model_file_has_no_template(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelFileError):
        read_template(str(tmp_path / "x.gguf"))
