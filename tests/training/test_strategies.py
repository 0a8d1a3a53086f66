"""What strategies declare, and who acts on it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

from adapters_pl import CausalLMModule, UserError
from adapters_pl.training.strategies import (
    FullyShardedStrategy,
    division_of,
    gathered_answers,
    strategy_named,
    traits_of,
)


@pytest.mark.parametrize("strategy", [None, "ddp", SingleDeviceStrategy(torch.device("cpu")), DDPStrategy()])
def test_a_strategy_that_declares_nothing_keeps_all_of_the_base_and_divides_the_rows(strategy):
    traits = traits_of(strategy)
    assert not any((traits.divides_base, traits.receives_values))
    assert traits.any_at_work is None
    assert traits.build_base(lambda: "loaded", lambda: "skeleton") == "loaded"


def test_the_processes_of_a_divided_base_tell_each_other_whether_one_is_at_work(monkeypatch):
    strategy, others = strategy_named("fsdp"), []

    def decided(self, own, all=True):
        assert not all
        return any([own, *others])

    monkeypatch.setattr(FullyShardedStrategy, "reduce_boolean_decision", decided)
    for others[:] in ([False], [True]):
        assert strategy.any_at_work(True)
        assert strategy.any_at_work(False) == others[0]


def test_a_divided_base_is_read_by_the_first_process_alone(monkeypatch):
    strategy = strategy_named("fsdp")
    assert strategy.divides_base
    for first in (True, False):
        monkeypatch.setattr(FullyShardedStrategy, "is_global_zero", first)
        assert strategy.receives_values != first


@pytest.fixture
def two_processes(monkeypatch):
    """The first of two, of which the other has answered "theirs"."""

    def gather(parts, value):
        parts[:] = [value, "theirs"]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)


@pytest.mark.parametrize("strategy", [DDPStrategy(), FullyShardedStrategy()])
def test_answers_are_gathered_since_rows_were_divided(two_processes, strategy):
    assert gathered_answers(strategy, "ours") == ["ours", "theirs"]


@pytest.mark.parametrize("strategy", [DDPStrategy(), FullyShardedStrategy()])
def test_one_process_has_all_answers(strategy):
    assert gathered_answers(strategy, "ours") == ["ours"]


def test_a_quantised_base_is_not_divided(make_base):
    module = CausalLMModule(str(make_base()), quantization="4bit")
    module._trainer = SimpleNamespace(strategy=FullyShardedStrategy())
    with pytest.raises(UserError, match="A quantised base cannot be sharded"):
        module.build_base()


@pytest.mark.parametrize(
    ("strategy", "division"),
    [
        ("auto", ("ddp", False)),
        ("ddp", ("ddp", False)),
        ("fsdp", ("fsdp", False)),
        ("fsdp_cpu_offload", ("fsdp", True)),
        (FullyShardedStrategy(cpu_offload=True), ("fsdp", False)),
        (FSDPStrategy(), ("fsdp", False)),
        (DDPStrategy(), ("ddp", False)),
        (SimpleNamespace(class_path="adapters_pl.training.strategies.FullyShardedStrategy"), ("fsdp", False)),
        (
            SimpleNamespace(
                class_path="adapters_pl.training.strategies.FullyShardedStrategy", init_args={"cpu_offload": True}
            ),
            ("fsdp", True),
        ),
    ],
)
def test_how_a_strategy_lays_the_base_over_devices(strategy, division):
    assert division_of(strategy) == division


def test_a_misspelt_strategy_offers_the_nearest():
    with pytest.raises(UserError, match="there is none called 'fspd': did you mean 'fsdp'"):
        strategy_named("fspd")
