"""What lives in memory during a training step, found by running the step on tensors without contents.

Fake tensors have shapes, dtypes and storages, and autograd builds its graph over them as over any others. So every
storage can be followed from its birth to its death: what the backward pass keeps, what activation checkpointing frees,
and what is needed for a moment all count as they come, for every architecture and every adapter.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import Function
from torch.func import functional_call
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from adapters_pl.adapters import dropout as adapter_dropout
from adapters_pl.models.placement import linear_modules
from adapters_pl.models.slots import Slot
from adapters_pl.training.module import CausalLMModule


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make within it, as long as each of them lives.

    Works on real, fake and meta tensors. What was there before is not counted, but for what :meth:`ignore` was not
    told of: an operation that returns a view of an unknown storage seems to make it.

    Attributes:
        now: bytes alive.
        peak: the most that ``now`` ever was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave the storages of ``tensors`` uncounted."""
        for tensor in tensors:
            self._follow(tensor, counted=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and follow the storages that are new in what it returns."""
        if func is _aten._local_scalar_dense.default and args[0].is_meta:
            return 0
        if func in _BY_MASK:
            args = (args[0], [index for given in args[1] for index in _every(given)], *args[2:])
        output = func(*args, **(kwargs or {}))
        for value in tree_leaves(output):
            if isinstance(value, Tensor):
                self._follow(value)
        return output

    def _follow(self, tensor: Tensor, counted: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes() if counted else 0

        def died(_: Any) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, died)
        self.now += size
        self.peak = max(self.peak, self.now)


_aten = torch.ops.aten
#: Operations whose result depends on how many places of a mask are true.
_BY_MASK = (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default)


def _every(index: Tensor | None) -> list[Tensor | None]:
    """The most that a mask without contents can select: every place."""
    if index is None or index.dtype != torch.bool or not (index.is_meta or isinstance(index, FakeTensor)):
        return [index]
    return [torch.empty(index.numel(), dtype=torch.long, device=index.device) for _ in range(index.ndim)]


def _is_fake(tensor: Tensor) -> bool:
    return type(tensor) is not Tensor


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


class _Product(Function):
    """A quantised linear layer: its weight is whole only for the moment, in the backward pass again.

    bitsandbytes keeps the input of its 8-bit product for the backward pass, and that of its 4-bit one not.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, keeps_input: bool, compute: torch.dtype) -> Tensor:
        ctx.input = x if keeps_input else None
        ctx.shape, ctx.compute = weight.shape, compute
        return nn.functional.linear(x.to(compute), x.new_empty(weight.shape, dtype=compute)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        whole = grads[0].new_empty(ctx.shape, dtype=ctx.compute)
        return (grads[0].to(ctx.compute) @ whole).to(grads[0].dtype), None, None, None


@contextmanager
def _kernels(step: Step, quantised: Iterable[Tensor]) -> Iterator[None]:
    """Within it functions keep what they keep in the run; on tensors without contents they would choose otherwise.

    They are replaced where modules look them up: a function mode would not be in force in the backward pass, in which
    checkpointed layers run again.
    """
    functional = nn.functional
    plain = {name: getattr(functional, name) for name in ("linear", "dropout", "scaled_dot_product_attention")}
    sparse = adapter_dropout.Dropout.SPARSE, adapter_dropout.draw_positions
    packed = {id(weight) for weight in quantised}

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if id(weight) not in packed:
            return plain["linear"](x, weight, bias)
        out = _Product.apply(x, weight, step.quantization == "8bit", step.compute)
        return out if bias is None else out + bias

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not (step.cuda and training and p > 0):
            return plain["dropout"](x, p, training, inplace)
        return torch.native_dropout(x, p, True)[0]  # a mask of one byte an element; a CPU's is a factor

    def attention(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **settings: Any,
    ) -> Tensor:
        if dropout_p or not q.is_meta:
            return plain["scaled_dot_product_attention"](q, k, v, attn_mask, dropout_p, is_causal, **settings)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill_(attn_mask.logical_not(), -torch.inf)
        scale = settings.get("scale")
        # Like CUDA's kernels this one keeps no scores.
        flash = _aten._scaled_dot_product_flash_attention_for_cpu
        return flash(q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]

    if step.cuda:
        adapter_dropout.Dropout.SPARSE = 0.0
    adapter_dropout.draw_positions = lambda count, p: torch.empty(round(count * p), dtype=torch.long)
    for function in (linear, dropout, attention):
        setattr(functional, "scaled_dot_product_attention" if function is attention else function.__name__, function)
    try:
        yield
    finally:
        adapter_dropout.Dropout.SPARSE, adapter_dropout.draw_positions = sparse
        for name, function in plain.items():
            setattr(functional, name, function)


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
    # Autocast knows no meta tensors, but fake ones, which take longer. What is neither parameter nor buffer (a list of
    # rows in an adapter) is real, and is taken as it is.
    place = FakeTensorMode(allow_non_fake_inputs=True) if step.autocast else torch.device("meta")
    with place, _mode(model, training, step.checkpointing):
        values = {
            # Packed weights are in no dtype that adapters compute in, so that they make a copy of their own.
            name: _fake(tensor, torch.float16 if name in packed else _dtype(tensor, step, name.startswith(own)))
            for name, tensor in [*running.named_parameters(), *running.named_buffers()]
        }
        ids = torch.zeros(step.rows, step.tokens, dtype=torch.long)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros_like(ids)}
        live.ignore([*values.values(), *batch.values()])
        with _kernels(step, [values[name] for name in packed]), live:
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
def _mode(model: PreTrainedModel, training: bool, checkpointing: bool) -> Iterator[None]:
    """Within it the model is in training or evaluation mode, and its decoder layers checkpoint if they are to."""
    was_training = model.training
    model.train(training)
    if checkpointing:
        # transformers has given both new names; the old ones go with version 6.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    try:
        yield
    finally:
        if checkpointing:
            getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()
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
