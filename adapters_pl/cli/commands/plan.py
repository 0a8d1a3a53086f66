"""``plan``: what adapters would train in a base, and the memory that takes, without reading a weight."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from jsonargparse import Namespace
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from adapters_pl.adapters import Adapter
from adapters_pl.adapters.base import refuse_same_names
from adapters_pl.cli.command_line import CommandLine
from adapters_pl.cli.configuration import find_own_modules
from adapters_pl.cli.main import DONE
from adapters_pl.cli.parser import ConfiguredCLI, attempt, refuse_saved_adapter
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.tables import print_table
from adapters_pl.models.placement import linear_sizes
from adapters_pl.models.slots import base_modules, place_of
from adapters_pl.training.planning.memory import Estimate, MemoryModel, Setup
from adapters_pl.training.planning.memory_advice import Forecast, amount

Shape = tuple[int, ...]


@dataclass(frozen=True)
class PlannedModules:
    """Modules that differ only in their layer, and what one adapter puts on each of them.

    Attributes:
        adapter: the method and the adapter's name.
        modules: their path, the layers in braces (``model.layers.{0-31}.self_attn.q_proj``).
        count: how many they are.
        base_shape: (out_features, in_features) of the adapted module, ``None`` where it is no linear one.
        shapes: of the adapter's parameters on one of them, by name.
        parameters: of the adapter on all of them.
    """

    adapter: str
    modules: str
    count: int
    base_shape: Shape | None
    shapes: dict[str, Shape]
    parameters: int


@dataclass(frozen=True)
class Plan:
    """What adapters would train in a base.

    Attributes:
        rows: in the order of the adapters, and of the modules in the model.
        base: parameters of the base, shared ones counted once.
    """

    rows: tuple[PlannedModules, ...]
    base: int

    @property
    def trainable(self) -> int:
        """Parameters of all adapters."""
        return sum(row.parameters for row in self.rows)

    @property
    def share(self) -> float:
        """The adapters' part of all parameters, theirs and the base's, in 0..1."""
        return self.trainable / (self.trainable + self.base)


def plan(model: PreTrainedModel, adapters: Sequence[Adapter]) -> Plan:
    """What ``adapters`` would train in ``model``, which is left as it was; nothing is drawn or computed.

    Args:
        model: on any device, the meta device as well.
        adapters: as they would be trained, together.

    Raises:
        UserError: an adapter does not fit the model.
    """
    own = {p for _, module in base_modules(model) for p in module.parameters(recurse=False)}
    base = sum(p.numel() for p in own)
    refuse_same_names(adapters)
    rows: list[PlannedModules] = []
    attached = []
    try:
        for adapter in adapters:
            if adapter.attach_to(model, seed=None):
                attached.append(adapter)
            rows += _rows(model, adapter)
    finally:
        for adapter in reversed(attached):
            adapter.detach_from(model)
    return Plan(tuple(rows), base)


def _place(model: PreTrainedModel, name: str) -> tuple[str, str]:
    """The path of the module that a parameter adapts, and what the parameter is called there."""
    if place := place_of(name):
        return place.site, place.own
    parts = name.split(".")
    for end in range(1, len(parts)):
        if hasattr(model.get_submodule(path := ".".join(parts[:end])), "base_layer"):
            return path, ".".join(parts[end:])
    return ".".join(parts[:-1]), parts[-1]


def _rows(model: PreTrainedModel, adapter: Adapter) -> list[PlannedModules]:
    """The adapter's parameters by module, like modules of several layers in one row."""
    on_module: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in adapter.adapter_parameters(model).items():
        site, own = _place(model, name)
        on_module.setdefault(site, {})[own] = parameter
    alike: dict[tuple[Any, ...], list[str]] = {}
    for path, parameters in on_module.items():
        module = model.get_submodule(path)
        sizes = linear_sizes(getattr(module, "base_layer", module))  # which peft puts a layer of its own around
        shapes = tuple((name, tuple(parameter.shape)) for name, parameter in parameters.items())
        pattern = re.sub(r"\.\d+\.", ".{}.", path, count=1)
        alike.setdefault((pattern, sizes and sizes[::-1], shapes), []).append(path)
    return [
        PlannedModules(
            adapter=f"{type(adapter).__name__} '{adapter.name}'",
            modules=_collapsed(pattern, paths),
            count=len(paths),
            base_shape=base_shape,
            shapes=dict(shapes),
            parameters=sum(parameter.numel() for path in paths for parameter in on_module[path].values()),
        )
        for (pattern, base_shape, shapes), paths in alike.items()
    ]


def _collapsed(pattern: str, paths: list[str]) -> str:
    """``a.{0-3,6}.b`` for the paths a.0.b to a.3.b and a.6.b; a single path stays as it is."""
    if len(paths) == 1:
        return paths[0] or "(the model itself)"
    before = pattern.index("{}")
    layers = [int(path[before:].partition(".")[0]) for path in paths]
    return pattern.replace("{}", "{" + ",".join(_spans(layers)) + "}")


def _spans(numbers: Iterable[int]) -> list[str]:
    """``0-3`` and ``6`` for 0, 1, 2, 3, 6."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    return ["-".join(map(str, span)) for span in spans]


def plan_table(planned: Plan, title: str) -> Table:
    """One line a row, and the totals below."""
    table = Table(title=title, title_justify="left", show_footer=True)
    table.add_column("module", overflow="fold")
    table.add_column("base", justify="right")
    table.add_column("adapter's parameters on each", overflow="fold")
    table.add_column("parameters", justify="right", footer=f"{planned.trainable:,}")
    for row in planned.rows:
        shapes = ", ".join(f"{name} {_shown(shape)}" for name, shape in row.shapes.items())
        table.add_row(row.modules, _shown(row.base_shape), shapes, f"{row.parameters:,}")
    return table


def _shown(shape: Shape | None) -> str:
    return "-" if shape is None else " × ".join(map(str, shape))


def memory_table(estimate: Estimate) -> Table:
    """What a device needs at the highest moment of training, and what for."""
    table = Table(show_footer=True)
    table.add_column("on each device", footer="total")
    table.add_column("memory", justify="right", footer=amount(estimate.total))
    for name, size in estimate.parts.items():
        table.add_row(name, "not known" if name == "activations" and estimate.problem else amount(size))
    return table


class PlanCLI(ConfiguredCLI):
    """The configuration of a training run, of which only base and adapters are built.

    Everything that ``fit`` reads is read, so that its recipes and options can be given as they are; the data and the
    trainer stay mere configuration, so that what this machine has not can be planned as well.
    """

    needs_data = False
    method = "fit"
    #: The sections that are built.
    built: ClassVar[tuple[str, ...]] = ("model", "adapter")

    def _set_seed(self) -> None:
        """Nothing is drawn."""

    def instantiate_classes(self) -> None:
        """Build the module, which loads nothing yet, the adapters, and what else is in ``built``."""
        self.config_init = self.parser.instantiate_classes(Namespace({key: self.config[key] for key in self.built}))
        for key in ("optimizer", "lr_scheduler"):
            self.config_init[key] = self.config.get(key)
        self.model = self.config_init.model
        self._add_configure_optimizers_method_to_model(None)

    def forecast(self, skeleton: PreTrainedModel) -> Forecast:
        """What the run would need, with ``skeleton`` the base on the meta device, which gets the adapters."""
        for adapter in self.adapters:
            adapter.attach_to(skeleton, seed=None)
        data = (self.config.data or {}).get("init_args") or {}
        setup = Setup.of(self.model, self.config.trainer, data)
        return Forecast(MemoryModel(self.model, skeleton, self.adapters), setup)


def main(line: CommandLine, debug: bool = False) -> int:
    """Print the plan of a configuration; nothing is written, and of the base only its configuration is read."""
    return attempt("plan", partial(_plan, line), debug)


def _plan(line: CommandLine) -> int:
    transformers_logging.set_verbosity_error()
    refuse_saved_adapter(line, "it plans a new training")
    find_own_modules(line)
    cli = PlanCLI(line)
    if not cli.adapters:
        raise UserError("Nothing to plan: there is no adapter. Pass --adapter LoRA.")
    model = cli.model.source.skeleton()
    planned = plan(model, cli.adapters)
    forecast = cli.forecast(model)
    summary = forecast.line()
    names = ", ".join(dict.fromkeys(row.adapter for row in planned.rows))
    print_table(plan_table(planned, f"{names} in {cli.model.base} ({type(model).__name__})"))
    print(f"trainable parameters: {planned.trainable:,}")
    print(f"base parameters: {planned.base:,}")
    print(f"trainable share: {100 * planned.share:.4f}% of {planned.trainable + planned.base:,}")
    print_table(memory_table(forecast.estimate))
    setup = forecast.setup
    print(f"batches of {setup.batch_size} rows of {setup.tokens} tokens, all of them labelled")
    print(f"host: about {amount(forecast.estimate.host)} at the highest moment of loading or training")
    print(summary)
    return DONE
