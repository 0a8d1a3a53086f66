"""What vLLM is given: the base with the adapter as a LoRA of vLLM's own, or merged; and what it cannot serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PreTrainedModel

from adapters_pl.adapters.base import Adapter
from adapters_pl.adapters.layers import adapter_layers, site_of
from adapters_pl.data.module import ReasoningDataModule
from adapters_pl.inputs.errors import UserError
from adapters_pl.models.base import locate
from adapters_pl.training.adapted import BaseSource
from adapters_pl.training.adapter_files import save_adapter

#: The ranks that vLLM makes room for; a LoRA takes the next larger one.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
#: Settings in ``adapter_config.json`` that vLLM refuses, or does not read and so would compute something else by.
_MORE_THAN_LORA = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias")
#: vLLM's log-likelihoods of prompts fail on CPUs where a LoRA is active (0.32).
NO_SCORING = "options are scored by transformers alone (--data.protocol loglikelihood)."
_TRANSFORMERS = "Take --model.engine transformers."


@dataclass(frozen=True)
class Served:
    """What lies on the disk for vLLM.

    Attributes:
        base: a model's directory.
        lora: an adapter's directory in PEFT's format; ``None`` where there is none, or it is merged into ``base``.
        rank: of the LoRA.
    """

    base: Path
    lora: Path | None = None
    rank: int = 0


def lora_rank(config: Mapping[str, Any]) -> int | None:
    """The rank of an adapter that vLLM takes as it is; ``None`` where it has to be merged into the base.

    Args:
        config: the contents of ``adapter_config.json``.
    """
    rank = config.get("r")
    if config.get("peft_type") != "LORA" or not isinstance(rank, int) or rank > LORA_RANKS[-1]:
        return None
    if config.get("bias", "none") != "none" or config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        return None
    return None if any(config.get(setting) for setting in _MORE_THAN_LORA) else rank


def refuse_unserved(
    source: BaseSource, adapters: Sequence[Adapter], data: ReasoningDataModule, *, test_base: bool, processes: int
) -> None:
    """Raise ``UserError`` where vLLM cannot answer as transformers would; no weights are loaded for it.

    Args:
        source: which base.
        adapters: what hangs on it.
        data: what is asked, and how.
        test_base: whether the base alone answers, too.
        processes: of the test.
    """
    if find_spec("vllm") is None:
        raise UserError(
            "model.engine vllm needs vLLM, which is not installed: pip install 'adapters-pl[vllm]' (README, 'Engines': "
            "how, while vLLM asks for an older transformers)."
        )
    protocol = data.asking.protocol
    for wrong, why in (
        (source.quantization, f"the base is quantised to {source.quantization}, which vLLM does in another way."),
        (source.random_init, "the base's weights are random, and vLLM reads those on the disk."),
        (source.add_tokens, "tokens were added to the base."),
        (source.trust_remote_code, "the base comes with code of its own, which is not run there."),
        (processes > 1, f"this test has {processes} processes, and vLLM divides the work itself."),
        (not protocol.generates, NO_SCORING),
        (
            protocol.beams > 1,
            f"protocol {protocol.name} searches with {protocol.beams} beams, and vLLM writes greedily.",
        ),
        (data.general_text is not None, "data.general_text is scored by transformers."),
        (len(adapters) > 1, f"{len(adapters)} adapters work together."),
    ):
        if wrong:
            raise UserError(f"model.engine vllm: {why} {_TRANSFORMERS}")
    for adapter in adapters:
        if not served_as_lora(source.skeleton(), adapter) and test_base:
            raise UserError(
                f"model.engine vllm: {type(adapter).__name__} is merged into the base, so the base alone cannot answer "
                f"beside it: add --model.test_base false. Or take --model.engine transformers."
            )


def served_as_lora(skeleton: PreTrainedModel, adapter: Adapter) -> bool:
    """Whether vLLM takes the adapter as it is, rather than merged into the base.

    Args:
        skeleton: the base on the meta device; the adapter is hung on it and taken off again.
        adapter: the adapter.

    Raises:
        UserError: it is neither a plain LoRA nor a change of weights.
    """
    adapter.attach_to(skeleton, seed=None)
    try:
        if adapter.peft_type is not None and lora_rank(adapter.to_peft(skeleton)[0]) is not None:
            return True
        for path, layer in adapter_layers(skeleton, adapter.name).items():
            adapter.changes(path, layer, skeleton.get_submodule(site_of(path)), skeleton)
    except UserError as error:
        raise UserError(f"model.engine vllm serves LoRA, and what can be merged: {error} {_TRANSFORMERS}") from error
    finally:
        adapter.detach_from(skeleton)
    return False


def written(
    source: BaseSource, model: PreTrainedModel, adapter: Adapter | None, folder: Path, merged: bool = False
) -> Served:
    """Write what vLLM needs and does not find on the disk below ``folder``, which is temporary.

    Args:
        source: which base.
        model: the base with the adapter in it; after it as before.
        adapter: what hangs on it.
        folder: an empty directory.
        merged: merge what vLLM would take as a LoRA, too, where that is possible.
    """
    if adapter is not None:
        as_lora = served_as_lora(source.skeleton(), adapter)
        if merged or not as_lora:
            try:
                undo = adapter.merge(model)
            except UserError:
                if not as_lora:
                    raise
            else:
                try:
                    return Served(_save(model, adapter, folder / "merged"))
                finally:
                    undo()
    base = _on_the_disk(source) or _save(model, adapter, folder / "base")
    if adapter is None:
        return Served(base)
    rank = lora_rank(adapter.to_peft(model)[0])
    assert rank is not None
    return Served(base, save_adapter(model, adapter, folder / "lora", str(base)), rank)


def _save(model: PreTrainedModel, adapter: Adapter | None, folder: Path) -> Path:
    """Write the model as it computes without the adapter's own layers."""
    layers = adapter.adapter_state(model) if adapter is not None else {}
    state = {name: value for name, value in model.state_dict().items() if name not in layers}
    model.save_pretrained(folder, state_dict=state)
    return folder


def _on_the_disk(source: BaseSource) -> Path | None:
    """The directory that the base was loaded from; ``None`` where it was made of something else."""
    where = locate(source.base)
    if not Path(where).exists():
        # It was downloaded when it was loaded here.
        return Path(snapshot_download(where, revision=source.revision, local_files_only=True))
    return Path(where) if Path(where).is_dir() else None
