"""What every adapter method shares: a Lightning callback that hangs its layers into the slots of a base."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapters_pl.adapters.layers import AdapterLayer, LinearAdapterLayer, ModuleCopy, adapter_layers, site_of
from adapters_pl.inputs.errors import UserError, did_you_mean
from adapters_pl.inputs.names import arguments_of, public_name
from adapters_pl.inputs.ranges import refuse_out_of_range
from adapters_pl.models.architectures import Architecture
from adapters_pl.models.discovery import architecture_of
from adapters_pl.models.placement import Layers, Names, Placement, Site, matches, resolve
from adapters_pl.models.quantisation import dequantise, is_quantised, mend, say_dequantised
from adapters_pl.models.slots import attach, base_modules, detach, place_of, slot_of


@dataclass(eq=False)
class Adapter(Callback, ABC):
    """An adapter method: a Lightning callback that injects its layers into the frozen base in ``setup``.

    A method is a dataclass, whose fields are its arguments: a checkpoint says by them how to build it again. It
    writes :meth:`inject`, or derives from :class:`LinearAdapter`, and says in tables what PEFT calls its settings and
    tensors.

    Args:
        name: what tells several adapters of one model apart.
    """

    #: The ``peft_type`` that adapter directories of this method carry; ``None`` for a method without directories.
    peft_type: ClassVar[str | None] = None
    #: PEFT's names in ``adapter_config.json`` of this method's arguments.
    peft_settings: ClassVar[dict[str, str]] = {}
    #: What a directory means that says nothing, or null, of a setting; it has to say the others.
    peft_defaults: ClassVar[dict[str, Any]] = {}
    #: PEFT's names of a layer's parameters, relative to the adapted module, where they are not ours.
    peft_names: ClassVar[dict[str, str]] = {}

    _: KW_ONLY
    name: str = "default"
    #: Modules of the base that are trained whole beside the adapter, if there are any.
    modules_to_save: list[str] | None = field(default=None, init=False, repr=False)
    #: Positions of the model's context that the adapter takes.
    virtual_tokens: int = field(default=0, init=False, repr=False)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for table in ("peft_settings", "peft_defaults", "peft_names"):  # each holds what those of its bases hold
            setattr(cls, table, {**getattr(super(cls, cls), table), **vars(cls).get(table, {})})
        if "__init__" in vars(cls):  # of which jsonargparse would look for the types among the fields alone
            with suppress(NameError):
                cls.__init__.__annotations__ = get_type_hints(cls.__init__)

    def __post_init__(self) -> None:
        method, hints = type(self).__name__, get_type_hints(type(self))
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        refuse_out_of_range(f"{method}: ", type(self), values)
        for name, value in values.items():
            choices = get_args(hints[name]) if get_origin(hints[name]) is Literal else ()
            if choices and value not in choices:
                raise UserError(f"{method}: {name} '{value}': choose {', '.join(choices[:-1])} or {choices[-1]}.")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", self.name):
            raise UserError(f"adapter name '{self.name}': use letters, digits, '-' and '_', beginning with a letter.")

    # ---- what a method writes

    @abstractmethod
    def inject(self, model: PreTrainedModel, arch: Architecture) -> list[Site]:
        """Hang the layers into ``model`` and return where; structure only.

        Works on the meta device and draws no random number. Injecting twice is an error of the caller;
        :meth:`attach_to` sees to it.
        """

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Groups for the optimizer; one with the optimizer's own settings unless a method needs more.

        A group may hold ``lr_ratio``, its learning rate over the optimizer's.
        """
        return [{"params": list(self.adapter_parameters(model).values())}]

    def peft_extra(self, model: PreTrainedModel) -> dict[str, Any]:
        """What ``adapter_config.json`` says beside the settings, such as which modules were adapted."""
        return {}

    @classmethod
    def reads(cls, config: dict[str, Any]) -> bool:
        """Whether an ``adapter_config.json`` with these contents is this method's."""
        return cls.peft_type is not None and config.get("peft_type") == cls.peft_type

    @classmethod
    def convert(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], base: PretrainedConfig, old: bool
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A directory of an older form in the form that :meth:`from_peft` and :meth:`peft_key` know.

        ``old`` says that the tensors come from a pickled ``adapter_model.bin``, as LLM-Adapters writes them.
        """
        return config, tensors

    def follow_peft(self, model: PreTrainedModel) -> None:
        """Behave as PEFT does where this method knows better; for adapters of PEFT's in plain models."""

    # ---- directories

    @classmethod
    def from_peft(cls, config: dict[str, Any], name: str) -> Adapter:
        """The adapter that a PEFT ``adapter_config.json`` of this method describes.

        Raises:
            UserError: the file does not say what it has to.
        """
        arguments = {}
        for argument, key in cls.peft_settings.items():
            arguments[argument] = config.get(key)
            if arguments[argument] is None:
                if key not in cls.peft_defaults:
                    raise UserError(f"{key} is missing; mend it, or take another copy of the adapter.")
                arguments[argument] = cls.peft_defaults[key]
        return cls(**arguments, name=name)

    def to_peft(self, model: PreTrainedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The adapter as PEFT writes it: the contents of ``adapter_config.json`` and the tensors by key.

        Raises:
            UserError: the method has no directories.
        """
        if self.peft_type is None:
            raise UserError(f"{type(self).__name__} has no PEFT format; its checkpoints are .ckpt files.")
        config = {
            "peft_type": self.peft_type,
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "modules_to_save": self.modules_to_save,
            **{key: getattr(self, argument) for argument, key in self.peft_settings.items()},
            **self.peft_extra(model),
        }
        return config, self.peft_tensors(model)

    def peft_tensors(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """The tensors of a PEFT directory by key."""
        return {self.peft_key(name): value.detach() for name, value in self.adapter_parameters(model).items()}

    def peft_key(self, parameter: str) -> str:
        """The key of ``parameter`` (as :meth:`adapter_parameters` names it) in a PEFT directory."""
        place = place_of(parameter)
        assert place is not None
        own = place.own.removeprefix(ModuleCopy.PREFIX)
        name = own if own != place.own else self.peft_names.get(own, own)
        return f"base_model.model.{place.site}.{name}"

    # ---- what every method has

    def sites(self, model: nn.Module) -> dict[str, AdapterLayer]:
        """The method's own layers by the path of the module that each adapts, copies of whole modules left out."""
        layers = adapter_layers(model, self.name).items()
        return {site_of(path): layer for path, layer in layers if not isinstance(layer, ModuleCopy)}

    @property
    def state_key(self) -> str:
        """Lightning's key for this callback: the method and the adapter's name."""
        return f"{type(self).__name__}:{self.name}"

    def init_args(self) -> dict[str, Any]:
        """The arguments that build this adapter again."""
        return {name: getattr(self, name) for name in arguments_of(type(self))}

    def adapter_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The adapter's parameters by their path in ``model``: exactly what its layers declare."""
        return {
            f"{path}.{name}": parameter
            for path, layer in adapter_layers(model, self.name).items()
            for name, parameter in layer.named_parameters()
        }

    def adapter_state(self, model: nn.Module) -> dict[str, Tensor]:
        """What is saved, by its path in ``model``: the parameters, and the buffers that layers declare."""
        buffers = {
            f"{path}.{name}": layer.get_buffer(name)
            for path, layer in adapter_layers(model, self.name).items()
            for name in layer.saved_buffers
        }
        return {**self.adapter_parameters(model), **buffers}

    def attach_to(self, model: PreTrainedModel, seed: int | None = 0) -> bool:
        """Inject into ``model`` unless it already holds this adapter; says whether it did.

        The initial values are drawn from ``seed``; without one only the structure is made, on any device.
        """
        if adapter_layers(model, self.name):
            return False
        mend(model)
        try:
            self.inject(model, architecture_of(model))
            self._copy_modules(model)
        except UserError:
            self.detach_from(model)  # an adapter is there as a whole or not at all
            raise
        if seed is not None:
            self.initialize(model, seed)
        return True

    def _copy_modules(self, model: PreTrainedModel) -> None:
        for wanted in self.modules_to_save or []:
            found = [(path, module) for path, module in base_modules(model) if matches(path, [wanted])]
            if not found:
                known = sorted({path.rsplit(".", 1)[-1] for path, _ in base_modules(model) if path})
                raise UserError(f"modules_to_save: '{wanted}' is no module here: {did_you_mean(wanted, known)}")
            for path, module in found:
                if self.name in (slot_of(module) or ()):
                    raise UserError(f"modules_to_save: {path} is adapted already; leave it out with exclude.")
                attach(module, ModuleCopy(module), self.name)

    def detach_from(self, model: nn.Module) -> None:
        """Take the adapter out again; a module without adapters is left as it was, hooks and all."""
        for path in adapter_layers(model, self.name):
            detach(model.get_submodule(site_of(path)), self.name)

    def initialize(self, model: PreTrainedModel, seed: int) -> None:
        """Draw the initial values; the base's real weights are there.

        Every parameter has a generator of its own, seeded by ``seed`` and the parameter's path, so that the
        same adapter comes out whatever the order, the device or the sharding.
        """
        for path, layer in adapter_layers(model, self.name).items():

            def generator_for(parameter: str, path: str = path) -> torch.Generator:
                digest = hashlib.sha256(f"{seed}:{path}.{parameter}".encode()).digest()
                return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

            with torch.no_grad():
                layer.reset_parameters(generator_for, model.get_submodule(site_of(path)))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Inject into the module's base; a second stage finds the adapter there and leaves it."""
        refuse_same_names([each for each in trainer.callbacks if isinstance(each, Adapter)])  # type: ignore[attr-defined]
        module: Any = pl_module
        module.add_adapter(self)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was injected and how much of the model it trains."""
        module: Any = pl_module
        rank_zero_info(self.describe(module.model))

    def describe(self, model: PreTrainedModel) -> str:
        """One line: where the adapter sits, how many parameters it has, and their share of the model."""
        own = sum(p.numel() for p in self.adapter_parameters(model).values())
        total = model.num_parameters()  # counts what is packed in four bits as what it stands for
        return (
            f"{type(self).__name__} '{self.name}': {self.extent(model)}, "
            f"{own:,} trainable parameters, {100 * own / total:.3g}% of {total:,}"
        )

    def extent(self, model: PreTrainedModel) -> str:
        """What the adapter occupies, in a few words for :meth:`describe`."""
        layers = adapter_layers(model, self.name).items()
        paths = [site_of(path) for path, layer in layers if any(True for _ in layer.parameters())]
        return f"{len(paths)} modules ({', '.join(sorted({path.rsplit('.', 1)[-1] for path in paths}))})"

    @contextmanager
    def disabled(self, model: nn.Module) -> Iterator[None]:
        """Within it the model behaves as if this adapter were not there."""
        before = {layer: layer.enabled for layer in adapter_layers(model, self.name).values()}
        try:
            for layer in before:
                layer.enabled = False
            yield
        finally:
            for layer, enabled in before.items():
                layer.enabled = enabled

    @torch.no_grad()
    def merge(self, model: PreTrainedModel) -> Callable[[], None]:
        """Fold the adapter into the base's weights and switch it off; returns the exact undo.

        Merging a merged adapter does nothing, and neither does its undo. A quantised weight has no room for the
        change: it becomes a plain one in the dtype of the model, and a line says so. Whatever goes wrong, the model is
        then as it was.

        Raises:
            UserError: the method has no weight change that equals it, or the merged weight is not finite.
        """
        dequantised = 0
        with ExitStack() as undo:
            for path, layer in adapter_layers(model, self.name).items():
                if not layer.enabled:
                    continue
                base = model.get_submodule(site_of(path))
                if quantised := is_quantised(base):
                    undo.callback(dequantise(base, model.dtype))
                    dequantised += 1
                for parameter, change in self.changes(path, layer, base, model):
                    if not quantised:  # else the quantised parameter itself is kept
                        undo.callback(_give_back, parameter, parameter.detach().clone())
                    parameter.data.add_(change.to(parameter.dtype))
                layer.enabled = False
                undo.callback(setattr, layer, "enabled", True)
                if not all(torch.isfinite(changed).all() for changed in base.parameters(recurse=False)):
                    raise UserError(f"Merging '{self.name}' into {path} gives weights that are not finite.")
            if dequantised:
                say_dequantised(dequantised, model.dtype)
            return undo.pop_all().close

    def changes(
        self, path: str, layer: AdapterLayer, base: nn.Module, model: PreTrainedModel
    ) -> list[tuple[nn.Parameter, Tensor]]:
        """What is added to weight and bias of ``base`` where the layer at ``path`` is merged into it."""
        changes = {"weight": layer.delta(base), "bias": layer.bias_delta(base)}
        if changes["weight"] is None and changes["bias"] is None:
            raise UserError(f"{type(self).__name__} cannot be merged into the base; keep it as an adapter.")
        if changes["bias"] is not None and getattr(base, "bias", None) is None:
            raise UserError(f"{path} shifts what its module returns, which has no bias to merge the shift into.")
        sharing = [other for other, module in model.named_modules() if getattr(module, "weight", None) is base.weight]
        if len(sharing) > 1:
            raise UserError(f"{' and '.join(sharing)} share one weight; what was trained in one has no place in it.")
        return [(base.get_parameter(name), change) for name, change in changes.items() if change is not None]


@dataclass(eq=False)
class LinearAdapter(Adapter):
    """A method that hangs one layer on every linear module that it adapts; it writes :meth:`make_layer`.

    Args:
        placement: which sublayers are adapted: ``attn``, ``mlp`` or ``both``.
        target_modules: instead of a placement, the modules by name (``[q_proj, v_proj]``), by a regular
            expression for the whole path, or ``all-linear``.
        layers: which decoder layers: ``8-15``, ``[0, 1]``, ``-1``; all if not given.
        exclude: names or a regular expression of modules to leave out.
        modules_to_save: modules of the base that are trained whole beside the adapter, and saved with it, by name
            (``[embed_tokens, lm_head]``), as in PEFT.
    """

    peft_settings = {"target_modules": "target_modules"}

    _: KW_ONLY
    placement: Placement = "both"
    target_modules: Names | None = None
    layers: Layers | None = None
    exclude: Names | None = None
    modules_to_save: list[str] | None = None

    @abstractmethod
    def make_layer(self, site: Site, module: nn.Module) -> LinearAdapterLayer:
        """The layer for ``module``, which lies at ``site``; its parameters are empty, and on any device."""

    def targets(self, model: PreTrainedModel, arch: Architecture) -> list[Site]:
        """The modules that the adapter goes to, in the model's order."""
        return resolve(model, arch, self.placement, self.target_modules, self.layers, self.exclude)

    def inject(self, model: PreTrainedModel, arch: Architecture) -> list[Site]:
        """Hang a layer on each of :meth:`targets`."""
        sites = self.targets(model, arch)
        for site in sites:
            self.hang(model, site, self.make_layer(site, model.get_submodule(site.path)))
        return sites

    def hang(self, model: PreTrainedModel, site: Site, layer: AdapterLayer) -> None:
        """Attach ``layer`` to the module at ``site``, in float32 and on the module's device."""
        module = model.get_submodule(site.path)
        attach(module, layer.to(next(module.parameters()).device, torch.float32), self.name)

    def adapted(self, model: nn.Module) -> list[str]:
        """The paths of the linear modules that have a layer with parameters, sorted."""
        layers = self.sites(model).items()
        return sorted(path for path, own in layers if isinstance(own, LinearAdapterLayer) and [*own.parameters()])

    def peft_extra(self, model: PreTrainedModel) -> dict[str, Any]:
        """The very modules that were adapted, so that no other tool's rules can choose others."""
        paths = self.adapted(model)
        transposed = any(isinstance(model.get_submodule(path), Conv1D) for path in paths)
        return {"target_modules": paths, "fan_in_fan_out": transposed}

    @classmethod
    def from_peft(cls, config: dict[str, Any], name: str) -> Adapter:
        """As every method; what narrows the targets is read and not written, since those written are exact."""
        adapter: Any = super().from_peft(config, name)
        adapter.exclude = config.get("exclude_modules", adapter.exclude)
        adapter.layers = config.get("layers_to_transform", adapter.layers)
        return adapter


def refuse_same_names(adapters: Sequence[Adapter]) -> None:
    """Raise ``UserError`` where two of the adapters of one model have the same name."""
    names = [adapter.name for adapter in adapters]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"Two adapters are named '{name}': give each its own, by its argument 'name'.")


def describe_adapter(adapter: Adapter) -> dict[str, Any]:
    """``{class_path, init_args}``: the form in which a checkpoint and a configuration name an adapter."""
    return {
        "class_path": public_name(f"{type(adapter).__module__}.{type(adapter).__qualname__}"),
        "init_args": adapter.init_args(),
    }


def _give_back(parameter: nn.Parameter, values: Tensor) -> None:
    parameter.data.copy_(values)
