"""Quantised bases: bitsandbytes' 8-bit and 4-bit linear layers, loaded through transformers' own configuration.

8-bit is LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339), 4-bit QLoRA's NormalFloat with double quantisation
(Dettmers et al. 2023, arXiv 2305.14314). Embeddings, norms and the output head stay as they are.

In evaluation an 8-bit layer rounds its inputs too, but for columns that hold an outlier anywhere in the batch. So its
outputs differ a little between training and evaluation, and from one batch to another.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import is_accelerate_available, is_bitsandbytes_available

from adapters_pl.compat.lightning import rank_zero_info
from adapters_pl.inputs.errors import UserError

Quantization = Literal["8bit", "4bit"]


def quantisation_of(config: PretrainedConfig) -> str | None:
    """How the weights that belong to ``config`` are stored: ``8bit``, ``4bit``, another method's name, or plain."""
    stored: Any = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    settings = stored if isinstance(stored, dict) else stored.to_dict()
    for kind in ("8bit", "4bit"):
        if settings.get(f"load_in_{kind}"):
            return kind
    return str(settings.get("quant_method"))


def loading_arguments(
    base: str, config: PretrainedConfig, wanted: Quantization | None, device: torch.device
) -> dict[str, Any]:
    """What ``from_pretrained`` is given so that ``base`` is quantised on ``device``; nothing for a plain base.

    Raises:
        UserError: bitsandbytes is missing, or the weights are stored in another quantisation than the wanted one.
    """
    stored = quantisation_of(config)
    if stored not in (None, "8bit", "4bit"):
        raise UserError(
            f"base '{base}': its weights are quantised by {stored}, which is not supported; "
            "name the base that they were made from, with --model.quantization 4bit if memory is short."
        )
    if stored and wanted not in (None, stored):
        raise UserError(
            f"base '{base}': its weights are stored in {stored}, --model.quantization asks for {wanted}: leave it out."
        )
    if not (stored or wanted):
        return {}
    if not (is_bitsandbytes_available() and is_accelerate_available()):
        raise UserError(f"A base in {stored or wanted} needs bitsandbytes: pip install 'adapters-pl[quant]'")
    # When it is imported, it advises to install other kernels than those that it has.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    arguments: dict[str, Any] = {"device_map": {"": device}}
    if stored is None:
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=wanted == "8bit",
            load_in_4bit=wanted == "4bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
        )
    return arguments


def compute_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """What 4-bit layers multiply in: float32 on a CPU; on a GPU the base's dtype, under ``auto`` bfloat16 if it can.

    So results on a CPU do not depend on what its bfloat16 instructions are.
    """
    if device.type != "cuda":
        return torch.float32
    if dtype != "auto":
        return getattr(torch, dtype)
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32


def prepare(model: nn.Module, compute: torch.dtype) -> None:
    """Make a quantised model multiply in ``compute``, and mend what is wrong with its layers."""
    mend(model)
    for layer in _four_bit_layers(model):
        layer.compute_dtype, layer.compute_type_is_set = compute, True
    # It warns of every call that rounds its input to float16, as all 8-bit calls in evaluation do.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def mend(model: nn.Module) -> None:
    """Keep 4-bit layers from silently learning nothing, and from multiplying by wrong scales.

    On a CPU with avx512_bf16 an evaluation packs their weights anew, for which there is a fast kernel; the packed
    weights give no gradient. What is wrong with the scales,
    :class:`~adapters_pl.models.linear4bit.AnySizeLinear4bit` says.
    """
    for layer in _four_bit_layers(model):
        layer.support_avx512bf16_for_cpu = False
        if type(layer) is _library().nn.Linear4bit and layer.in_features % layer.weight.blocksize:
            from adapters_pl.models.linear4bit import AnySizeLinear4bit  # which imports bitsandbytes

            layer.__class__ = AnySizeLinear4bit


def _library() -> Any:
    """bitsandbytes, if it is loaded: unless it is, no module can be of its kinds."""
    return sys.modules.get("bitsandbytes")


def _four_bit_layers(model: nn.Module) -> list[Any]:
    library = _library()
    return [module for module in model.modules() if isinstance(module, library.nn.Linear4bit)] if library else []


def is_quantised(module: nn.Module) -> bool:
    """Whether ``module`` is a linear layer of bitsandbytes'."""
    library = _library()
    return library is not None and isinstance(module, library.nn.Linear4bit | library.nn.Linear8bitLt)


def dequantised(module: nn.Module) -> Tensor:
    """The weight that a quantised layer multiplies by, (out_features, in_features), float32."""
    layer: Any = module
    if not hasattr(layer, "state"):
        from adapters_pl.models import linear4bit  # which imports bitsandbytes, loaded by now

        return linear4bit.dequantised(layer)
    # The first forward pass moves the row maxima from the weight to the layer.
    scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
    return layer.weight.data.float() * scales.float().mul(1 / 127)[:, None]


def plain_weight(module: nn.Module) -> Tensor:
    """The same in the shape of the layer that was quantised: GPT-2's ``Conv1D`` is (in_features, out_features)."""
    weight = dequantised(module)
    return weight.T.contiguous() if _was_conv(module) else weight


def dequantise(module: nn.Module, dtype: torch.dtype) -> Callable[[], None]:
    """Turn a quantised layer in its place into the plain one that it was made from; returns the exact undo.

    The layer stays the same object, so that its path, its hooks and its adapters stay.
    """
    layer: Any = module
    kind, weight, bias = layer.__class__, layer.weight, layer.bias
    plain = nn.Parameter(plain_weight(layer).to(dtype), requires_grad=False)

    def undo() -> None:
        layer.__class__, layer.weight, layer.bias = kind, weight, bias

    layer.weight = plain
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().to(dtype, copy=True), requires_grad=False)
    layer.__class__ = Conv1D if _was_conv(layer) else nn.Linear
    if isinstance(layer, Conv1D):
        layer.nx, layer.nf = layer.weight.shape
    return undo


def say_dequantised(count: int, dtype: torch.dtype) -> None:
    """One line on what merging into a quantised base has done to it."""
    rank_zero_info(f"Merged into a quantised base: {count} of its modules are plain now, in {short_name(dtype)}.")


def short_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def dequantise_model(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """Turn ``model`` into the plain one whose weights the quantised layers stand for; returns how many there were."""
    layers = [module for module in model.modules() if is_quantised(module)]
    for layer in layers:
        dequantise(layer, dtype)
    if layers:
        quantizer: Any = model.hf_quantizer
        quantizer.remove_quantization_config(model)
    return len(layers)


def _was_conv(module: nn.Module) -> bool:
    return getattr(module, "source_cls", nn.Linear) is Conv1D
