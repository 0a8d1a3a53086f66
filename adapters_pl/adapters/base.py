"""What every adapter method shares: layers, and the callback that hangs them into the slots of a base."""

from __future__ import annotations

import copy
import hashlib
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from adapters_pl.inputs.errors import UserError, did_you_mean
from adapters_pl.inputs.names import public_name
from adapters_pl.inputs.ranges import refuse_out_of_range
from adapters_pl.models.architectures import Architecture
from adapters_pl.models.discovery import architecture_of
from adapters_pl.models.placement import Layers, Names, Placement, Site, matches
from adapters_pl.models.quantisation import dequantise, is_quantised, mend, plain_weight, say_dequantised
from adapters_pl.models.slots import attach, base_modules, detach, place_of, remove_slot, slot_of


class AdapterLayer(nn.Module, ABC):
    """One adapter at one site of the model, and the identity until a method writes :meth:`enter` or :meth:`leave`.

    All parameters of the layer are the adapter's: what is trained, saved and counted is what is declared here, never
    what a name happens to contain.
    """

    #: Set where the layer is attached: which adapter it belongs to.
    adapter_name: str
    #: While false the module behaves as if the layer were not there.
    enabled: bool = True
    #: The buffers that are saved beside the parameters, and not trained.
    saved_buffers: tuple[str, ...] = ()
    _reads_one_tensor: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls._reads_one_tensor and {"before", "after"} & vars(cls).keys():
            raise TypeError(f"{cls.__name__} writes before or after: derive it from LinearAdapterLayer.")

    def enter(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """What the adapted module is called with."""
        return args, kwargs

    def leave(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """What the adapted module returns."""
        return output

    @abstractmethod
    def reset_parameters(self, generator_for: Callable[[str], torch.Generator], base: nn.Module) -> None:
        """Draw the initial values in place; ``generator_for(parameter_name)`` is seeded by that name."""

    def delta(self, base: nn.Module) -> Tensor | None:
        """The change of ``base.weight`` that equals this layer, in its shape; ``None`` if there is none."""
        return None

    def bias_delta(self, base: nn.Module) -> Tensor | None:
        """The change of ``base.bias`` that belongs to :meth:`delta`; ``None`` if the bias stays."""
        return None


class LinearAdapterLayer(AdapterLayer):
    """A layer of a module that reads one tensor: ``after(x, y, base)`` of ``y = base(before(x))``.

    ``x`` is the input after every ``before``.
    """

    _reads_one_tensor = True

    def enter(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The call with :meth:`before` of its first argument."""
        x, *rest = args
        return (self.before(x), *rest), kwargs

    def leave(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """:meth:`after` of what the module returns."""
        return self.after(args[0], output, base)

    def before(self, x: Tensor) -> Tensor:
        """What the adapted module reads instead of ``x``: (..., in_features) -> the same shape."""
        return x

    def after(self, x: Tensor, y: Tensor, base: nn.Module) -> Tensor:
        """What the adapted module returns instead of ``y``: (..., out_features) -> the same shape."""
        return y


def site_of(path: str) -> str:
    """The path of the module that an adapter's layer or parameter at ``path`` hangs on; empty for the model itself."""
    place = place_of(path)
    assert place is not None
    return place.site


def adapter_layers(model: nn.Module, name: str | None = None) -> dict[str, AdapterLayer]:
    """The adapter layers inside ``model`` by path, those of adapter ``name`` or all."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, AdapterLayer) and name in (None, module.adapter_name)
    }


def activate(model: nn.Module, *names: str) -> None:
    """Let exactly the adapters called ``names`` work, and switch every other one off; none gives the base alone.

    Raises:
        UserError: ``model`` has no adapter of that name.
    """
    layers = adapter_layers(model).values()
    known = {layer.adapter_name for layer in layers}
    for name in names:
        if name not in known:
            raise UserError(f"There is no adapter '{name}': {did_you_mean(name, known)}")
    for layer in layers:
        layer.enabled = layer.adapter_name in names


class ModuleCopy(AdapterLayer):
    """A module of the base that is trained whole: a float32 copy that answers in its place.

    Identity at step 0, where it holds the base's values. The base's own module stays as it is, so switching
    the adapter off gives it back, even where it is tied to another.
    """

    PREFIX = "copy."

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.copy = copy.deepcopy(module)
        remove_slot(self.copy)
        for inner in self.copy.modules():
            if is_quantised(inner):
                dequantise(inner, torch.float32)
        self.copy.float().requires_grad_(True)

    def reset_parameters(self, generator_for: Callable[[str], torch.Generator], base: nn.Module) -> None:
        """Take the base's values."""
        values = base.state_dict()
        for path, inner in base.named_modules():
            if is_quantised(inner):
                values[f"{path}.weight" if path else "weight"] = plain_weight(inner)
        for name, value in self.copy.state_dict().items():
            value.copy_(values[name])

    def delta(self, base: nn.Module) -> Tensor | None:
        """The difference of the weights; ``None`` for a module that is more than a weight and a bias."""
        own = dict(self.copy.named_parameters())
        return self.copy.weight - base.weight.float() if own.keys() <= {"weight", "bias"} else None  # type: ignore

    def bias_delta(self, base: nn.Module) -> Tensor | None:
        """The difference of the biases."""
        bias: Tensor | None = getattr(base, "bias", None)
        return None if bias is None else self.copy.bias - bias.float()  # type: ignore[operator]

    def leave(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        """The copy's answer to the same arguments, in the dtype of the base's."""
        own = [arg.float() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args]
        return self.copy(*own, **kwargs).to(output.dtype)


class Adapter(Callback, ABC):
    """An adapter method: a Lightning callback that injects its layers into the frozen base in ``setup``.

    A subclass writes :meth:`inject`, and every argument of its ``__init__`` is kept under its own name, so
    that a checkpoint can say how to build it again.

    Args:
        name: what tells several adapters of one model apart.
        placement: which sublayers are adapted: ``attn``, ``mlp`` or ``both``.
        target_modules: instead of a placement, the modules by name (``[q_proj, v_proj]``), by a regular
            expression for the whole path, or ``all-linear``.
        layers: which decoder layers: ``8-15``, ``[0, 1]``, ``-1``; all if not given.
        exclude: names or a regular expression of modules to leave out.
        modules_to_save: modules of the base that are trained whole beside the adapter, and saved with it, by name
            (``[embed_tokens, lm_head]``), as in PEFT.
    """

    #: The ``peft_type`` that adapter directories of this method carry.
    peft_type: ClassVar[str | None] = None
    #: Positions of the model's context that the adapter takes.
    virtual_tokens: int = 0

    def __init__(
        self,
        *,
        name: str = "default",
        placement: Placement = "both",
        target_modules: Names | None = None,
        layers: Layers | None = None,
        exclude: Names | None = None,
        modules_to_save: list[str] | None = None,
    ) -> None:
        refuse_out_of_range(f"{type(self).__name__}: ", Adapter.__init__, locals())
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", name):
            raise UserError(f"adapter name '{name}': use letters, digits, '-' and '_', beginning with a letter.")
        if placement not in ("attn", "mlp", "both"):
            raise UserError(f"placement '{placement}': choose attn, mlp or both.")
        self.name = name
        self.placement = placement
        self.target_modules = target_modules
        self.layers = layers
        self.exclude = exclude
        self.modules_to_save = modules_to_save

    # ---- what a method writes

    @abstractmethod
    def inject(self, model: PreTrainedModel, arch: Architecture) -> list[Site]:
        """Hang the layers into ``model`` and return where; structure only.

        Works on the meta device and draws no random number. Injecting twice is an error of the caller;
        :meth:`attach_to` sees to it.
        """

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

    @classmethod
    def from_peft(cls, config: dict[str, Any], name: str) -> Adapter:
        """The adapter that a PEFT ``adapter_config.json`` of this method describes."""
        raise UserError(f"{cls.__name__} reads no PEFT directories.")

    def peft_config(self, model: PreTrainedModel) -> dict[str, Any]:
        """What this method adds to ``adapter_config.json``: its settings, by PEFT's names."""
        raise UserError(f"{type(self).__name__} has no PEFT format; its checkpoints are .ckpt files.")

    def follow_peft(self, model: PreTrainedModel) -> None:
        """Behave as PEFT does where this method knows better; for adapters of PEFT's in plain models."""

    def peft_name(self, own: str) -> str:
        """PEFT's name for a layer's parameter ``own``, relative to the adapted module."""
        return own

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Groups for the optimizer; one with the optimizer's own settings unless a method needs more.

        A group may hold ``lr_ratio``, its learning rate over the optimizer's.
        """
        return [{"params": list(self.adapter_parameters(model).values())}]

    # ---- what every method has

    def to_peft(self, model: PreTrainedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The adapter as PEFT writes it: the contents of ``adapter_config.json`` and the tensors by key."""
        config = {
            "peft_type": self.peft_type,
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "modules_to_save": self.modules_to_save,
            **self.peft_config(model),
        }
        return config, self.peft_tensors(model)

    def peft_tensors(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """The tensors of a PEFT directory by key."""
        return {self.peft_key(name): value.detach() for name, value in self.adapter_parameters(model).items()}

    def peft_key(self, parameter: str) -> str:
        """The key of ``parameter`` (as :meth:`adapter_parameters` names it) in a PEFT directory."""
        place = place_of(parameter)
        assert place is not None
        own = place.own
        theirs = own.removeprefix(ModuleCopy.PREFIX) if own.startswith(ModuleCopy.PREFIX) else self.peft_name(own)
        return f"base_model.model.{place.site}.{theirs}"

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
        names: dict[str, None] = {}
        for cls in type(self).__mro__:
            parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
            names.update({p.name: None for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)})
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break  # what a class hands on with **kwargs are the next one's arguments
        return {name: getattr(self, name) for name in names if name != "self"}

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
            base = model.get_submodule(site_of(path))

            def generator_for(parameter: str, path: str = path) -> torch.Generator:
                digest = hashlib.sha256(f"{seed}:{path}.{parameter}".encode()).digest()
                return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

            with torch.no_grad():
                layer.reset_parameters(generator_for, base)

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
        layers = adapter_layers(model, self.name).values()
        was = [layer.enabled for layer in layers]
        for layer in layers:
            layer.enabled = False
        try:
            yield
        finally:
            for layer, enabled in zip(layers, was, strict=True):
                layer.enabled = enabled

    @torch.no_grad()
    def merge(self, model: PreTrainedModel) -> Callable[[], None]:
        """Fold the adapter into the base's weights and switch it off; returns the exact undo.

        Merging a merged adapter does nothing, and neither does its undo. A quantised weight has no room for the
        change: it becomes a plain one in the dtype of the model, and a line says so.

        Raises:
            UserError: the method has no weight change that equals it, or the merged weight is not finite.
        """
        undone: list[Callable[[], Any]] = []
        dequantised = 0

        def undo() -> None:
            while undone:
                undone.pop()()

        for path, layer in adapter_layers(model, self.name).items():
            if not layer.enabled:
                continue
            base = model.get_submodule(site_of(path))
            if quantised := is_quantised(base):
                undone.append(dequantise(base, model.dtype))  # whose undo knows nothing of what is added below
                dequantised += 1
            changes = {"weight": layer.delta(base), "bias": layer.bias_delta(base)}
            if changes["weight"] is None and changes["bias"] is None:
                undo()
                raise UserError(f"{type(self).__name__} cannot be merged into the base; keep it as an adapter.")
            if changes["bias"] is not None and getattr(base, "bias", None) is None:
                undo()
                raise UserError(f"{path} shifts what its module returns, which has no bias to merge the shift into.")
            sharing = [
                other for other, module in model.named_modules() if getattr(module, "weight", None) is base.weight
            ]
            if len(sharing) > 1:
                undo()
                raise UserError(
                    f"{' and '.join(sharing)} share one weight; what was trained in one has no place in it."
                )
            for name, change in changes.items():
                if change is not None:
                    parameter = base.get_parameter(name)
                    if not quantised:
                        undone.append(partial(_give_back, parameter, parameter.detach().clone()))
                    parameter.data.add_(change.to(parameter.dtype))
            layer.enabled = False
            undone.append(partial(setattr, layer, "enabled", True))
            if not all(torch.isfinite(changed).all() for changed in base.parameters(recurse=False)):
                undo()
                raise UserError(f"Merging '{self.name}' into {path} gives weights that are not finite.")
        if dequantised:
            say_dequantised(dequantised, model.dtype)
        return undo


def refuse_same_names(adapters: Sequence[Adapter]) -> None:
    """Raise ``UserError`` where two of the adapters of one model have the same name."""
    names = [adapter.name for adapter in adapters]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"Two adapters are named '{name}': give each its own, by its argument 'name'.")


def _give_back(parameter: nn.Parameter, values: Tensor) -> None:
    parameter.data.copy_(values)


def describe_adapter(adapter: Adapter) -> dict[str, Any]:
    """``{class_path, init_args}``: the form in which a checkpoint and a configuration name an adapter."""
    return {
        "class_path": public_name(f"{type(adapter).__module__}.{type(adapter).__qualname__}"),
        "init_args": adapter.init_args(),
    }
