"""Sharded training: what ``--trainer.strategy fsdp`` means here.

Lightning's own ``fsdp`` is the first FSDP, which wraps modules and flattens their parameters; adapters would lose
their names in it, and frozen parameters cannot share a unit with trained ones. Here the name stands for FSDP2
(``torch.distributed.fsdp.fully_shard``): every decoder layer is a unit, parameters keep their names and become
``DTensor``s, and only trained ones have gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from adapters_pl.compat import dcp as sharded_checkpoint
from adapters_pl.inputs.errors import UserError, did_you_mean
from adapters_pl.inputs.names import loaded, public_name
from adapters_pl.models.discovery import architecture_of
from adapters_pl.training.checkpoint import keeping_failure

T = TypeVar("T")


class StrategyTraits:
    """What module, data module, callbacks and forecast ask of a strategy.

    These are the answers of a strategy that keeps all of the base in every process, as every one of Lightning's does
    that is of use here. A strategy of ours inherits this and declares what is different.
    """

    #: Whether base, gradients and optimizer state are divided among the processes.
    divides_base: ClassVar[bool] = False
    #: Whether the values of base and adapters come from another process.
    receives_values: bool = False

    def build_base(
        self, load: Callable[[], PreTrainedModel], skeleton: Callable[[], PreTrainedModel]
    ) -> PreTrainedModel:
        """The base: what ``load`` gives, or ``skeleton`` where the values come later, by :meth:`shard`."""
        return load()

    def shard(self, model: PreTrainedModel) -> None:
        """Divide ``model``, with all that is injected into it, among the processes."""

    @property
    def any_at_work(self) -> Callable[[bool], bool] | None:
        """Tells whether this process is at work and hears whether any is; ``None`` where none waits for another."""
        return None


def traits_of(strategy: Any) -> StrategyTraits:
    """What ``strategy`` declares; one that declares nothing keeps all of the base in every process."""
    return strategy if isinstance(strategy, StrategyTraits) else StrategyTraits()


class FullyShardedStrategy(StrategyTraits, ModelParallelStrategy):
    """FSDP2 over all processes: base, gradients and optimizer state are divided among them.

    Rank 0 alone reads the base; the others get their shards from it, so that the memory of a host does not grow with
    its processes. Works on CPUs too.

    Args:
        cpu_offload: keep the shards in host memory; a layer is on the device only while it computes.
        save_distributed_checkpoint: every process writes its own shard, and a checkpoint is a directory; else rank 0
            writes one file, as under every other strategy. Either kind loads under every strategy.
        process_group_backend: ``nccl`` or ``gloo``; by the devices if not given.
        timeout: after which a process that no longer answers ends the others.
    """

    divides_base = True

    def __init__(
        self,
        cpu_offload: bool = False,
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__("auto", 1, save_distributed_checkpoint, process_group_backend, timeout)
        self.cpu_offload = cpu_offload

    # ---- sharding

    @property
    def receives_values(self) -> bool:  # type: ignore[override]
        """Whether this process is given its shards by rank 0, which alone reads base and adapters."""
        return not self.is_global_zero

    def setup_environment(self) -> None:
        """Join the processes; Lightning's own sizes would make a data-parallel group of every node alone."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def build_base(
        self, load: Callable[[], PreTrainedModel], skeleton: Callable[[], PreTrainedModel]
    ) -> PreTrainedModel:
        """The base: rank 0 loads it, the others' memory for it is not touched before :meth:`shard`."""
        model = skeleton() if self.receives_values else load()
        dtypes = {name: value.dtype for name, value in _tensors(model)}
        of_rank_0 = self.broadcast((dtypes, model.generation_config))
        if self.receives_values:
            dtypes, model.generation_config = of_rank_0
            for name, value in _tensors(model):
                value.data = value.data.to(dtypes[name])
            model.to_empty(device="cpu").tie_weights()
        return model

    def shard(self, model: PreTrainedModel) -> None:
        """Shard ``model``, of which rank 0 holds the values and the others only the structure.

        Every decoder layer is a unit; what is left (embeddings, head, adapters outside the layers) belongs to the
        model itself and is gathered while :func:`as_forward` runs.
        """
        if isinstance(model, FSDPModule):
            return
        # A buffer is small and needed whole.
        for _, buffer in model.named_buffers():
            buffer.data = self._from_rank_0(buffer.data.to(self.root_device))
        values = {name: parameter.detach() for name, parameter in model.named_parameters()}
        mesh = self.device_mesh["data_parallel"]
        # Pinned memory is CUDA's.
        offload = CPUOffloadPolicy(pin_memory=self.root_device.type == "cuda") if self.cpu_offload else OffloadPolicy()
        for layer in model.get_submodule(architecture_of(model).layers).children():
            fully_shard(layer, mesh=mesh, offload_policy=offload)
        fully_shard(model, mesh=mesh, offload_policy=offload)
        for name, parameter in model.named_parameters():
            _fill(parameter, values.pop(name))

    def _from_rank_0(self, value: Tensor) -> Tensor:
        value = value.contiguous()
        torch.distributed.broadcast(value, src=0)
        return value

    def model_to_device(self) -> None:
        """Move everything to the device, but for shards that stay on the host."""
        if not self.cpu_offload:
            super().model_to_device()
            return
        assert self.lightning_module is not None
        for name, child in self.lightning_module.named_children():
            if name != "model":
                child.to(self.root_device)

    @property
    def any_at_work(self) -> Callable[[bool], bool]:
        """The parts of one model compute at the same time or not at all."""
        return partial(self.reduce_boolean_decision, all=False)

    # ---- checkpoints: the same contents as under every other strategy

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning hand the states over as it does elsewhere."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's state, each tensor whole, or as a shard where shards are saved."""
        assert self.lightning_module is not None
        return self._for_saving(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state, each tensor whole, or as a shard where shards are saved."""
        return self._for_saving(getattr(optimizer, "_optimizer", optimizer).state_dict())

    def _for_saving(self, state: Any) -> Any:
        return state if self._save_distributed_checkpoint else _mapped(full_value, state)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write one file on rank 0, or a directory that every process writes its part of."""
        path = Path(self.broadcast(str(filepath)))
        if self._save_distributed_checkpoint:
            with keeping_failure(self.checkpoint_io, path, checkpoint):
                sharded_checkpoint.save(checkpoint, path, self.global_rank, self.reduce_boolean_decision)
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, path, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint of any strategy, whole; adapters are small."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Give every process its shard of the values."""
        assert self.lightning_module is not None
        there = dict(_tensors(self.lightning_module))
        for name, value in checkpoint["state_dict"].items():
            _fill(there[name], value)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give every process its shard of the optimizer's state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            ids = [i for group in state["param_groups"] for i in group["params"]]
            # A step counter is one number for all of a parameter's.
            shards = {
                i: {
                    key: _like(value, p) if isinstance(value, Tensor) and value.shape == p.shape else value
                    for key, value in state["state"][i].items()
                }
                for i, p in zip(ids, parameters, strict=True)
                if i in state["state"]
            }
            optimizer.load_state_dict({**state, "state": shards})


#: What may stand for a strategy in ``--trainer.strategy``, beside Lightning's own names.
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "fsdp": FullyShardedStrategy,
    "fsdp_cpu_offload": partial(FullyShardedStrategy, cpu_offload=True),
}


def strategy_named(name: str | Strategy) -> str | Strategy:
    """The strategy that ``name`` means here; Lightning's own names stay what they are.

    Raises:
        UserError: there is none of that name.
    """
    if not isinstance(name, str):
        return name
    if name in STRATEGIES:
        return STRATEGIES[name]()
    if name not in (known := {"auto", *STRATEGIES, *StrategyRegistry.available_strategies()}):
        raise UserError(f"trainer.strategy: there is none called '{name}': {did_you_mean(name, known)}")
    return name


def gathered_answers(strategy: Any, value: Any) -> list[Any]:
    """What each process has answered, in the order of ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    parts = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, value)
    return parts


#: How the base lies on several devices: on each, or a part of it on each.
Division = Literal["one", "ddp", "fsdp"]


def division_of(strategy: Any) -> tuple[Division, bool]:
    """How a strategy divides the base over several devices, and whether its parts lie in host memory.

    Args:
        strategy: a name, a class with its arguments as a configuration has it, or ``None``.
    """
    name = strategy if isinstance(strategy, str) else str(getattr(strategy, "class_path", type(strategy).__name__))
    arguments = getattr(strategy, "init_args", None) or {}
    kind = type(strategy) if isinstance(strategy, Strategy) else loaded(Strategy).get(public_name(name), Strategy)
    divides = name in STRATEGIES or issubclass(kind, (ModelParallelStrategy, FSDPStrategy))
    return "fsdp" if divides else "ddp", "offload" in name or bool(arguments.get("cpu_offload"))


def as_forward(model: nn.Module, function: Callable[[], T]) -> T:
    """``function()``, run as the forward pass of ``model``.

    A sharded model gathers the parameters that belong to no layer (embeddings, head) when it is called, and
    ``function`` calls its parts instead.
    """
    if not isinstance(model, FSDPModule):
        return function()
    own = model.forward
    model.forward = function
    try:
        return model()
    finally:
        model.forward = own


@contextmanager
def gathered(module: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Within it the parameters of ``module`` called ``names`` are whole on every process, in host memory."""
    sharded = [
        (module.get_submodule(path), own, parameter)
        for path, _, own in (name.rpartition(".") for name in names)
        if isinstance(parameter := module.get_submodule(path).get_parameter(own), DTensor)
    ]
    for owner, own, parameter in sharded:
        owner._parameters[own] = nn.Parameter(full_value(parameter), requires_grad=False)
    try:
        yield
    finally:
        for owner, own, parameter in sharded:
            owner._parameters[own] = parameter


def local_value(value: Tensor) -> Tensor:
    """The part of a sharded tensor that this process has; a plain one as it is."""
    return value.to_local() if isinstance(value, DTensor) else value


def full_value(value: Tensor) -> Tensor:
    """The whole of a sharded tensor in host memory, on every process; a plain one is only detached."""
    value = value.detach()
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def _mapped(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: _mapped(function, value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_mapped(function, value) for value in tree)
    return tree


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _like(value: Tensor, sharded: Tensor) -> Tensor:
    """``value`` divided as ``sharded`` is; rank 0's values count."""
    if not isinstance(sharded, DTensor):
        return value.to(sharded.device)
    mesh = sharded.device_mesh
    divided = distribute_tensor(value.to(mesh.device_type), mesh, sharded.placements)
    return DTensor.from_local(
        divided.to_local().to(sharded.to_local().device),
        mesh,
        sharded.placements,
        shape=sharded.shape,
        stride=sharded.stride(),
    )


@torch.no_grad()
def _fill(target: Tensor, value: Tensor) -> None:
    """Put ``value`` into ``target``, each process its shard of it."""
    if isinstance(target, DTensor):
        shard: Any = _like(value, target)
        target.to_local().copy_(shard.to_local())
    else:
        target.copy_(value)
