"""How much memory training takes on each device, known before a weight is loaded, and what makes it less."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import AdamW
from transformers import PretrainedConfig, PreTrainedModel

from adapters_pl.adapters import Adapter, adapter_layers
from adapters_pl.answers import protocol_named
from adapters_pl.data.questions import NEW_TOKENS
from adapters_pl.inputs.errors import first_line
from adapters_pl.models.base import context_length
from adapters_pl.models.discovery import architecture_of
from adapters_pl.models.placement import linear_modules
from adapters_pl.models.quantisation import quantisation_of
from adapters_pl.training.hardware import device_count
from adapters_pl.training.module import CausalLMModule
from adapters_pl.training.planning.tracing import Step, generation_peak, optimizer_bytes, training_peak, validation_peak
from adapters_pl.training.strategies import Division, division_of

T = TypeVar("T")

#: Lightning's precisions that change what everything is held in, and those that change what is computed in.
HELD = {"16-true": torch.float16, "bf16-true": torch.bfloat16, "64-true": torch.float64, "64": torch.float64}
_MIXED = {"16-mixed": torch.float16, "16": torch.float16, "bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Setup:
    """What the memory of a training run depends on, beside its base, its adapters and its optimizer.

    Attributes:
        batch_size: rows per process and batch.
        by_tokens: whether a number of tokens per batch says how many rows there are.
        eval_batch_size: rows in a batch of the validation; 0 where there is none.
        eval_new_tokens: of an answer that is written in the validation; 0 where only the loss is asked for.
        eval_beams: of the search by which it is written.
        tokens: of the longest row.
        dtype: of the base.
        precision: Lightning's.
        quantization: of the base's linear layers: ``8bit``, ``4bit`` or nothing.
        activation_checkpointing: whether decoder layers compute again what they do not keep.
        accumulate: batches in one optimizer step.
        accelerator: ``cuda``, or what works in the host's memory.
        devices: processes on each machine.
        nodes: machines.
        division: all of the base on ``one`` device or, under ``ddp``, on each; or a part of it on each (``fsdp``).
        cpu_offload: whether those parts stay in host memory.
    """

    batch_size: int = 4
    by_tokens: bool = False
    eval_batch_size: int = 0
    eval_new_tokens: int = 0
    eval_beams: int = 1
    tokens: int = 256
    dtype: torch.dtype = torch.float32
    precision: str = "32-true"
    quantization: str | None = None
    activation_checkpointing: bool = False
    accumulate: int = 1
    accelerator: str = "cpu"
    devices: int = 1
    nodes: int = 1
    division: Division = "one"
    cpu_offload: bool = False

    @classmethod
    def of(cls, module: CausalLMModule, trainer: Mapping[str, Any], data: Mapping[str, Any]) -> Setup:
        """What a command's configuration says, its sections ``trainer`` and ``data`` (the latter's arguments)."""
        accelerator, devices = device_count(trainer.get("accelerator"), trainer.get("devices"))
        division, offloaded = division_of(trainer.get("strategy") or "auto")
        nodes = int(trainer.get("num_nodes") or 1)
        longest = int(data.get("cutoff", cls.tokens))
        tokens = min(longest, context_length(module.config) or longest)
        most = data.get("max_tokens_per_batch")
        validates = data.get("val_size", 1) and trainer.get("limit_val_batches") != 0
        protocol = protocol_named(str(data.get("protocol", "strict")))
        answers = validates and module.monitor == "val_accuracy" and protocol.generates
        return cls(
            batch_size=max(1, most // tokens) if most else data.get("batch_size", cls.batch_size),
            by_tokens=bool(most),
            eval_batch_size=data.get("eval_batch_size", 8) if validates else 0,
            eval_new_tokens=(data.get("max_new_tokens") or max(NEW_TOKENS.values())) if answers else 0,
            eval_beams=protocol.beams,
            tokens=tokens,
            dtype=_stored_dtype(module) if module.source.dtype == "auto" else getattr(torch, module.source.dtype),
            precision=str(trainer.get("precision") or cls.precision),
            quantization=module.source.quantization or quantisation_of(module.config),
            activation_checkpointing=module.activation_checkpointing,
            accumulate=trainer.get("accumulate_grad_batches") or 1,
            accelerator=accelerator,
            devices=devices,
            nodes=nodes,
            division=division if devices * nodes > 1 else "one",
            cpu_offload=offloaded,
        )

    @property
    def parts(self) -> int:
        """Into how many parts base, gradients and optimizer state are divided."""
        return self.devices * self.nodes if self.division == "fsdp" else 1

    @property
    def on_host(self) -> bool:
        """Whether the devices' memory is the host's."""
        return self.accelerator != "cuda"


def _stored_dtype(module: CausalLMModule) -> torch.dtype:
    """What the base's weights are stored in, as far as its configuration says."""
    config: PretrainedConfig = module.config
    stored = config.dtype or config.get_text_config().dtype or torch.float32
    return getattr(torch, stored) if isinstance(stored, str) else stored


@dataclass(frozen=True)
class Estimate:
    """Bytes on each device at the highest moment of training, and on the machine.

    Attributes:
        base: the frozen weights; under FSDP this device's part, and the layers that are whole for the moment.
        adapter: what is trained, and what is saved beside it.
        gradients: of what is trained; twice under DDP, whose buckets hold them again.
        optimizer: its state.
        activations: whatever else is alive at that moment.
        host: of all processes on one machine: the bases while they are loaded, unless they are mapped from files in
            the dtype that they have there, or what stays in its memory, whichever is more.
        problem: why ``activations`` could not be traced and are 0; ``None`` if they could.
    """

    base: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    host: int
    problem: str | None = None

    @property
    def parts(self) -> dict[str, int]:
        """What the total is made of, by name."""
        return {name: getattr(self, name) for name in ("base", "adapter", "gradients", "optimizer", "activations")}

    @property
    def total(self) -> int:
        """Bytes on each device."""
        return sum(self.parts.values())


class MemoryModel:
    """Estimates for one base with its adapters, under any :class:`Setup`.

    The activations come from :mod:`adapters_pl.training.planning.tracing`: rows as long as allowed and every token of
    them labelled, so that no batch takes more.

    Args:
        module: whose step is traced; its base is not loaded.
        skeleton: the base on the meta device, with ``adapters`` in it.
        adapters: what is trained.
    """

    def __init__(self, module: CausalLMModule, skeleton: PreTrainedModel, adapters: Sequence[Adapter]) -> None:
        self.module = module
        self.skeleton = skeleton
        self.adapters = adapters
        self._traced: dict[tuple[Any, ...], Any] = {}

    def estimate(self, setup: Setup) -> Estimate:
        """What training under ``setup`` takes."""
        held = self.held(setup)
        try:
            activations = self._activations(setup)
        except Exception as error:  # a model may ask for values, and there are none
            return replace(held, problem=f"{type(error).__name__}: {first_line(error)}")
        host = held.host + (setup.devices * activations if setup.on_host else 0)
        return replace(held, activations=activations, host=host)

    def held(self, setup: Setup) -> Estimate:
        """The same without the activations, which alone take time to find."""
        base = sum(self._base_sizes(setup).values())
        adapter = sum(self._own_sizes(setup).values())
        gradients = self._trained(setup)
        each = [-(-size // setup.parts) for size in (base, adapter, gradients, self._optimizer(setup)[0])]
        if setup.division == "ddp":
            each[2] *= 2
        kept = setup.devices * sum(each) if setup.on_host or setup.cpu_offload else 0
        if setup.cpu_offload and not setup.on_host:
            each = [0, 0, 0, 0]
        if setup.division == "fsdp":
            outside, layer = self._units(setup)
            gathered = outside + 3 * layer
            each[0] += gathered
            kept += setup.devices * gathered if setup.on_host else 0
        mapped = setup.dtype == _stored_dtype(self.module) and not self.module.source.random_init
        # Under FSDP one process reads the base and hands the others their parts.
        loading = 0 if mapped else base if setup.division == "fsdp" else base * setup.devices
        return Estimate(each[0], each[1], each[2], each[3], activations=0, host=max(kept, loading))

    def _trained(self, setup: Setup) -> int:
        """Bytes of what is trained."""
        return sum(_bytes(p, _own_dtype(setup)) for group in self._groups for p in group["params"])

    @cached_property
    def _groups(self) -> list[dict[str, Any]]:
        return [group for adapter in self.adapters for group in adapter.parameter_groups(self.skeleton)]

    def _own_sizes(self, setup: Setup) -> dict[str, int]:
        """Bytes of what the adapters' layers hold, by path."""
        return {
            f"{path}.{name}": _bytes(tensor, _own_dtype(setup))
            for path, layer in adapter_layers(self.skeleton).items()
            for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]
        }

    def _base_sizes(self, setup: Setup) -> dict[str, int]:
        """Bytes of the base's parameters and buffers, by path; shared ones once."""
        own = self._own_sizes(setup)
        sizes = {
            name: _bytes(parameter, HELD.get(setup.precision, setup.dtype))
            for name, parameter in self.skeleton.named_parameters()
            if name not in own
        }
        sizes.update({name: _bytes(b, b.dtype) for name, b in self.skeleton.named_buffers() if name not in own})
        for path, module in linear_modules(self.skeleton).items() if setup.quantization else ():
            weight: nn.Parameter = module.weight  # type: ignore[assignment]
            # A scale of 32 bits for every row; or one of 8 for every 64 weights, and one of 32 for every 256 of those.
            four_bit = weight.numel() // 2 + weight.numel() // 64 + weight.numel() // 4096
            sizes[f"{path}.weight"] = weight.numel() + 4 * len(weight) if setup.quantization == "8bit" else four_bit
        return sizes

    def _units(self, setup: Setup) -> tuple[int, int]:
        """Bytes of what FSDP gathers at once: what belongs to no layer, and the largest layer.

        The former is whole from the forward pass to the end of the backward pass. Of layers there is the one that
        computes, the buffer that it arrived in, and the buffer of the next one.
        """
        layers = architecture_of(self.skeleton).layers
        by_layer: dict[str, int] = {}
        for name, size in {**self._base_sizes(setup), **self._own_sizes(setup)}.items():
            inside = re.match(rf"{re.escape(layers)}\.(\d+)\.", name)
            layer = inside[1] if inside else ""
            by_layer[layer] = by_layer.get(layer, 0) + size
        return by_layer.pop("", 0), max(by_layer.values())

    def _optimizer(self, setup: Setup) -> tuple[int, int]:
        """Bytes of the optimizer's state, and what is alive beside it while it takes a step.

        An optimizer that runs on its own device alone (bitsandbytes') is taken for AdamW.
        """

        def traced() -> tuple[int, int]:
            groups = [
                {**group, "params": [nn.Parameter(p.to("meta", _own_dtype(setup))) for p in group["params"]]}
                for group in self._groups
            ]
            try:
                optimizer = (self.module.optimizer_factory or AdamW)(groups)
                for group in optimizer.param_groups if not setup.on_host else ():
                    # What torch chooses on CUDA for all parameters at once.
                    if group.get("foreach", False) is None and not group.get("fused"):
                        group["foreach"] = True
                return optimizer_bytes(optimizer)
            except Exception:
                return optimizer_bytes(AdamW(groups))

        return self._once(("optimizer", _own_dtype(setup), setup.on_host), traced)

    def _once(self, key: tuple[Any, ...], trace: Callable[[], T]) -> T:
        """What ``trace`` gives; where it was asked for by the same ``key`` before, what it gave then."""
        if key not in self._traced:
            self._traced[key] = trace()
        return self._traced[key]

    def _activations(self, setup: Setup) -> int:
        """The most that is alive beside base, adapter, gradients and optimizer at any moment."""
        step = Step(
            rows=setup.batch_size,
            tokens=setup.tokens,
            dtype=HELD.get(setup.precision, setup.dtype),
            own_dtype=_own_dtype(setup),
            # A CPU has no 16-mixed; Lightning takes bfloat16 instead.
            autocast=torch.bfloat16 if setup.precision in _MIXED and setup.on_host else _MIXED.get(setup.precision),
            quantization=setup.quantization,
            compute=torch.float32 if setup.on_host else setup.dtype,
            checkpointing=setup.activation_checkpointing,
            accumulates=setup.accumulate > 1,
            cuda=not setup.on_host,
        )
        answered = replace(step, rows=setup.eval_batch_size, checkpointing=False, accumulates=False)
        written = replace(answered, rows=answered.rows * setup.eval_beams)
        base, model, new = self.module, self.skeleton, setup.eval_new_tokens
        moments = [
            self._once(("train", step), lambda: training_peak(base, model, step)) - self._trained(setup),
            self._optimizer(setup)[1],
        ]
        if answered.rows:
            moments.append(self._once(("validate", answered), lambda: validation_peak(base, model, answered)))
        if new:
            generated = self._once(("generate", written, new), lambda: generation_peak(base, model, written, new))
            moments.append(generated)
        if setup.division == "fsdp":
            # The buffer in which everything outside the layers arrives is there until the first layer has arrived.
            outside, layer = self._units(setup)
            moments.append(outside - layer)
        return max(moments)


def _own_dtype(setup: Setup) -> torch.dtype:
    """What adapters are held in: float32, unless Lightning's precision changes everything."""
    return HELD.get(setup.precision, torch.float32)


def _bytes(tensor: torch.Tensor, dtype: torch.dtype) -> int:
    """Of ``tensor``, held in ``dtype`` if it holds floating-point numbers."""
    return tensor.numel() * (dtype.itemsize if tensor.is_floating_point() else tensor.itemsize)
