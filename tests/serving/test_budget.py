from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import modelpipes
from modelpipes.engine import admission
from modelpipes.engine.arguments import batch_tokens
from modelpipes.engine.locate import find_model
from modelpipes.errors import FileError, ModelFileError, UsageError
from modelpipes.fit import EngineSpec, predict_memory
from modelpipes.fit.cuda import OVERHEAD_BYTES
from modelpipes.fit.spec import Backend, spec_of
from modelpipes.gguf.header import read_header
from modelpipes.machine.cards import Card, Cards
from modelpipes.machine.holdings import Taken, unshared_bytes
from modelpipes.machine.memory import available_bytes, read_memory
from modelpipes.machine.processes import family, resident_bytes
from modelpipes.serving import budget
from modelpipes.serving.budget import (
    LOOK_STEP,
    Ours,
    Place,
    auto_bytes,
    charge,
    find_budget,
    look_again,
    measure,
    settle,
    settled,
)
from modelpipes.serving.bytes import Bytes
from tests.gguf.make import File, TensorSpec
from tests.machine.driver import build_driver
from tests.models import scripted_model

MIB = 1 << 20
CPU = Place(0, False)
IN_NAME_ONLY = Place(0, True)
CARD = Place(1, True)
PACKAGE = Path(modelpipes.__file__).parent.parent


@dataclass
class Clock:
    now: float = 0.0
    waits: list[float] = field(default_factory=list)

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(scripted_model(tmp_path_factory.mktemp("models") / "m.gguf", pad_mib=4))


def with_driver(folder: Path, script: str, **environment: str) -> Any:
    """What a script prints as JSON where the driver's library is the one in this folder."""
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    script = f"import json; from modelpipes.serving import budget; from modelpipes.serving.bytes import Bytes\n{script}"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=kept | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(PACKAGE)} | environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_driver(tmp_path_factory.mktemp("driver"))


# What may be used


def test_without_a_card_the_hosts_free_memory_but_for_the_reserve_is_the_budget() -> None:
    free = available_bytes()
    limits, place, words = find_budget(None, None, free // 2, has_gpu=False)
    assert (limits.card, place) == (0, CPU)
    assert limits.host == pytest.approx(free / 2, rel=0.2)
    assert words.endswith("of host memory")


def test_a_number_is_a_card_in_name_only_and_the_reserve_is_not_taken_from_it() -> None:
    assert find_budget(16 * 10**9, 10**9, 10**9, has_gpu=False)[:2] == (Bytes.of(16 * 10**9, 10**9), IN_NAME_ONLY)


def test_auto_is_what_is_free_on_the_card_but_for_the_reserve_of_each(driver: Path) -> None:
    script = "print(json.dumps(budget.find_budget(None, 7, 1 << 30, has_gpu=True)[0].card))"
    assert with_driver(driver, script) == (14000 - 1024) * MIB
    assert with_driver(driver, script, FAKE_CARDS="2") == (14000 + 13999 - 2 * 1024) * MIB


def test_what_our_own_engines_hold_is_ours_when_the_budget_is_found_again(driver: Path) -> None:
    script = "print(json.dumps(budget.find_budget(None, 7, 0, has_gpu=True, held=Bytes.of(1 << 30))[0].card))"
    assert with_driver(driver, script) == (14000 + 1024) * MIB


def test_an_engine_without_a_back_end_for_the_card_has_no_card(driver: Path) -> None:
    script = "print(json.dumps(budget.find_budget(None, 7, 0, has_gpu=False)[0].card))"
    assert with_driver(driver, script) == 0
    assert CARD.for_engine(has_gpu=False) == CPU
    assert CARD.for_engine(has_gpu=True) == CARD
    assert IN_NAME_ONLY.for_engine(has_gpu=False) == IN_NAME_ONLY


AMOUNTS = st.integers(0, 10**12)


@given(AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS)
def test_loading_and_unloading_our_own_changes_no_automatic_budget(
    free: int, held: int, others: int, reserve: int
) -> None:
    total = free + held + others
    assert auto_bytes(free, held, total, reserve) == auto_bytes(free + held, 0, total, reserve) >= 0


@given(AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS)
def test_an_automatic_budget_is_never_more_than_there_is(free: int, held: int, total: int, reserve: int) -> None:
    assert 0 <= auto_bytes(free, held, total, reserve) <= max(0, total - reserve)


def test_pages_of_our_model_files_that_are_available_at_once_are_not_counted_twice() -> None:
    total = read_memory().total_bytes
    assert find_budget(None, None, 0, has_gpu=False, held=Bytes.of(0, total))[0].host == total


def test_nvml_without_a_card_leaves_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "find_visible_cards", Cards)
    limits, place, words = find_budget(None, 7, 10**9, has_gpu=True)
    assert (limits, place, words) == (Bytes.of(0, 7), CPU, "7 B of host memory")


def test_a_number_beside_a_card_is_the_budget_and_the_words_name_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(index=0, name="NVIDIA GeForce RTX 4080", total_bytes=16 << 30, free_bytes=15 << 30)
    monkeypatch.setattr(admission, "find_visible_cards", lambda: Cards((card,)))
    limits, place, words = find_budget(8 << 30, 1 << 30, 10**9, has_gpu=True)
    assert (limits, place) == (Bytes.of(8 << 30, 1 << 30), CARD)
    assert words == "8.0 GiB of NVIDIA GeForce RTX 4080, 1.0 GiB of host memory"


def test_a_card_that_others_have_filled_leaves_nothing_rather_than_less(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(index=0, name="RTX 4080", total_bytes=16 << 30, free_bytes=5)
    monkeypatch.setattr(admission, "find_visible_cards", lambda: Cards((card,)))
    assert find_budget(None, 7, 10**9, has_gpu=True)[0].card == 0


# What a model will take


def predict(path: str, place: Place, **more: Any) -> Bytes:
    return budget.Demand(spec_of(path, **more), place)()


def test_on_a_card_the_prediction_has_the_runtimes_overhead(model: str) -> None:
    memory = predict_memory(read_header(model), EngineSpec(n_ubatch=batch_tokens(1, on_cpu=False), backend="cuda"))
    assert predict(model, CARD) == Bytes.of(memory.device_bytes, memory.host.total_bytes)
    assert memory.device_bytes > OVERHEAD_BYTES


def test_on_the_cpu_all_of_it_is_the_hosts(model: str) -> None:
    memory = predict_memory(
        read_header(model), EngineSpec(n_ubatch=batch_tokens(1, on_cpu=True), n_devices=0, n_gpu_layers=0)
    )
    assert predict(model, CPU) == Bytes.of(0, memory.host.total_bytes)


def test_a_card_in_name_only_is_charged_and_the_host_pays_all_the_same(model: str) -> None:
    taken = predict(model, IN_NAME_ONLY)
    assert taken.host == predict(model, CPU).host
    assert os.path.getsize(model) // 2 < taken.card < predict(model, CARD).card


@pytest.mark.parametrize("place", [CPU, IN_NAME_ONLY, CARD])
def test_the_packaged_model_takes_what_fit_predicts(place: Place) -> None:
    path = find_model("tiny-chat")
    header = read_header(path)
    devices = 1 if place.is_charged else 0
    backend: Backend = "cuda" if place.n_devices else "generic"
    given = EngineSpec(n_ubatch=batch_tokens(1, on_cpu=not place.n_devices), backend=backend)
    card = predict_memory(header, replace(given, n_devices=devices)).device_bytes if devices else 0
    host = predict_memory(
        header, replace(given, n_devices=place.n_devices, n_gpu_layers=None if place.n_devices else 0)
    ).host
    assert predict(path, place) == Bytes.of(card, host.total_bytes)


def test_a_batch_is_predicted_as_the_engine_is_given_it(model: str) -> None:
    # It was predicted by what the arguments say of the layers, and given by what the table says.
    memory = predict_memory(
        read_header(model),
        EngineSpec(n_ubatch=batch_tokens(1, on_cpu=False), n_gpu_layers=0, backend="cuda"),
    )
    assert predict(model, CARD, engine_args=["-ngl", "0"]) == Bytes.of(memory.device_bytes, memory.host.total_bytes)


def test_the_trained_context_is_what_an_engine_argument_of_0_asks_for(model: str) -> None:
    trained = read_header(model).metadata["llama.context_length"]
    assert isinstance(trained, int)
    demand = budget.Demand(spec_of(model, engine_args=["-c", "0"]), CPU)
    assert demand.context_size == trained
    assert demand() == predict(model, CPU, ctx_size=trained)
    less = budget.Demand(spec_of(model, ctx_size=trained // 2), CPU)()
    assert "would fit, and engine_args ask for more" in demand.advise(less)


def test_layers_that_an_engine_argument_asks_for_are_not_to_be_taken_back_by_a_key(model: str) -> None:
    demand = budget.Demand(spec_of(model, engine_args=["-ngl", "99"]), CARD)
    limits = Bytes.of(demand(gpu_layers=1).card, 1 << 40)
    assert demand.advise(limits) == "1 layers on the card would fit, and engine_args ask for more"


def write_new_architecture(path: Path) -> None:
    entries = [("general.architecture", "string", "brandnew"), ("brandnew.block_count", "u32", 1)]
    path.write_bytes(bytes(File(entries, [TensorSpec("blk.0.attn_q.weight", (32, 32))])))


def test_a_model_of_an_unknown_architecture_is_its_weights_mostly(tmp_path: Path) -> None:
    # A key that is missing by the rules of those known left the model out.
    path = tmp_path / "new.gguf"
    write_new_architecture(path)
    assert predict(str(path), CPU) == Bytes.of(0, int(path.stat().st_size * budget.UNKNOWN_SHARE))


def test_where_a_model_cannot_be_predicted_the_files_beside_it_count_too(tmp_path: Path) -> None:
    new, other = tmp_path / "new.gguf", tmp_path / "other.gguf"
    for path in (new, other):
        write_new_architecture(path)
    size = new.stat().st_size + other.stat().st_size
    needs = predict(str(new), CPU, engine_args=["--lora", str(other)])
    assert needs == Bytes.of(0, int(size * budget.UNKNOWN_SHARE))
    with pytest.raises(ModelFileError, match="missing"):
        predict(str(new), CPU, engine_args=["--lora", str(tmp_path / "missing")])


def test_a_context_is_that_of_each_sequence(model: str) -> None:
    four, whole = (
        predict_memory(
            read_header(model),
            EngineSpec(n_ctx=n_ctx, n_parallel=4, n_ubatch=batch_tokens(4, on_cpu=False), backend="cuda"),
        )
        for n_ctx in (4 * 1024, 1024)
    )
    assert predict(model, CARD, ctx_size=1024, parallel=4).card == four.device_bytes > whole.device_bytes


def unplannable(folder: Path) -> str:
    """A model file that says what it is and nothing that memory follows from, as a projector does."""
    path = folder / "clip.gguf"
    writer = gguf.GGUFWriter(str(path), "clip")
    writer.add_tensor("v.weight", np.zeros((1024, 64), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


@pytest.mark.parametrize(
    ("place", "gpu_layers", "on_card", "overheads", "on_host"),
    [
        (CPU, None, False, 0, True),
        (IN_NAME_ONLY, None, True, 0, True),
        (IN_NAME_ONLY, 0, False, 0, True),
        (CARD, None, True, 1, False),
        (CARD, 5, True, 1, True),  # how much that is nobody knows
        (CARD, 0, False, 1, True),
        (Place(2, True), None, True, 2, False),
    ],
)
def test_a_model_whose_memory_cannot_be_predicted_takes_its_file_and_a_fifth(
    place: Place, gpu_layers: int | None, on_card: bool, overheads: int, on_host: bool, tmp_path: Path
) -> None:
    path = unplannable(tmp_path)
    with pytest.raises(FileError):
        predict_memory(read_header(path), EngineSpec())
    whole = int(os.path.getsize(path) * 1.2)
    taken = predict(path, place, gpu_layers=gpu_layers)
    assert taken == Bytes.of(whole * on_card + overheads * OVERHEAD_BYTES, whole * on_host)


def test_an_embedding_model_is_predicted_as_any_other(tmp_path: Path) -> None:
    path = tmp_path / "bert.gguf"
    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tensor("token_embd.weight", np.zeros((1 << 14, 64), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert predict(str(path), CPU).host > 2 * 64 << 14
    assert predict(str(path), CARD).card >= OVERHEAD_BYTES


def test_more_sequences_and_a_wider_cache_take_more_and_fewer_layers_take_less(model: str) -> None:
    least = predict(model, CARD)
    assert predict(model, CARD, parallel=4).card > least.card
    assert predict(model, CARD, kv_type="f32").card > least.card
    some = predict(model, CARD, gpu_layers=1)
    assert some.card < least.card and some.host > least.host


def test_ones_own_estimate_is_what_counts_wherever_it_is_charged(model: str, tmp_path: Path) -> None:
    own = 123 * MIB
    predicted = predict(model, CARD)
    assert predict(model, CARD, memory=own) == Bytes.of(own, predicted.host)
    assert predict(model, CPU, memory=own) == Bytes.of(0, own)
    assert predict(unplannable(tmp_path), CARD, memory=own) == Bytes.of(own, 0)
    assert predict(unplannable(tmp_path), CPU, memory=own) == Bytes.of(0, own)
    demands = [budget.Demand(spec_of(model, memory=memory), CARD) for memory in (own, None)]
    assert [demand.estimate for demand in demands] == ["own", "exact"]


def test_settings_that_the_engine_would_refuse_are_refused(model: str) -> None:
    with pytest.raises(UsageError, match="q9"):
        predict(model, CPU, kv_type="q9")


def test_what_is_no_model_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(FileError):
        predict(str(tmp_path / "m.gguf"), CPU)


# A second look


def looked(driver: Path, memory: str, ours: str = "pids=(), used=Bytes.of(0, 0), is_steady=True", **fake: str) -> int:
    """The card's limit after a look, where it was 1 GiB; `memory` are card, host and reserve as the file has them."""
    script = (
        f"ours = budget.Ours({ours})\nplace = budget.Place(1, True)\n"
        f"print(json.dumps(budget.look_again(Bytes.of(1 << 30, 7), ours, place, {memory}).card))"
    )
    found: int = with_driver(driver, script, **fake)
    return found


def test_what_others_took_of_the_card_and_left_is_seen(driver: Path) -> None:
    assert looked(driver, "None, 7, 1 << 30") == (14000 - 1024) * MIB
    assert looked(driver, "None, 7, 1 << 30", FAKE_USED_MIB="12376") == (4000 - 1024) * MIB
    assert looked(driver, "None, 7, 1 << 30", FAKE_USED_MIB="16376") == 0


def test_a_budget_that_a_person_wrote_is_not_looked_at(driver: Path) -> None:
    assert looked(driver, "1 << 30, 7, 0") == 1 << 30


def test_what_our_engines_hold_is_ours_by_the_drivers_own_figures_also_while_they_load(driver: Path) -> None:
    pid = os.getpid()
    ours = f"pids=({pid},), used=Bytes.of(8 << 30, 0), is_steady=False"  # charged with more than it has taken so far
    held = {"FAKE_PIDS": f"{pid}:3000", "FAKE_USED_MIB": "5376"}
    assert looked(driver, "None, 7, 0", ours, **held) == (11000 + 3000) * MIB


def test_where_the_driver_does_not_say_whose_it_is_nothing_is_concluded_amid_a_load(driver: Path) -> None:
    hidden = {"FAKE_PIDS": f"{os.getpid()}:-1", "FAKE_USED_MIB": "5376"}
    for is_steady, limit in ((False, 1 << 30), (True, (11000 + 2000) * MIB)):
        ours = f"pids=({os.getpid()},), used=Bytes.of(2000 << 20, 0), is_steady={is_steady}"
        assert looked(driver, "None, 7, 0", ours, **hidden) == limit


def test_a_card_that_has_gone_changes_no_budget(driver: Path) -> None:
    assert looked(driver, "None, 7, 0", FAKE_CARDS="0") == 1 << 30


def test_without_a_card_the_hosts_memory_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [8 << 30]
    monkeypatch.setattr(admission, "available_bytes", lambda: free[0])
    nobody = budget.Ours((), Bytes.of(0, 0), True)

    def look(limits: Bytes) -> int:
        return budget.look_again(limits, nobody, CPU, None, None, 1 << 30).host

    assert look(Bytes.of(0, 7 << 30)) == 7 << 30
    free[0] = 3 << 30  # another program has come
    assert look(Bytes.of(0, 7 << 30)) == 2 << 30
    free[0] -= 1  # which is no news
    assert look(Bytes.of(0, 2 << 30)) == 2 << 30


def test_memory_that_engines_allocated_is_theirs_and_pages_of_files_are_anybodys() -> None:
    held = unshared_bytes([os.getpid()])
    assert 0 < held <= resident_bytes(os.getpid()) + sum(map(resident_bytes, family(os.getpid())))
    assert unshared_bytes([]) == 0


@given(AMOUNTS, AMOUNTS, AMOUNTS, st.integers(budget.LOOK_STEP, 1 << 30))
def test_what_is_loaded_stays_for_small_moves_and_a_limit_is_never_far_from_what_was_found(
    found: int, before: int, used: int, slack: int
) -> None:
    limit = budget.settled(found, before, used, slack)
    assert abs(limit - found) <= slack + budget.LOOK_STEP
    if found + slack >= used:
        assert limit >= used
    if used <= before and abs(before - found) < budget.LOOK_STEP and found >= used:
        assert limit == before


# What counts


def test_a_process_that_has_gone_counts_as_predicted() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert measure(process.pid, Bytes.of(3, 5), IN_NAME_ONLY) == Bytes.of(3, 5)


amounts = st.integers(0, 10**11)


@given(amounts, amounts)
def test_while_it_loads_the_prediction_counts(card: int, host: int) -> None:
    assert charge(Bytes.of(card, host), None) == Bytes.of(card, host)


@given(amounts, amounts, st.none() | amounts, amounts)
def test_once_it_is_ready_what_it_holds_counts_and_what_may_still_grow(
    card: int, host: int, taken_card: int | None, taken_host: int
) -> None:
    counted = charge(Bytes.of(card, host), Taken(taken_card, taken_host))
    assert counted.host == max(host, taken_host)
    if taken_card is None:
        assert counted.card == card
    else:
        assert taken_card <= counted.card <= taken_card + OVERHEAD_BYTES
        assert counted.card <= max(card, taken_card)


# Until it is free


ENGINE = 8 << 30


def test_memory_that_comes_back_at_once_is_not_waited_for() -> None:
    clock = Clock()
    assert settle(ENGINE, 50, lambda: 50 + ENGINE, clock=lambda: clock.now, wait=clock.wait)
    assert clock.waits == []


def test_memory_that_comes_back_late_is_waited_for_in_steps_of_250_ms() -> None:
    clock = Clock()
    late = 50 + int(ENGINE * 0.8)
    assert settle(ENGINE, 50, lambda: 50 if clock.now < 1 else late, clock=lambda: clock.now, wait=clock.wait)
    assert clock.waits == [0.25] * 4


def test_memory_that_never_comes_back_is_given_up_after_5_s() -> None:
    clock = Clock()
    assert not settle(ENGINE, 50, lambda: 50, clock=lambda: clock.now, wait=clock.wait)
    assert clock.now == 5


@given(st.integers(0, 10**11), st.integers(0, 10**11))
def test_what_an_engine_was_charged_with_and_never_took_is_not_waited_for(predicted: int, taken: int) -> None:
    clock = Clock()
    charged = charge(Bytes.of(predicted), Taken(taken, 0)).card
    assert settle(charged, 0, lambda: taken, clock=lambda: clock.now, wait=clock.wait)
    assert clock.waits == []


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40), st.integers(0, 1 << 40), st.integers(0, 1 << 32))
def test_a_look_again_follows_what_is_free_but_for_what_moves_all_the_time(
    found: int, before: int, used: int, slack: int
) -> None:
    limit = settled(found, before, used, slack)
    if found >= used and abs(found - before) >= LOOK_STEP:
        assert limit == found
    if used - slack <= found < used:
        assert limit >= used  # for so little nothing is taken from what is loaded
    if found + slack < used:
        assert limit == (before if abs(found - before) < LOOK_STEP and before >= used else found)
    assert settled(found, limit, used, slack) == limit  # another look that finds the same changes nothing


def test_what_others_took_is_seen_at_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 8 << 30
    monkeypatch.setattr(budget, "find_free_space", lambda *, has_gpu: admission.FreeSpace((), free))
    total = read_memory().total_bytes
    nobody = Ours((), Bytes.of(0, 0), is_steady=True)
    limits = look_again(Bytes.of(0, 0), nobody, CPU, None, None, 1 << 30)
    assert limits.host == min(free, total) - (1 << 30)
    free = 5 << 30  # another program took three
    assert look_again(limits, nobody, CPU, None, None, 1 << 30).host == min(free, total) - (1 << 30)
    assert look_again(limits, nobody, CPU, None, 6 << 30, 1 << 30).host == limits.host  # a budget in figures stays
