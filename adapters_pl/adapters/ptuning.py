"""P-tuning: virtual tokens that a small network makes (Liu et al. 2021, "GPT understands, too", arXiv 2103.10385)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adapters_pl.adapters.layers import normal
from adapters_pl.adapters.prompt import SoftPrompt, SoftPromptAdapter, embedding_width
from adapters_pl.adapters.virtual_tokens import reset_network
from adapters_pl.inputs.ranges import AtLeast1, Share

Encoder = Literal["mlp", "lstm", "none"]


class EncodedPrompt(SoftPrompt):
    """A soft prompt ``encoder(prompt_embeddings)``, (P, D) -> (P, D); trained are the encoder and what it reads.

    ``mlp`` is three linear layers with ReLU between them, ``lstm`` a bidirectional LSTM of two layers and an MLP
    behind it (section 3.1 of the paper); both as in PEFT.
    """

    def __init__(self, count: int, width: int, kind: Encoder, hidden: int, lstm_layers: int, dropout: float) -> None:
        super().__init__(count, width, "random")
        self.lstm: nn.LSTM | None = None
        if kind == "lstm":
            self.lstm = nn.LSTM(width, hidden, lstm_layers, dropout=dropout, bidirectional=True, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))
        else:
            self.mlp = nn.Sequential(
                nn.Linear(width, hidden),
                nn.ReLU(),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Linear(hidden, width),
            )

    def embeddings(self) -> Tensor:
        inputs = self.prompt_embeddings
        if self.lstm is not None:
            inputs = self.lstm(inputs[None])[0][0]
        return self.mlp(inputs)

    def reset_parameters(self, generator_for: Callable[[str], torch.Generator], base: nn.Module) -> None:
        """Draw the inputs from N(0, 1) as PEFT does, and the encoder as PyTorch does."""
        normal(self.prompt_embeddings, 1.0, generator_for("prompt_embeddings"))
        reset_network(self, "", generator_for)


@dataclass(eq=False)
class PTuning(SoftPromptAdapter):
    """Virtual tokens that an encoder makes; after training only what it makes is kept.

    Not the identity at step 0. Logits cover the T given tokens; ``model(..., return_virtual=True)`` gives
    those of the virtual tokens too, P + T.

    Args:
        virtual_tokens: how many.
        encoder: ``mlp``, ``lstm``, or ``none``: the tokens are then parameters themselves, which is what a saved
            directory holds.
        encoder_hidden: the encoder's hidden size; the embedding's width if not given.
        lstm_layers: the LSTM's layers.
        lstm_dropout: between them.
    """

    peft_type = "P_TUNING"

    virtual_tokens: AtLeast1 = 20
    _: KW_ONLY
    encoder: Encoder = "mlp"
    encoder_hidden: AtLeast1 | None = None
    lstm_layers: AtLeast1 = 2
    lstm_dropout: Share = 0.0

    def make_layer(self, model: PreTrainedModel) -> SoftPrompt:
        width = embedding_width(model)
        if self.encoder == "none":
            return SoftPrompt(self.virtual_tokens, width, "random")
        hidden = self.encoder_hidden or width
        return EncodedPrompt(self.virtual_tokens, width, self.encoder, hidden, self.lstm_layers, self.lstm_dropout)

    @classmethod
    def from_peft(cls, config: dict[str, Any], name: str) -> PTuning:
        """As every method; directories hold no encoder."""
        adapter: Any = super().from_peft(config, name)
        adapter.encoder = "none"
        return adapter

    def peft_extra(self, model: PreTrainedModel) -> dict[str, Any]:
        return {
            **super().peft_extra(model),
            "encoder_reparameterization_type": "LSTM" if self.encoder == "lstm" else "MLP",
            "encoder_hidden_size": self.encoder_hidden or embedding_width(model),
            "encoder_num_layers": self.lstm_layers,
            "encoder_dropout": self.lstm_dropout,
        }
