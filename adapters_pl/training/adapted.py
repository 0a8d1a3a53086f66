"""A frozen base with adapters in it, as a Lightning module: loading, injecting, sharding, and what checkpoints hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from shutil import which
from typing import Any

import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from adapters_pl.adapters.base import Adapter, describe_adapter
from adapters_pl.compat.lightning import trainer_of
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.masking import mask_checkpoint, masked_values
from adapters_pl.models.base import (
    Dtype,
    Quantization,
    add_tokens,
    grow_embeddings,
    load_base,
    load_config,
    load_tokenizer,
    meta_model,
    stored_as,
)
from adapters_pl.models.discovery import architecture_of
from adapters_pl.models.fingerprint import fingerprint
from adapters_pl.training.adapter_files import SavedAdapters
from adapters_pl.training.checkpoint import FORMAT, AtomicCheckpointIO, refuse_other_checkpoint
from adapters_pl.training.strategies import StrategyTraits, traits_of


@dataclass
class BaseSource:
    """Which base is loaded, and how. The arguments are those of ``CausalLMModule``, which documents them."""

    base: str = "quickstart"
    revision: str | None = None
    dtype: Dtype = "auto"
    attn_implementation: str | None = None
    quantization: Quantization | None = None
    trust_remote_code: bool = False
    random_init: bool = False
    add_tokens: list[str] = field(default_factory=list)

    @cached_property
    def config(self) -> PretrainedConfig:
        """The base's configuration, read on first use and without its weights."""
        return load_config(self.base, self.revision, self.trust_remote_code)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer with the tokens that are added to it, read on first use."""
        return add_tokens(load_tokenizer(self.base, self.revision, self.trust_remote_code), self.add_tokens)

    @property
    def stored_as(self) -> str | None:
        """How the weights of a base in a GGUF file are quantised; nothing for other bases."""
        return stored_as(self.base)

    def load(self, device: torch.device | None) -> PreTrainedModel:
        """The base with its weights; a quantised one is made on ``device``."""
        return load_base(
            self.base,
            self.revision,
            self.dtype,
            self.attn_implementation,
            self.trust_remote_code,
            self.random_init,
            quantization=self.quantization,
            device=device,
        )

    def skeleton(self) -> PreTrainedModel:
        """The base on the meta device."""
        return meta_model(self.config, self.trust_remote_code, self.attn_implementation)


def compute_activations_again(model: PreTrainedModel, again: bool = True) -> None:
    """Let the decoder layers compute their activations again in the backward pass of training, or keep them."""
    # The reentrant kind would need an input that requires a gradient, which a frozen embedding does not give.
    settings = ({"use_reentrant": False},) if again else ()
    # transformers has given both new names; the old ones go with version 6.
    name = "checkpointing_enable" if again else "checkpointing_disable"
    switch = getattr(model, f"activation_{name}", None) or getattr(model, f"gradient_{name}")
    switch(*settings)


def compile_layers(model: PreTrainedModel) -> None:
    """Let ``torch.compile`` make one graph of every decoder layer, with the adapters in it.

    Layer by layer, since all of them are alike: the first is compiled, and the others take its code.

    Raises:
        UserError: there is no compiler for the device.
    """
    kind = model.device.type
    found = find_spec("triton") if kind == "cuda" else which(os.environ.get("CXX", "g++")) or which("clang++")
    if not found:
        needed = "the package triton" if kind == "cuda" else "a C++ compiler (g++, clang++, or the one that CXX names)"
        raise UserError(f"model.compile needs {needed}, and there is none here: install it, or leave the key out.")
    for layer in model.get_submodule(architecture_of(model).layers).children():
        layer.compile(dynamic=True)


class AdaptedBase(LightningModule):
    """A frozen base that adapters inject themselves into.

    The base is loaded by :meth:`build_base`, when the first adapter's ``setup`` asks for it. Checkpoints hold
    the adapters' parameters, how to build the adapters, and the base's fingerprint; never the base.

    Attributes:
        source: which base, and how it is loaded.
        adapters: the injected ones, by name.
        initial: saved adapters whose values the injected ones begin with, if there are any.
        recorded_config: the configuration of the command that trains, if there is one; it travels in checkpoints.
    """

    def __init__(
        self, source: BaseSource, activation_checkpointing: bool = False, compiles_layers: bool = False
    ) -> None:
        super().__init__()
        self.source = source
        self.activation_checkpointing = activation_checkpointing
        self.compiles_layers = compiles_layers
        self.adapters: dict[str, Adapter] = {}
        self.initial: SavedAdapters | None = None
        self.recorded_config: dict[str, Any] | None = None
        self._fingerprint: dict[str, Any] | None = None

    @property
    def base(self) -> str:
        """What the base is called: an embedded base's name, a directory, or a hub id."""
        return self.source.base

    @property
    def config(self) -> PretrainedConfig:
        """The base's configuration, read on first use and without its weights."""
        return self.source.config

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer, read on first use and without its weights."""
        return self.source.tokenizer

    def build_base(self) -> PreTrainedModel:
        """The frozen base as ``self.model``: loaded the first time, the same object ever after."""
        if "model" not in self._modules:
            source, strategy = self.source, self._strategy
            if strategy.divides_base and (source.quantization or getattr(self.config, "quantization_config", None)):
                raise UserError("A quantised base cannot be sharded: train it with --trainer.strategy ddp.")
            trainer = trainer_of(self)
            device = trainer.strategy.root_device if trainer else None
            self.model = strategy.build_base(lambda: source.load(device), source.skeleton)
            if source.add_tokens:
                # The base is known by what it was before it grew.
                self._fingerprint = fingerprint(self.model)
                grow_embeddings(self.model, len(self.tokenizer))
            if self.initial is not None:
                self.initial.make_room(self.model)
        return self.model

    @property
    def virtual_tokens(self) -> int:
        """Positions of the base's context that the adapters take, those included that are still to be injected."""
        return sum(adapter.virtual_tokens for adapter in self.coming_adapters.values())

    @property
    def coming_adapters(self) -> dict[str, Adapter]:
        """The adapters by name, those included that are still to be injected."""
        coming = [c for c in getattr(trainer_of(self), "callbacks", ()) if isinstance(c, Adapter)]
        return {adapter.name: adapter for adapter in (*coming, *self.adapters.values())}

    @property
    def computes_on(self) -> torch.device:
        """Where the model computes; offloaded parameters lie elsewhere."""
        trainer = trainer_of(self)
        return trainer.strategy.root_device if trainer else self.model.device

    @property
    def _strategy(self) -> StrategyTraits:
        return traits_of(getattr(trainer_of(self), "strategy", None))

    def add_adapter(self, adapter: Adapter) -> None:
        """Inject ``adapter`` into the base; an adapter that is there already stays as it is.

        Raises:
            UserError: another adapter has its name.
        """
        known = self.adapters.get(adapter.name)
        if known is not None and known.init_args() != adapter.init_args():
            raise UserError(f"Two adapters are named '{adapter.name}': give each its own --adapter.name.")
        self.adapters[adapter.name] = adapter
        # Lightning's ``seed_everything`` leaves its seed for everything that draws numbers later.
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        adapter.attach_to(self.build_base(), seed=None if self._strategy.receives_values else seed)

    def setup(self, stage: str) -> None:
        """Build the base for runs without an adapter, fill in saved adapters, and refuse to train nothing."""
        if (trainer := trainer_of(self)) and type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        self.build_base()
        if self.initial is not None:
            if not self._strategy.receives_values:
                self.initial.check(self.model)
                self.initial.fill(self.model)
            self.initial = None
        if stage == "fit" and not self.adapter_parameters():
            raise UserError("Nothing to train: the base is frozen and there is no adapter. Pass --adapter LoRA.")
        if stage == "fit" and self.activation_checkpointing:
            if not self.model.supports_gradient_checkpointing:
                raise UserError(f"{type(self.model).__name__} has no activation checkpointing: switch it off.")
            compute_activations_again(self.model)
        if (
            stage == "fit"
            and self.model.config._attn_implementation == "flex_attention"
            and self.computes_on.type == "cpu"
        ):
            raise UserError("flex_attention has no backward pass on a CPU: take --model.attn_implementation sdpa.")
        if stage == "fit" and self.compiles_layers:
            compile_layers(self.model)

    def configure_model(self) -> None:
        """Shard the base and the adapters in it, where the strategy does that; Lightning calls this after ``setup``."""
        if self._strategy.divides_base:
            # A sharded base can no longer be sampled.
            self._fingerprint = self.trainer.strategy.broadcast(self.base_fingerprint())
            self._strategy.shard(self.model)

    # ---- what the adapters hold

    def adapter_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that all adapters declare, by their path in this module."""
        return {
            f"model.{name}": parameter
            for adapter in self.adapters.values()
            for name, parameter in adapter.adapter_parameters(self.model).items()
        }

    def adapter_state(self) -> dict[str, Tensor]:
        """What all adapters save, by its path in this module: the parameters, and what goes with them."""
        return {
            f"model.{name}": value
            for adapter in self.adapters.values()
            for name, value in adapter.adapter_state(self.model).items()
        }

    @contextmanager
    def base_alone(self) -> Iterator[None]:
        """Within it the model is the base: every adapter is switched off."""
        with ExitStack() as stack:
            for adapter in self.adapters.values():
                stack.enter_context(adapter.disabled(self.model))
            yield

    # ---- checkpoints

    @property
    def hparams_initial(self) -> AttributeDict:
        """What a module of one's own hands to loggers by ``save_hyperparameters``, without secrets."""
        return masked_values(super().hparams_initial)

    @property
    def strict_loading(self) -> bool:
        """A checkpoint holds no base, so it can never match every key; ``on_load_checkpoint`` is stricter."""
        return False

    @strict_loading.setter
    def strict_loading(self, value: bool) -> None:
        pass

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The adapters' parameters, and whatever a subclass holds outside the base."""
        full = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        keep = {f"{prefix}{name}" for name in self.adapter_state()} if "model" in self._modules else set()
        for key in [key for key in full if key.startswith(f"{prefix}model.") and key not in keep]:
            del full[key]
        return full

    def base_fingerprint(self) -> dict[str, Any]:
        """The base's fingerprint; computed once, since the base never changes."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.build_base())
        return self._fingerprint

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to build the adapters again and to know the base."""
        checkpoint["adapters_pl"] = {
            "format": FORMAT,
            "base": {
                "id": self.base,
                "revision": self.source.revision,
                "fingerprint": self.base_fingerprint(),
                "quantization": self.source.quantization,
            },
            "add_tokens": self.source.add_tokens or None,
            "adapters": [describe_adapter(adapter) for adapter in self.adapters.values()],
            "config": self.recorded_config,
        }
        mask_checkpoint(checkpoint)  # Lightning calls this last: what callbacks and hyperparameters say is in it

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another base or of other adapters, instead of scoring the bare base.

        Raises:
            UserError: this is no checkpoint of ours, or its base, adapters or shapes differ from this run's.
        """
        adapters = [describe_adapter(adapter) for adapter in self.adapters.values()]
        where = getattr(trainer_of(self), "ckpt_path", "This checkpoint")
        refuse_other_checkpoint(
            checkpoint, self.base, self.base_fingerprint(), adapters, self.adapter_state(), str(where)
        )
