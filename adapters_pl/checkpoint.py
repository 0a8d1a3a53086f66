"""Reading and writing adapter directories, and putting a saved adapter into a plain transformers model."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from importlib import import_module
from inspect import isabstract
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from adapters_pl.adapters import Adapter
from adapters_pl.base_model import fingerprint, same_base
from adapters_pl.errors import UserError, first_line

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
OLD_WEIGHTS_NAME = "adapter_model.bin"


def save_adapter(model: PreTrainedModel, adapter: Adapter, path: str | Path, base: str | None = None) -> Path:
    """Write ``adapter`` as a directory in PEFT's format; both files appear whole or not at all.

    Args:
        model: the model that holds the adapter.
        adapter: which of its adapters.
        path: the directory; made if it is not there.
        base: what the directory calls its base; the model's own name if not given.
    """
    config, tensors = adapter.to_peft(model)
    config = {"base_model_name_or_path": base or model.config.name_or_path or None, **config}
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as temporary:
        weights = Path(temporary) / WEIGHTS_NAME
        save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, weights, {"format": "pt"})
        description = Path(temporary) / CONFIG_NAME
        description.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(weights, folder / WEIGHTS_NAME)
        os.replace(description, folder / CONFIG_NAME)
    return folder


def load_adapter(model: PreTrainedModel, path: str | Path, name: str = "default") -> PreTrainedModel:
    """Put a saved adapter into a plain transformers model and return the model, adapter active, frozen.

    Args:
        model: a causal LM; it is changed in place.
        path: an adapter directory in PEFT's format, a checkpoint of ours (``.ckpt``), or a run's directory.
        name: what the adapter is called in the model.

    Raises:
        UserError: nothing readable lies there, the method is unknown, or the adapter is another base's. The
            model is then as it was.
    """
    source = Path(path).expanduser()
    if (source / "checkpoints").is_dir():
        source = source / "checkpoints" / "last.ckpt"
    if source.is_file():
        _load_checkpoint(model, source)
    elif (source / CONFIG_NAME).is_file():
        _load_directory(model, source, name)
    else:
        raise UserError(f"{path}: no adapter here: neither {CONFIG_NAME} nor a checkpoint.")
    return model.eval()


def _methods(cls: type[Adapter] = Adapter) -> list[type[Adapter]]:
    """Every method that is defined, those of a user's own modules included."""
    return [found for sub in cls.__subclasses__() for found in (sub, *_methods(sub)) if not isabstract(found)]


def _load_directory(model: PreTrainedModel, folder: Path, name: str) -> None:
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        tensors = _read_weights(folder)
    except FileNotFoundError:
        raise UserError(f"{folder}: {WEIGHTS_NAME} is missing.") from None
    except (json.JSONDecodeError, SafetensorError, OSError) as error:
        raise UserError(f"{folder}: cannot be read, it may be cut: {error}") from error
    method = next((cls for cls in _methods() if cls.reads(config)), None)
    if method is None:
        known = ", ".join(sorted({cls.peft_type for cls in _methods() if cls.peft_type}))
        raise UserError(f"{folder}: peft_type {config.get('peft_type')!r} is not known (known: {known}).")
    config, tensors = method.convert(config, tensors, model, old=not (folder / WEIGHTS_NAME).is_file())
    try:
        adapter = method.from_peft(config, name)
    except KeyError as error:
        raise UserError(f"{folder}: {CONFIG_NAME} does not say {error}.") from error
    adapter.modules_to_save = config.get("modules_to_save") or None
    _fill(model, [adapter], adapter.peft_key, tensors, folder)
    adapter.follow_peft(model)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a directory: safetensors, else LLM-Adapters' ``.bin``, of which nothing but tensors is read."""
    if (folder / WEIGHTS_NAME).is_file() or not (folder / OLD_WEIGHTS_NAME).is_file():
        return load_file(folder / WEIGHTS_NAME)
    try:
        return torch.load(folder / OLD_WEIGHTS_NAME, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{folder / OLD_WEIGHTS_NAME}: cannot be read as plain tensors: {first_line(error)}") from error


def _load_checkpoint(model: PreTrainedModel, path: Path) -> None:
    ours, state = read_checkpoint(path)
    if not same_base(ours["base"]["fingerprint"], fingerprint(model)):
        raise UserError(f"{path} belongs to another base: it was trained on '{ours['base']['id']}'.")
    adapters = [build_adapter(described) for described in ours["adapters"]]
    tensors = {key: value for key, value in state.items() if key.startswith("model.")}
    _fill(model, adapters, lambda parameter: f"model.{parameter}", tensors, path)


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a checkpoint of ours says of itself, and its tensors. Nothing in it is executed.

    Raises:
        UserError: it cannot be read, or it is not one of ours.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return stored["adapters_pl"], stored["state_dict"]
    except Exception as error:
        raise UserError(f"{path} cannot be read as a checkpoint of adapters-pl: {first_line(error)}") from error


def build_adapter(described: dict[str, Any]) -> Adapter:
    """The adapter that ``{class_path, init_args}`` describes; only subclasses of :class:`Adapter` are built."""
    module, _, name = described["class_path"].rpartition(".")
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"The adapter class {described['class_path']} cannot be imported: {error}.") from error
    if not (isinstance(cls, type) and issubclass(cls, Adapter)):
        raise UserError(f"{described['class_path']} is no adapter.")
    return cls(**described["init_args"])


def _fill(
    model: PreTrainedModel,
    adapters: list[Adapter],
    key_of: Callable[[str], str],
    tensors: dict[str, Tensor],
    where: Path,
) -> None:
    """Inject ``adapters`` into ``model`` and give every parameter its tensor, or change nothing.

    Raises:
        UserError: a tensor is missing, left over, of another shape or not finite.
    """
    added = [adapter for adapter in adapters if adapter.attach_to(model, seed=None)]
    try:
        expected = {
            key_of(parameter): tensor
            for adapter in adapters
            for parameter, tensor in adapter.adapter_parameters(model).items()
        }
        for key, parameter in expected.items():
            if key not in tensors:
                raise UserError(f"{where}: does not fit this model: {key} is missing.")
            if tensors[key].shape != parameter.shape:
                raise UserError(
                    f"{where}: belongs to another base: {key} has shape {tuple(tensors[key].shape)}, "
                    f"this model needs {tuple(parameter.shape)}."
                )
            if not torch.isfinite(tensors[key]).all():
                raise UserError(f"{where}: {key} holds values that are not finite.")
        if left := sorted(set(tensors) - set(expected)):
            raise UserError(f"{where}: does not fit this model: {left[0]} has no place (and {len(left) - 1} more).")
    except UserError:
        for adapter in added:
            adapter.detach_from(model)
        raise
    with torch.no_grad():
        for key, parameter in expected.items():
            parameter.copy_(tensors[key])
            parameter.requires_grad_(False)
