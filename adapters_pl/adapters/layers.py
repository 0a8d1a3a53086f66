"""What an adapter adds at one module of the base: the layers, and how those of a model are found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adapters_pl.inputs.errors import UserError, did_you_mean
from adapters_pl.models.quantisation import dequantise, is_quantised, plain_weight
from adapters_pl.models.slots import place_of, remove_slot


class AdapterLayer(nn.Module):
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

    def reset_parameters(self, generator_for: Callable[[str], torch.Generator], base: nn.Module) -> None:
        """Draw the initial values in place; ``generator_for(parameter_name)`` is seeded by that name.

        Raises:
            TypeError: the layer has parameters, and its class does not say how they begin.
        """
        if any(True for _ in self.parameters()):
            raise TypeError(f"{type(self).__name__} has parameters: write reset_parameters, which gives their values.")

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
        x, *rest = args
        return (self.before(x), *rest), kwargs

    def leave(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return self.after(args[0], output, base)

    def before(self, x: Tensor) -> Tensor:
        """What the adapted module reads instead of ``x``: (..., in_features) -> the same shape."""
        return x

    def after(self, x: Tensor, y: Tensor, base: nn.Module) -> Tensor:
        """What the adapted module returns instead of ``y``: (..., out_features) -> the same shape."""
        return y


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
        bias: Tensor | None = getattr(base, "bias", None)
        return None if bias is None else self.copy.bias - bias.float()  # type: ignore[operator]

    def leave(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        """The copy's answer to the same arguments, in the dtype of the base's."""
        own = [arg.float() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args]
        return self.copy(*own, **kwargs).to(output.dtype)


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


def uniform(parameter: Tensor, bound: float, generator: torch.Generator) -> None:
    """Fill ``parameter`` from U(-bound, bound), the same values on every device."""
    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


def normal(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill ``parameter`` from N(0, std), the same values on every device."""
    parameter.copy_(torch.empty(parameter.shape).normal_(0, std, generator=generator))
