"""What prompt-based methods share: learned virtual tokens in front of the given ones, and their file format."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adapters_pl.adapters.base import Adapter
from adapters_pl.adapters.layers import AdapterLayer, adapter_layers, uniform
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.ranges import AtLeast1
from adapters_pl.models.architectures import Architecture
from adapters_pl.models.base import load_tokenizer
from adapters_pl.models.head import parameter_names
from adapters_pl.models.placement import Site
from adapters_pl.models.slots import attach


class VirtualTokens(AdapterLayer):
    """P learned positions in front of what the decoder is given: the layer hangs on the decoder itself.

    Wherever a call begins a sequence, the virtual positions are put in front of it; in every call the attention
    mask gets P ones in front and positions move up by P, since the decoder's cache holds the virtual positions
    too. So any padding, batching, beams and caching come out as if the P positions were part of the text.
    """

    #: The parameters that the virtual tokens are, or are made from.
    prompt_embeddings: nn.Parameter

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        #: The token ids that the virtual tokens begin as, (P,), where a text was given.
        self.text_ids: Tensor | None = None
        #: Whether positions are places in the padded row, as PEFT counts them, instead of what the caller gives.
        self.by_place = False
        #: Whether the decoder's output keeps the virtual positions; see :class:`ReturnVirtual`.
        self.return_virtual = False

    @abstractmethod
    def embeddings(self) -> Tensor:
        """The virtual tokens as PEFT's files hold them: ``prompt_embeddings``, (P, width)."""

    @abstractmethod
    def begin(self, base: nn.Module, call: dict[str, Any], batch: int) -> None:
        """Put the virtual positions in front of the sequence that ``call`` begins, in place."""

    def enter(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Extend mask and positions of every call, and begin the sequence if this call does."""
        call = {**dict(zip(parameter_names(type(base).forward), args, strict=False)), **kwargs}
        given = call["input_ids"] if call.get("input_ids") is not None else call["inputs_embeds"]
        mask, positions = call.get("attention_mask"), call.get("position_ids")
        if mask is not None:
            if not isinstance(mask, Tensor) or mask.ndim != 2:
                raise UserError("Virtual tokens need an attention mask of shape (B, T); a prepared mask has no room.")
            call["attention_mask"] = torch.cat([mask.new_ones(mask.shape[0], self.count), mask], dim=1)
        if positions is not None:
            call["position_ids"] = None if self.by_place else positions + self.count
        if begins(call):
            self.begin(base, call, given.shape[0])
        return (), call


def begins(call: dict[str, Any]) -> bool:
    """Whether a decoder's call begins a sequence: its cache holds nothing but other adapters' virtual tokens."""
    past = call.get("past_key_values")
    return past is None or past.get_seq_length() == getattr(past, "virtual_length", 0)


class ReturnVirtual(AdapterLayer):
    """Gives the whole model an argument ``return_virtual``: whether its logits cover the virtual tokens too."""

    def __init__(self, tokens: VirtualTokens) -> None:
        super().__init__()
        # Not as a submodule: its parameters belong to the decoder's slot.
        self._tokens = (tokens,)
        #: What the argument is where a call does not give it.
        self.by_default = False

    def enter(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        self._tokens[0].return_virtual = kwargs.pop("return_virtual", self.by_default)
        return args, kwargs


@dataclass(eq=False)
class VirtualTokenAdapter(Adapter):
    """A method whose one layer hangs on the decoder; :class:`PrefixTuning`, :class:`PromptTuning`, :class:`PTuning`."""

    peft_settings = {"virtual_tokens": "num_virtual_tokens"}

    virtual_tokens: AtLeast1 = 20
    #: The text that the virtual tokens begin as, for methods that take one.
    init_text: str | None = field(default=None, init=False, repr=False)

    @abstractmethod
    def make_layer(self, model: PreTrainedModel) -> VirtualTokens:
        """The layer for ``model``, its parameters undrawn."""

    def inject(self, model: PreTrainedModel, arch: Architecture) -> list[Site]:
        decoder = model.get_decoder()
        with torch.device("meta"):  # where the networks' own initial values are not drawn
            layer = self.make_layer(model)
        layer.float().to_empty(device=next(decoder.parameters()).device)
        attach(decoder, layer, self.name)
        attach(model, ReturnVirtual(layer), self.name)
        path = next(path for path, module in model.named_modules() if module is decoder)
        return [Site(path, None, *layer.prompt_embeddings.shape)]

    def layer(self, model: nn.Module) -> VirtualTokens:
        """The injected layer."""
        return next(layer for layer in adapter_layers(model, self.name).values() if isinstance(layer, VirtualTokens))

    def text_ids(self, model: PreTrainedModel) -> Tensor | None:
        """The token ids of ``init_text``, repeated or cut to P; ``None`` without a text."""
        if self.init_text is None:
            return None
        source = model.config.name_or_path
        if not source:
            raise UserError("init_text needs a base that was loaded from a directory or the hub, with its tokenizer.")
        tokenizer = load_tokenizer(source, getattr(model.config, "_commit_hash", None))
        ids = tokenizer(self.init_text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise UserError("init_text holds no token.")
        repeated = ids * (self.virtual_tokens // len(ids) + 1)
        return torch.tensor(repeated[: self.virtual_tokens])

    def initialize(self, model: PreTrainedModel, seed: int) -> None:
        self.layer(model).text_ids = self.text_ids(model)
        super().initialize(model, seed)

    def peft_tensors(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """PEFT's directories hold the virtual tokens themselves, never the network that made them."""
        return {"prompt_embeddings": self.layer(model).embeddings().detach()}

    def peft_key(self, parameter: str) -> str:
        """An adapter that was read from a directory has one parameter, and a directory one tensor."""
        return "prompt_embeddings"

    def extent(self, model: PreTrainedModel) -> str:
        return f"{self.virtual_tokens} virtual tokens"


def reset_network(network: nn.Module, prefix: str, generator_for: Callable[[str], torch.Generator]) -> None:
    """Draw every parameter of linear layers and LSTMs as PyTorch does: uniform in +-1/sqrt(what they read).

    A bias reads what its weight reads; an LSTM's bound is its hidden size.
    """
    for path, module in network.named_modules():
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
        elif isinstance(module, nn.LSTM):
            bound = module.hidden_size**-0.5
        else:
            continue
        for name, parameter in module.named_parameters():
            uniform(parameter, bound, generator_for(".".join(part for part in (prefix, path, name) if part)))
