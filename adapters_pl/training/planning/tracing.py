"""What lives in memory during a training step, found by running the step on tensors without contents.

Fake tensors have shapes, dtypes and storages, and autograd builds its graph over them as over any others. So every
storage can be followed from its birth to its death: what the backward pass keeps, what activation checkpointing frees,
and what is needed for a moment all count as they come, for every architecture and every adapter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer
from transformers import PreTrainedModel

from adapters_pl.adapters import branch
from adapters_pl.compat.torch import LiveBytes, kernels_of_a_run, without_contents
from adapters_pl.models.placement import linear_modules
from adapters_pl.models.slots import Slot
from adapters_pl.training.adapted import compute_activations_again
from adapters_pl.training.module import CausalLMModule


@dataclass(frozen=True)
class Step:
    """What a step is traced with.

    Attributes:
        rows: in the batch.
        tokens: of each row, all of them labelled.
        dtype: of the base.
        own_dtype: of what adapters hold.
        autocast: the dtype of mixed precision, if there is one.
        quantization: ``8bit`` or ``4bit`` linear layers.
        compute: the dtype that those multiply in.
        checkpointing: whether decoder layers compute their activations again.
        accumulates: whether gradients of an earlier batch stay beside the new ones.
        cuda: whether to keep what CUDA's kernels keep, where a CPU's keep something else.
    """

    rows: int
    tokens: int
    dtype: torch.dtype = torch.float32
    own_dtype: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    quantization: str | None = None
    compute: torch.dtype = torch.float32
    checkpointing: bool = False
    accumulates: bool = False
    cuda: bool = False


class _Running(nn.Module):
    """A module whose forward pass is any work with it, so that ``functional_call`` covers a backward pass too."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, work: Callable[[], None]) -> None:
        work()


def training_peak(module: CausalLMModule, model: PreTrainedModel, step: Step) -> int:
    """Bytes alive at the highest moment of a step with gradients of an earlier step around, in Lightning's order.

    They are dropped between the forward and the backward pass, unless they accumulate.

    Args:
        module: whose loss it is. It is left as it is, with its own base or without.
        model: the base with its adapters, on the meta device.
        step: what is traced.
    """

    def work(probe: CausalLMModule, batch: dict[str, Tensor]) -> None:
        trained = [parameter for parameter in probe.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        with torch.autocast("cpu", step.autocast) if step.autocast else nullcontext():
            loss = probe.label_losses(probe.hidden_states(batch), batch["labels"]).sum()
        if not step.accumulates:
            for parameter in trained:
                parameter.grad = None
        loss.backward()

    return _peak(module, model, step, work, training=True)


def validation_peak(module: CausalLMModule, model: PreTrainedModel, step: Step) -> int:
    """Bytes alive at the highest moment of one batch of the validation loss; arguments as above."""

    @torch.no_grad()
    def work(probe: CausalLMModule, batch: dict[str, Tensor]) -> None:
        with torch.autocast("cpu", step.autocast) if step.autocast else nullcontext():
            probe.label_losses(probe.hidden_states(batch), batch["labels"])

    return _peak(module, model, step, work, training=False)


def generation_peak(module: CausalLMModule, model: PreTrainedModel, step: Step, new_tokens: int) -> int:
    """Bytes alive at the highest moment of writing answers of ``new_tokens`` tokens, cache included; else as above.

    That is the pass over the prompts, or the last token, for which every layer's keys and values are copied once.
    """

    @torch.no_grad()
    def work(probe: CausalLMModule, batch: dict[str, Tensor]) -> None:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        with torch.autocast("cpu", step.autocast) if step.autocast else nullcontext():
            running = probe.model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1)
            cache = running.past_key_values
            del running
            for layer in cache.layers:
                layer.keys, layer.values = (
                    kept.new_empty(*kept.shape[:-2], kept.shape[-2] + new_tokens - 1, kept.shape[-1])
                    for kept in (layer.keys, layer.values)
                )
            longer = mask.new_ones(len(mask), mask.shape[1] + new_tokens)
            probe.model(input_ids=ids[:, :1], attention_mask=longer, past_key_values=cache, use_cache=True)

    return _peak(module, model, step, work, training=False)


def _peak(
    module: CausalLMModule,
    model: PreTrainedModel,
    step: Step,
    work: Callable[[CausalLMModule, dict[str, Tensor]], None],
    training: bool,
) -> int:
    probe = copy.copy(module)
    probe.__dict__["_modules"] = {**module._modules, "model": model}
    running, live = _Running(probe), LiveBytes()
    packed = {f"module.model.{path}.weight" for path in linear_modules(model)} if step.quantization else set()
    own = tuple(f"module.model.{path}." for path, slot in model.named_modules() if isinstance(slot, Slot))
    with without_contents(step.autocast is not None), _mode(model, training, step.checkpointing):
        values = {
            # Packed weights are in no dtype that adapters compute in, so that they make a copy of their own.
            name: _fake(tensor, torch.float16 if name in packed else _dtype(tensor, step, name.startswith(own)))
            for name, tensor in [*running.named_parameters(), *running.named_buffers()]
        }
        ids = torch.zeros(step.rows, step.tokens, dtype=torch.long)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros_like(ids)}
        live.ignore([*values.values(), *batch.values()])
        quantised, keeps_input = [values[name] for name in packed], step.quantization == "8bit"
        kernels = kernels_of_a_run(step.cuda, quantised, keeps_input, step.compute)
        with kernels, _expected_positions(step.cuda), live:
            functional_call(running, values, (lambda: work(probe, batch),))
    return live.peak


def _fake(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(tensor.shape, dtype=dtype).requires_grad_(tensor.requires_grad)


def _dtype(tensor: Tensor, step: Step, own: bool) -> torch.dtype:
    """Of a tensor in the run; buffers and numbers of other kinds stay what they are."""
    if not (isinstance(tensor, nn.Parameter) and tensor.is_floating_point()):
        return tensor.dtype
    return step.own_dtype if own else step.dtype


@contextmanager
def _expected_positions(cuda: bool) -> Iterator[None]:
    """Within it the adapters' dropout draws as many positions as are expected, and none where the run is on CUDA."""
    before = branch.Dropout.SPARSE, branch.draw_positions
    branch.Dropout.SPARSE = 0.0 if cuda else before[0]
    branch.draw_positions = lambda count, p: torch.empty(round(count * p), dtype=torch.long)
    try:
        yield
    finally:
        branch.Dropout.SPARSE, branch.draw_positions = before


@contextmanager
def _mode(model: PreTrainedModel, training: bool, checkpointing: bool) -> Iterator[None]:
    """Within it the model is in training or evaluation mode, and its decoder layers checkpoint if they are to."""
    was_training = model.training
    model.train(training)
    if checkpointing:
        compute_activations_again(model)
    try:
        yield
    finally:
        if checkpointing:
            compute_activations_again(model, False)
        model.train(was_training)


def optimizer_bytes(optimizer: Optimizer) -> tuple[int, int]:
    """Bytes of the state of an optimizer on the meta device, and what lives beside it while a step is taken."""
    live = LiveBytes()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    live.ignore([*parameters, *(parameter.grad for parameter in parameters)])
    with live:
        optimizer.step()
        state, live.peak = live.now, live.now
        optimizer.step()
    return state, live.peak - state
