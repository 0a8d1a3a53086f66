"""What we use of torch that it does not promise to keep, each behind a name of ours.

``tests/compat/test_torch.py`` goes red where a new version changes one of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import Function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: What gloo's connections say, which end in plain errors: the second is of a connection that another thread of this
#: process has timed out on.
_LOST = ("/gloo/", "Application timeout caused pair closure")


def lost_process(error: BaseException) -> bool:
    """Whether ``error`` says that another process of the job has ended, or has not answered within the timeout."""
    if isinstance(error, (torch.distributed.DistBackendError, torch.distributed.DistNetworkError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)


# ---- tensors without contents


def without_contents(autocast: bool) -> AbstractContextManager[Any]:
    """Within it tensors are made that have shapes, dtypes and storages, and no contents.

    Args:
        autocast: whether autocast is used within it, which knows no meta tensors, but fake ones, which take longer.
            What is neither parameter nor buffer (a list of rows in an adapter) is real then, and is taken as it is.
    """
    return FakeTensorMode(allow_non_fake_inputs=True) if autocast else torch.device("meta")


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


class _QuantisedProduct(Function):
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
        weight = grads[0].new_empty(ctx.shape, dtype=ctx.compute)
        return (grads[0].to(ctx.compute) @ weight).to(grads[0].dtype), None, None, None


@contextmanager
def kernels_of_a_run(
    cuda: bool, quantised: Iterable[Tensor] = (), keeps_input: bool = False, compute: torch.dtype = torch.float32
) -> Iterator[None]:
    """Within it functions keep what they keep in the run; on tensors without contents they would choose otherwise.

    They are replaced where modules look them up: a function mode would not be in force in the backward pass, in which
    checkpointed layers run again.

    Args:
        cuda: whether the run is on CUDA, whose kernels keep other things than a CPU's.
        quantised: weights of quantised layers.
        keeps_input: whether those layers keep their inputs for the backward pass.
        compute: the dtype that those layers multiply in.
    """
    functional = nn.functional
    plain = {name: getattr(functional, name) for name in ("linear", "dropout", "scaled_dot_product_attention")}
    packed = {id(weight) for weight in quantised}

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if id(weight) not in packed:
            return plain["linear"](x, weight, bias)
        out = _QuantisedProduct.apply(x, weight, keeps_input, compute)
        return out if bias is None else out + bias

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not (cuda and training and p > 0):
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
        # Like CUDA's kernels this one keeps no scores.
        flash = _aten._scaled_dot_product_flash_attention_for_cpu
        return flash(q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=settings.get("scale"))[0]

    try:
        for name, function in zip(plain, (linear, dropout, attention), strict=True):
            setattr(functional, name, function)
        yield
    finally:
        for name, function in plain.items():
            setattr(functional, name, function)
