"""How layers hang on the modules of a base, and how they are found again: the one place that knows.

A layer never replaces the module that it adapts. It is registered below it, in a :class:`Slot`, and two hooks of the
module let it change the input and the output. So the names of the base's own parameters stay what they were, weights
load before or after the injection, and a quantised or sharded linear layer needs no special case.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

from adapters_pl.inputs.errors import UserError

#: The attribute under which a module holds its slot; a base may use the name itself.
_ATTRIBUTE = "adapters"


class Slot(nn.ModuleDict):
    """The layers of one module by adapter name, in the order in which they were injected. They are known by this type.

    A layer has ``enabled``, ``enter(module, args, kwargs)``, which says what the module is called with, and
    ``leave(module, args, kwargs, output)``, which says what it returns.
    """

    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        self.add_hooks(owner)

    def add_hooks(self, owner: nn.Module) -> None:
        """Let the layers work where ``owner`` is called."""
        self._hooks = (
            owner.register_forward_pre_hook(_run_enter, with_kwargs=True),
            owner.register_forward_hook(_run_leave, with_kwargs=True),
        )

    def remove_hooks(self) -> None:
        """Give the module its own forward back."""
        for hook in self._hooks:
            hook.remove()


def _run_enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    layers: Any = getattr(module, _ATTRIBUTE).values()
    for layer in layers:
        if layer.enabled:
            args, kwargs = layer.enter(module, args, kwargs)
    return args, kwargs


def _run_leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    layers: Any = getattr(module, _ATTRIBUTE).values()
    for layer in layers:
        if layer.enabled:
            output = layer.leave(module, args, kwargs, output)
    return output


def slot_of(module: nn.Module) -> Slot | None:
    """The layers that hang on ``module``."""
    slot = module._modules.get(_ATTRIBUTE)
    return slot if isinstance(slot, Slot) else None


@contextmanager
def bypassed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it those of ``modules`` whose layers are all switched off are called as if nothing hung on them."""
    slots = [(module, slot) for module in modules if (slot := slot_of(module)) is not None]
    off = [(module, slot) for module, slot in slots if not any(layer.enabled for layer in slot.values())]
    for _, slot in off:
        slot.remove_hooks()
    try:
        yield
    finally:
        for module, slot in off:
            slot.add_hooks(module)


def attach(module: nn.Module, layer: nn.Module, name: str) -> None:
    """Hang ``layer`` on ``module`` as adapter ``name``, in the mode that the module is in.

    The hooks are registered once per module.

    Raises:
        UserError: the module already has an adapter of this name, or something of its own where adapters go.
    """
    slot = slot_of(module)
    if slot is None:
        if hasattr(module, _ATTRIBUTE):
            raise UserError(
                f"{type(module).__name__} has an attribute '{_ATTRIBUTE}' of its own: adapt modules inside it."
            )
        slot = Slot(module)
        module.register_module(_ATTRIBUTE, slot)
    if name in slot:
        raise UserError(f"Two adapters are named '{name}': give each its own --adapter.name.")
    layer.adapter_name = name  # type: ignore[assignment]
    slot[name] = layer.train(module.training)


def detach(module: nn.Module, name: str) -> None:
    """Take adapter ``name`` off ``module``; a module without adapters is left as it was, hooks and all."""
    slot = slot_of(module)
    assert slot is not None
    del slot[name]
    if not len(slot):
        remove_slot(module)


def remove_slot(module: nn.Module) -> None:
    """Take every adapter off ``module``, if it has any."""
    if (slot := slot_of(module)) is not None:
        slot.remove_hooks()
        delattr(module, _ATTRIBUTE)


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The model's own modules with their paths, as ``named_modules`` gives them, without adapters and what is in them.

    A module that stands in several places comes once.
    """
    inside = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, Slot))
    for path, module in model.named_modules():
        if not f"{path}.".startswith(inside):
            yield path, module


class Place(NamedTuple):
    """What the path of a layer, or of something in it, says.

    Attributes:
        site: the path of the module that the layer hangs on; empty for the model itself.
        adapter: the adapter's name.
        own: the path within the layer; empty for the layer.
    """

    site: str
    adapter: str
    own: str = ""

    @property
    def path(self) -> str:
        """The path in the model."""
        return ".".join(part for part in (self.site, _ATTRIBUTE, self.adapter, self.own) if part)


def place_of(path: str) -> Place | None:
    """Where ``path`` leads, a path in a model or a key in a checkpoint; ``None`` if it leads into no layer."""
    site, found, rest = f".{path}".rpartition(f".{_ATTRIBUTE}.")
    adapter, _, own = rest.partition(".")
    return Place(site.removeprefix("."), adapter, own) if found else None
