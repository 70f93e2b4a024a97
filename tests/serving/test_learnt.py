"""What loads have shown holds for the files that they were of."""

from __future__ import annotations

from modelpipes.serving.bytes import Bytes
from modelpipes.serving.learnt import Learnt, Load

OLD, NEW = ((1, 2),), ((1, 3),)


def test_what_was_measured_of_a_file_is_nothing_of_the_one_that_replaced_it() -> None:
    learnt, load = Learnt(), Load(OLD, 2.0, Bytes.of(5))
    learnt.note("a", load)
    assert learnt.of("a", OLD) == load
    assert learnt.of("a", NEW) is None and learnt.of("b", OLD) is None
    learnt.note("a", Load(NEW, 1.0, None))
    assert learnt.of("a", NEW) == Load(NEW, 1.0, None)
    assert learnt.of("a", OLD) is None


def test_a_load_that_nobody_measured_leaves_what_was_measured() -> None:
    learnt = Learnt()
    learnt.note("a", Load(OLD, 2.0, Bytes.of(5)))
    learnt.note("a", Load(OLD, 1.0, None))
    assert learnt.of("a", OLD) == Load(OLD, 1.0, Bytes.of(5))
    learnt.forget("a")
    learnt.forget("a")
    assert learnt.of("a", OLD) is None
