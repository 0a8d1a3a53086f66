"""Saved adapters: directories in PEFT's format, LLM-Adapters' files, and what our checkpoints hold of adapters."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from inspect import isabstract
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from adapters_pl.adapters import Adapter, adapter_layers
from adapters_pl.adapters.virtual_tokens import ReturnVirtual
from adapters_pl.compat.dcp import is_sharded
from adapters_pl.inputs.errors import UserError, first_line, out_of_memory
from adapters_pl.inputs.hub import at_hand, refuse_unreachable
from adapters_pl.inputs.masking import masked_values
from adapters_pl.inputs.names import subclasses
from adapters_pl.inputs.untrusted import has_shape, read_json, reading
from adapters_pl.models.base import grow_embeddings
from adapters_pl.models.fingerprint import fingerprint, same_base
from adapters_pl.models.named import NAMED
from adapters_pl.models.slots import place_of
from adapters_pl.training.checkpoint import build_adapter, check_arguments, read_checkpoint, unread

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
OLD_WEIGHTS_NAME = "adapter_model.bin"

_STRUCTURE = ("model_type", "hidden_size", "num_hidden_layers")


def save_adapter(
    model: PreTrainedModel,
    adapter: Adapter,
    path: str | Path,
    base: str | None = None,
    add_tokens: list[str] | None = None,
) -> Path:
    """Write ``adapter`` as a directory in PEFT's format; both files appear whole or not at all.

    Args:
        model: the model that holds the adapter.
        adapter: which of its adapters.
        path: the directory; made if it is not there.
        base: what the directory calls its base; the model's own name if not given. Of a named base that was fetched
            the directory names the hub id that it was made from, which other tools can load, and the weights' file
            keeps the name, by which the base is found again here.
        add_tokens: tokens that the base's tokenizer was given before training; they are noted beside the weights.
    """
    config, tensors = adapter.to_peft(model)
    text = model.config.get_text_config()
    # PEFT's configuration has no place for it: what tells a deeper or wider relative of the base apart.
    metadata = {"format": "pt", **{key: str(getattr(text, key)) for key in _STRUCTURE}}
    if add_tokens:
        metadata["add_tokens"] = json.dumps(add_tokens)
    base = base or model.config.name_or_path or None
    if base in NAMED:
        metadata["base"], base = base, NAMED[base].hub_id
    config = masked_values({"base_model_name_or_path": base, **config})
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as temporary:
        weights = Path(temporary) / WEIGHTS_NAME
        save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, weights, metadata)
        description = Path(temporary) / CONFIG_NAME
        description.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(weights, folder / WEIGHTS_NAME)
        os.replace(description, folder / CONFIG_NAME)
    return folder


@dataclass
class SavedAdapters:
    """Adapters as they were read, before they are put into a model.

    Attributes:
        where: the directory or checkpoint, for messages.
        adapters: the adapters; one, unless a checkpoint holds several.
        tensors: their tensors, by the source's own keys.
        key: the key of an adapter's parameter among them.
        base_id: what the source calls its base.
        check: refuses a model of another base.
        add_tokens: tokens that the base's tokenizer was given before training.
    """

    where: Path
    adapters: list[Adapter]
    tensors: dict[str, Tensor]
    key: Callable[[Adapter, str], str]
    base_id: str | None
    check: Callable[[PreTrainedModel], None]
    add_tokens: list[str]

    def put_into(self, model: PreTrainedModel) -> None:
        """Inject the adapters into ``model`` and give every parameter its tensor, or change nothing.

        On the meta device parameters are replaced by the tensors, so that a directory can be written without
        the base's weights.

        Raises:
            UserError: the model has an adapter of that name, a tensor is missing, left over, of another shape
                or not finite, or the base is another.
        """
        rows = _embedding_rows(model)
        added: list[Adapter] = []
        try:
            with reading(self.where, "take another copy"):
                self.check(model)
                self.make_room(model)
                for adapter in self.adapters:
                    if adapter_layers(model, adapter.name):
                        raise UserError(f"Two adapters are named '{adapter.name}': load one under another name.")
                    added.append(adapter)
                    try:
                        adapter.attach_to(model, seed=None)
                    except UserError as error:
                        raise UserError(f"{self.where}: does not fit this model: {error}") from error
                    except (MemoryError, RuntimeError) as error:
                        if not out_of_memory(error):
                            raise
                        raise UserError(
                            f"{self.where}: there is too little memory for what its settings ask for; take another "
                            "copy, if they are not what they should be."
                        ) from error
                self.fill(model)
        except BaseException:
            for adapter in added:
                adapter.detach_from(model)
            if _embedding_rows(model) > rows:
                model.resize_token_embeddings(rows)
                model.requires_grad_(False)
            raise

    def make_room(self, model: PreTrainedModel) -> None:
        """Grow the model's embeddings if the saved ones, which were trained whole, have tokens that it lacks."""
        embedding = model.get_input_embeddings()
        path = next(path for path, module in model.named_modules() if module is embedding)
        leaf = path.rsplit(".", 1)[-1]
        for key, tensor in self.tensors.items():
            place = place_of(key)
            owner = place.site if place else key.removesuffix(".weight")
            if tensor.ndim and key.endswith(".weight") and f".{owner}".endswith(f".{leaf}"):
                grow_embeddings(model, tensor.shape[0])

    def fill(self, model: PreTrainedModel) -> None:
        """Give every parameter of the adapters, which are in ``model`` already, its tensor."""
        expected = {
            self.key(adapter, name): (name, parameter)
            for adapter in self.adapters
            for name, parameter in adapter.adapter_state(model).items()
        }
        if (self.where / CONFIG_NAME).is_file():
            # What goes with the parameters need not be in a directory of PEFT's, which makes it again.
            expected = {k: v for k, v in expected.items() if isinstance(v[1], nn.Parameter) or k in self.tensors}
        for key, (_, parameter) in expected.items():
            if key not in self.tensors:
                raise UserError(f"{self.where}: does not fit this model: {key} is missing.")
            tensor = self.tensors[key]
            if tensor.is_floating_point() != parameter.is_floating_point():
                raise UserError(f"{self.where}: {key} holds {tensor.dtype}, this model needs {parameter.dtype}.")
            if tensor.shape != parameter.shape:
                raise UserError(
                    f"{self.where}: belongs to another base: {key} has shape {tuple(tensor.shape)}, "
                    f"this model needs {tuple(parameter.shape)}."
                )
            if not torch.isfinite(tensor).all():
                raise UserError(f"{self.where}: {key} holds values that are not finite.")
        if left := sorted(set(self.tensors) - set(expected)):
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            raise UserError(f"{self.where}: does not fit this model: {left[0]} has no place{more}.")
        with torch.no_grad():
            for key, (name, parameter) in expected.items():
                if parameter.is_meta:
                    owner, _, own = name.rpartition(".")
                    value = self.tensors[key].to(parameter.dtype)
                    trained = isinstance(parameter, nn.Parameter)
                    setattr(model.get_submodule(owner), own, nn.Parameter(value) if trained else value)
                else:
                    parameter.copy_(self.tensors[key])


def _embedding_rows(model: PreTrainedModel) -> int:
    table: Any = model.get_input_embeddings()
    return table.weight.shape[0]


def load_adapter(
    model: PreTrainedModel,
    path: str | Path,
    name: str = "default",
    *,
    return_virtual: bool = False,
    follow_peft: bool = True,
) -> PreTrainedModel:
    """Put a saved adapter into a plain transformers model and return the model, adapter active, frozen.

    A second adapter under another name works beside the first; :func:`~adapters_pl.adapters.activate` chooses.
    Nothing of what lies at ``path`` is run: a class of your own is built only if you have imported it.

    Args:
        model: a causal LM; it is changed in place.
        path: an adapter directory in PEFT's format, LLM-Adapters' included, a checkpoint of ours (``.ckpt``), a
            run's directory, or the hub id of an adapter directory.
        name: what the adapter is called in the model.
        return_virtual: whether the logits of a prompt-based adapter cover its virtual tokens too; a single call
            of the model may say otherwise, ``model(..., return_virtual=True)``.
        follow_peft: whether prompt tuning and P-tuning count positions as PEFT does: by place in the padded row, so
            that a row answers otherwise when it is padded on the left. False counts them as in training, and every row
            answers as it does alone.

    Raises:
        UserError: nothing readable lies there, the method is unknown, or the adapter is another base's. The
            model is then as it was.
    """
    saved = read_adapter(path, model.config, name)
    saved.put_into(model)
    for adapter in saved.adapters:
        for parameter in adapter.adapter_parameters(model).values():
            parameter.requires_grad_(False)
        if follow_peft:
            adapter.follow_peft(model)
        for layer in adapter_layers(model, adapter.name).values():
            if isinstance(layer, ReturnVirtual):
                layer.by_default = return_virtual
    return model.eval()


def read_adapter(path: str | Path, base: PretrainedConfig, name: str = "default") -> SavedAdapters:
    """Read what lies at ``path``, which may be whatever :func:`load_adapter` takes, for a model like ``base``.

    Raises:
        UserError: nothing readable lies there, or the method is unknown.
    """
    source = find_adapter(path)
    directory = (source / CONFIG_NAME).is_file()
    return _read_directory(source, base, name) if directory else _read_checkpoint(source, name)


def find_adapter(path: str | Path) -> Path:
    """The adapter directory or checkpoint that ``path`` means; one on the hub is downloaded.

    Raises:
        UserError: there is none, or the hub did not give it.
    """
    source = Path(os.path.expanduser(path))
    if (source / "checkpoints").is_dir():
        source = source / "checkpoints" / "last.ckpt"
    if source.is_file() or (source / CONFIG_NAME).is_file() or is_sharded(source):
        return source
    if source.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        raise UserError(f"{path}: no adapter here: neither {CONFIG_NAME} nor a checkpoint.")
    refuse_unreachable(str(path), CONFIG_NAME)
    try:
        with at_hand():
            return Path(snapshot_download(str(path), allow_patterns=[CONFIG_NAME, WEIGHTS_NAME, OLD_WEIGHTS_NAME]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UserError(f"{path}: no adapter here, and the hub did not give one. ({first_line(error)})") from error


def base_of(path: str | Path) -> tuple[str | None, str | None]:
    """The base that a saved adapter names, and its revision."""
    source = find_adapter(path)
    if (source / CONFIG_NAME).is_file():
        config = read_json(source / CONFIG_NAME)
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
        if not has_shape([base, revision], [(str, None)]):
            raise UserError(f"{source / CONFIG_NAME}: the name of its base is no text; mend it, or pass --model.base.")
        named = NAMED.get(_noted(source).get("base", ""))
        return (named.name if named and named.hub_id == base else base), revision
    ours, _ = read_checkpoint(source)
    return ours["base"]["id"], ours["base"]["revision"]


def import_adapters(path: str | Path) -> None:
    """Import the classes of the adapters in a checkpoint, which the user trusts; a directory names none."""
    source = find_adapter(path)
    for described in [] if (source / CONFIG_NAME).is_file() else read_checkpoint(source)[0]["adapters"]:
        with reading(source, "import its classes yourself"):
            import_module(described["class_path"].rpartition(".")[0])


def _methods() -> list[Any]:
    """Every method that is defined, those of a user's own modules included."""
    return [cls for cls in subclasses(Adapter) if not isabstract(cls)]


def _read_directory(folder: Path, base: PretrainedConfig, name: str) -> SavedAdapters:
    config = read_json(folder / CONFIG_NAME)
    old = not (folder / WEIGHTS_NAME).is_file() and (folder / OLD_WEIGHTS_NAME).is_file()
    tensors, metadata = _read_old_weights(folder) if old else _read_weights(folder)
    texts = isinstance(config.get("peft_type"), str)
    method = next((cls for cls in _methods() if texts and cls.reads(config)), None)
    if method is None:
        known = ", ".join(sorted({cls.peft_type for cls in _methods() if cls.peft_type}))
        raise UserError(f"{folder}: peft_type {config.get('peft_type')!r:.80} is not known (known: {known}).")
    with reading(folder / CONFIG_NAME, "mend it, or take another copy of the adapter"):
        config, tensors = method.convert(config, tensors, base, old)
        adapter = method.from_peft(config, name)
        adapter.modules_to_save = config.get("modules_to_save") or None
        check_arguments(adapter, folder / CONFIG_NAME)

    def check(model: PreTrainedModel) -> None:
        text = model.config.get_text_config()
        for key in _STRUCTURE:
            here = str(getattr(text, key, None))
            if metadata.get(key, here) != here:
                raise UserError(f"{folder}: belongs to another base: its {key} is {metadata[key]}, here it is {here}.")

    base_id = config.get("base_model_name_or_path")
    with reading(folder / WEIGHTS_NAME):
        added = json.loads(metadata.get("add_tokens", "[]"))
    if not has_shape(added, [str]):
        raise UserError(f"{folder / WEIGHTS_NAME}: its add_tokens is no list of tokens; take another copy.")
    return SavedAdapters(
        folder, [adapter], tensors, lambda adapter, name: adapter.peft_key(name), base_id, check, added
    )


def _noted(folder: Path) -> dict[str, str]:
    """What the weights' file of a directory says beside its tensors; nothing where it cannot be read."""
    try:
        with safe_open(folder / WEIGHTS_NAME, "pt") as opened:
            return opened.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def _read_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    file = folder / WEIGHTS_NAME
    if not file.is_file():
        raise UserError(f"{folder}: {WEIGHTS_NAME} is missing.")
    try:
        with safe_open(file, "pt") as opened:
            keys = opened.keys()
            return {key: opened.get_tensor(key) for key in keys}, opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: cannot be read, it may be cut: {error}") from error


def _read_old_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """LLM-Adapters' ``.bin``, of which nothing but tensors is read."""
    file = folder / OLD_WEIGHTS_NAME
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{file}: cannot be read as plain tensors: {unread(error)}") from error
    if not has_shape(tensors, {str: Tensor}):
        raise UserError(f"{file}: holds something else than tensors by name; take another copy.")
    return tensors, {}


def _read_checkpoint(path: Path, name: str) -> SavedAdapters:
    ours, state = read_checkpoint(path)
    adapters = [build_adapter(described, path) for described in ours["adapters"]]
    stored_names = {adapter.name: adapter.name for adapter in adapters}
    if name != "default" and len(adapters) == 1:
        stored_names = {name: adapters[0].name}
        adapters[0].name = name

    def key(adapter: Adapter, parameter: str) -> str:
        place = place_of(parameter)  # peft's layers lie in none
        return f"model.{place._replace(adapter=stored_names[adapter.name]).path if place else parameter}"

    def check(model: PreTrainedModel) -> None:
        if not same_base(ours["base"]["fingerprint"], fingerprint(model)):
            raise UserError(f"{path} belongs to another base: it was trained on '{ours['base']['id']}'.")

    tensors = {key: value for key, value in state.items() if key.startswith("model.")}
    return SavedAdapters(path, adapters, tensors, key, ours["base"]["id"], check, ours.get("add_tokens") or [])
