"""Any method of the installed peft that goes into single modules, trained, saved and tested like our own."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from adapters_pl.adapters.base import Adapter
from adapters_pl.adapters.layers import AdapterLayer, adapter_layers
from adapters_pl.adapters.peft_quantised import fold, refuse_unknown
from adapters_pl.compat import peft
from adapters_pl.inputs.errors import UserError, first_line
from adapters_pl.inputs.names import loaded
from adapters_pl.inputs.patterns import refuse_unbounded
from adapters_pl.models.architectures import Architecture
from adapters_pl.models.placement import Layers, Names, Placement, Site, matches, resolve
from adapters_pl.models.quantisation import is_quantised, say_dequantised
from adapters_pl.models.slots import attach, base_modules

if TYPE_CHECKING:
    from peft import PeftConfig
else:  # the command line reads the line above, and finds the class when an argument is parsed
    PeftConfig = Any

#: Methods whose directories our own classes read.
_OWN = ("LORA", "IA3")
#: Methods that need more than modules (a second model, a task's id with every batch), keep values outside the model,
#: or cannot be taken out of the base's weights exactly.
_NOT_HERE = ("ADAPTION_PROMPT", "SHADOW", "POLY", "XLORA", "FROD", "SHIRA", "OSF")
#: Methods that go elsewhere than into linear modules, and know where.
_KNOW_THEIR_TARGETS = ("LN_TUNING", "TRAINABLE_TOKENS")
#: Initial values that peft takes out of the base, which an adapter never changes here.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def injectable() -> dict[str, type]:
    """The methods of the installed peft that can be injected: the classes of their configurations by type."""
    return {kind: config for kind, config in peft.tuners().items() if kind not in _NOT_HERE}


class PEFTLayers(AdapterLayer):
    """The one layer that hangs on the model itself: what peft wrapped, and which of the model's values are its own.

    peft puts layers of its own in the place of the modules it adapts. This one has no parameters; it switches
    those layers on and off.
    """

    def __init__(self, wrapped: nn.Module, trained: list[str], saved: list[str]) -> None:
        super().__init__()
        # Not as a submodule: the model that this layer hangs on is inside.
        self._wrapped = (wrapped,)
        self.trained = trained
        self.saved = saved
        self._on = True

    @property
    def wrapped(self) -> Any:
        """The ``PeftModel`` around the model."""
        return self._wrapped[0]

    @property
    def enabled(self) -> bool:
        return self._on

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._on = value
        for layer in peft.layers(self.wrapped).values():
            peft.switch(layer, value)


@dataclasses.dataclass(eq=False)
class PEFTAdapter(Adapter):
    """A method of peft's, by its own configuration: ``--adapter PEFTAdapter --adapter.peft_config peft.VeraConfig``.

    Whether step 0 is the identity is the method's affair: it is for most, and not for C3A, FourierFT, VB-LoRA and
    Uni-LoRA in their own settings. Methods in front of the text (prompt learning) cannot be injected; prefix and
    prompt tuning are :class:`PrefixTuning`, :class:`PromptTuning` and :class:`PTuning`. There can be one in a model,
    and it comes behind other adapters, whose modules it wraps.

    AdaLoRA learns of the number of steps from the Trainer, prunes after every step, and its penalty is added to the
    gradients; ``total_step`` has to be given to peft nevertheless.

    Args:
        peft_config: an object of peft's configuration class, or ``{class_path, init_args}``. Where it names no
            ``target_modules``, placement, layers and exclude choose them.
        placement: which sublayers: ``attn`` is query, key and value, ``mlp`` the up and down projections.
        layers: which decoder layers: ``8-15``, ``[0, 1]``, ``-1``; all if not given.
        exclude: names or a regular expression of modules to leave out.
    """

    peft_config: PeftConfig | None = None
    _: dataclasses.KW_ONLY
    placement: Placement = "both"
    layers: Layers | None = None
    exclude: Names | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        known, given = injectable(), self.peft_config
        if given is None:
            raise UserError("PEFTAdapter: which method? Pass --adapter.peft_config with a class like peft.VeraConfig.")
        self.config: Any = _build(given) if isinstance(given, dict) else given
        kind = getattr(getattr(self.config, "peft_type", None), "value", None)
        if kind not in known:
            raise UserError(f"PEFTAdapter: {type(self.config).__name__} cannot be injected; {', '.join(known)} can.")
        self.modules_to_save = list(getattr(self.config, "modules_to_save", None) or []) or None
        if getattr(self.config, "bias", "none") != "none":
            raise UserError("PEFTAdapter: bias other than 'none' trains the base's own biases; use LoRA with bias.")
        init = str(getattr(self.config, "init_lora_weights", "")).lower()
        if init.startswith(_CHANGE_THE_BASE) or getattr(self.config, "kasa_config", None):
            raise UserError(
                f"PEFTAdapter: init_lora_weights '{init}' changes the base; use LoRA with init pissa or olora."
            )
        self.kind: str = kind
        self._seed = 0
        self._keys: dict[str, str] = {}
        self._layers: PEFTLayers | None = None

    def init_args(self) -> dict[str, Any]:
        """The arguments as plain data, the configuration as ``{class_path, init_args}``."""
        return {**super().init_args(), "peft_config": _describe(self.config)}

    # ---- into the model and out of it

    def attach_to(self, model: PreTrainedModel, seed: int | None = 0) -> bool:
        """Inject unless it is there already; peft draws while it injects, so the seed is known before."""
        self._seed = seed or 0
        return super().attach_to(model, seed)

    def inject(self, model: PreTrainedModel, arch: Architecture) -> list[Site]:
        """Let peft replace the modules by its own; what else happens to the model is taken back."""
        if any(isinstance(layer, PEFTLayers) for layer in adapter_layers(model).values()):
            raise UserError("PEFTAdapter: this model holds an adapter of peft's already, and there can be one.")
        refuse_unknown(self.kind, self.config, model)
        config = self._injected_config(model, arch)
        before = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
        seed = hashlib.sha256(f"{self._seed}:{self.name}".encode()).digest()
        with torch.random.fork_rng([p.device.index or 0 for p in list(model.parameters())[:1] if p.is_cuda]):
            torch.manual_seed(int.from_bytes(seed[:8], "big") >> 1)
            try:
                wrapped = peft.inject(model, config)
            except (ValueError, TypeError, KeyError, NotImplementedError, ImportError, RuntimeError) as error:
                peft.unwrap(model)
                raise UserError(f"peft cannot inject {self.kind} here: {first_line(error)}") from error
        trained = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in before]
        for parameter in model.parameters():
            # peft freezes whatever is not its own, other adapters too.
            parameter.requires_grad_(before.get(id(parameter), parameter.requires_grad))
        try:
            self._keys = self._saved_keys(wrapped, model)
        except UserError:
            peft.unwrap(model)
            raise
        self._layers = PEFTLayers(wrapped, trained, [*dict.fromkeys([*trained, *self._keys])])
        attach(model, self._layers, self.name)
        return [Site(path, None, 0, 0) for path in peft.layers(wrapped)]

    def _injected_config(self, model: PreTrainedModel, arch: Architecture) -> Any:
        config = copy.deepcopy(self.config)
        config.inference_mode = False
        _refuse_endless(config, model)
        if hasattr(config, "modules_to_save"):
            config.modules_to_save = None  # our own copies leave the base as it is
        if config.target_modules is None and self.kind not in _KNOW_THEIR_TARGETS:
            feedforward = getattr(config, "feedforward_modules", None)
            config.target_modules = {
                site.path for site in resolve(model, arch, self.placement, None, self.layers, self.exclude)
            }
            if self.kind == "IA3" and feedforward is None:
                config.feedforward_modules = {
                    path for path in config.target_modules if path.endswith(f".{arch.mlp.output}")
                }
        return config

    def _saved_keys(self, wrapped: Any, model: PreTrainedModel) -> dict[str, str]:
        """The keys that peft has for what it saves, by the name of each value in ``model``."""
        names: dict[int, str] = {}
        for name, value in model.state_dict(keep_vars=True).items():
            names.setdefault(id(value), name)
        saved = peft.saved(wrapped)
        if outside := [key for key, value in saved.items() if id(value) not in names]:
            raise UserError(f"PEFTAdapter: {self.kind} keeps {outside[0]} outside the model, which is not supported.")
        keys: dict[str, str] = {}
        for key, value in saved.items():
            keys.setdefault(names[id(value)], key)
        return keys

    def detach_from(self, model: nn.Module) -> None:
        if self._in(model) is not None:
            peft.unwrap(model)
        super().detach_from(model)

    def _in(self, model: nn.Module) -> PEFTLayers | None:
        layers = adapter_layers(model, self.name).values()
        return next((layer for layer in layers if isinstance(layer, PEFTLayers)), None)

    # ---- its values

    def adapter_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """What peft trains, by its path in ``model``, and the modules that are trained whole."""
        layers = self._in(model)
        parameters = dict(model.named_parameters()) if layers else {}
        own = {name: parameters[name] for name in layers.trained} if layers else {}
        return {**own, **super().adapter_parameters(model)}

    def adapter_state(self, model: nn.Module) -> dict[str, Tensor]:
        layers = self._in(model)
        values = model.state_dict(keep_vars=True) if layers else {}
        own = {name: values[name] for name in layers.saved} if layers else {}
        return {**own, **super().adapter_state(model)}

    def extent(self, model: PreTrainedModel) -> str:
        layers = self._in(model)
        assert layers is not None
        return f"{self.kind} in {len(peft.layers(layers.wrapped))} modules"

    @torch.no_grad()
    def merge(self, model: PreTrainedModel) -> Callable[[], None]:
        """Let peft fold its layers into the base's weights; returns the exact undo.

        A quantised base is dequantised where the layers are, and a line says so.

        Raises:
            UserError: the method cannot be merged, or the merged weights are not finite.
        """
        layers = self._in(model)
        if self.modules_to_save:
            raise UserError("PEFTAdapter with modules_to_save cannot be merged into the base; keep it as an adapter.")
        tuned = peft.layers(layers.wrapped) if layers and layers.enabled else {}
        quantised = sum(is_quantised(layer.get_base_layer()) for layer in tuned.values())
        with ExitStack() as undo:
            for path, layer in tuned.items():
                if peft.is_merged(layer):
                    continue
                inner = layer.get_base_layer()
                try:
                    if quantised:
                        undo.callback(fold(layer, model.dtype))
                    else:
                        for parameter in inner.parameters():
                            undo.callback(setattr, parameter, "data", parameter.data.clone())
                        undo.callback(peft.unmerge, layer)
                        peft.merge(layer)
                except (UserError, ValueError, TypeError, NotImplementedError, AttributeError) as error:
                    raise UserError(f"{self.kind} cannot be merged into the base; keep it as an adapter.") from error
                if not all(torch.isfinite(p).all() for p in inner.parameters()):
                    raise UserError(f"Merging '{self.name}' into {path} gives weights that are not finite.")
            if layers and quantised:
                layers.enabled = False
                undo.callback(setattr, layers, "enabled", True)
                say_dequantised(quantised, model.dtype)
            return undo.pop_all().close

    # ---- directories

    @classmethod
    def reads(cls, config: dict[str, Any]) -> bool:
        """Every type that the installed peft can inject and no class of ours reads."""
        try:
            return config.get("peft_type") in injectable() and config["peft_type"] not in _OWN
        except UserError:
            return False

    @classmethod
    def from_peft(cls, config: dict[str, Any], name: str) -> PEFTAdapter:
        kind = injectable()[config["peft_type"]]
        own = {field.name for field in dataclasses.fields(kind) if field.init}
        try:
            described = kind(**{key: value for key, value in config.items() if key in own and key != "peft_type"})
        except (ValueError, TypeError, ImportError) as error:
            raise UserError(f"peft cannot read this {config['peft_type']} directory: {first_line(error)}") from error
        return cls(described, name=name)

    def to_peft(self, model: PreTrainedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The configuration that was injected, and the tensors by peft's keys."""
        layers = self._in(model)
        assert layers is not None
        config = peft.settings(layers.wrapped)
        # AdaLoRA's pattern says which rows are cut out of the file; here they are in it, as zeros.
        pattern = {"rank_pattern": None} if self.kind == "ADALORA" else {}
        plain = {key: _plain(value) for key, value in config.to_dict().items()}
        settings = {**plain, **pattern, "inference_mode": True, "modules_to_save": self.modules_to_save}
        return settings, self.peft_tensors(model)

    def peft_tensors(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return {self.peft_key(name): value.detach() for name, value in self.adapter_state(model).items()}

    def peft_key(self, parameter: str) -> str:
        return self._keys[parameter] if parameter in self._keys else super().peft_key(parameter)

    # ---- what AdaLoRA does beside training

    def _adalora(self) -> peft.AdaLoRA | None:
        return peft.AdaLoRA(self._layers.wrapped) if self.kind == "ADALORA" and self._layers else None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As every adapter; AdaLoRA learns how many steps there are."""
        super().on_fit_start(trainer, pl_module)
        if tuner := self._adalora():
            tuner.begin(int(trainer.estimated_stepping_batches))
            self._pruned_at = trainer.global_step

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if tuner := self._adalora():
            tuner.add_penalty()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """After a step, while its gradients are there, AdaLoRA prunes."""
        if (tuner := self._adalora()) and trainer.global_step > self._pruned_at:
            self._pruned_at = trainer.global_step
            tuner.prune(trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        tuner = self._adalora()
        return tuner.state() if tuner else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict and (tuner := self._adalora()):
            tuner.restore(state_dict)


def _refuse_endless(config: Any, model: nn.Module) -> None:
    """Raise ``UserError`` for patterns that peft would match for ever; one for the targets becomes their paths."""
    if isinstance(config.target_modules, str) and config.target_modules not in ("all-linear", "dummy-target-modules"):
        paths = {path for path, _ in base_modules(model) if path and matches(path, config.target_modules)}
        if not paths:
            raise UserError(f"PEFTAdapter: target_modules '{config.target_modules}' matches no module here.")
        config.target_modules = paths
    for setting in ("rank_pattern", "alpha_pattern", "exclude_modules", "layers_pattern"):
        given = getattr(config, setting, None) or []
        for text in [given] if isinstance(given, str) else given:
            refuse_unbounded(str(text), f"PEFTAdapter: {setting}")


def _plain(value: Any) -> Any:
    """``value`` in what a checkpoint and a JSON file can hold."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _describe(config: Any) -> dict[str, Any]:
    """``{class_path, init_args}`` with the settings that are not their defaults."""
    cls, init_args = type(config), {}
    known = _plain(config.to_dict())
    for field in dataclasses.fields(cls):
        default = field.default_factory() if callable(field.default_factory) else field.default
        ours = field.init and field.name in known and field.name not in ("peft_type", "peft_version")
        if ours and known[field.name] != _plain(default):
            init_args[field.name] = known[field.name]
    short = getattr(peft.import_peft(), cls.__name__, None) is cls
    return {"class_path": f"{'peft' if short else cls.__module__}.{cls.__name__}", "init_args": init_args}


def _build(described: dict[str, Any]) -> Any:
    """The configuration that ``{class_path, init_args}`` describes, which may stand in a checkpoint.

    Nothing is imported for it: its class is peft's own, or one of a module that is imported already.
    """
    cls = loaded(peft.import_peft().PeftConfig).get(described["class_path"])
    if cls is None:
        raise UserError(f"peft_config {described['class_path']}: this is no configuration of peft's.")
    try:
        return cls(**described.get("init_args") or {})
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"peft_config {described['class_path']}: {first_line(error)}") from error
