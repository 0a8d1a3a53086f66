"""Prompt tuning: learned embeddings in front of the text (Lester et al. 2021, arXiv 2104.08691)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adapters_pl.adapters.layers import normal
from adapters_pl.adapters.virtual_tokens import VirtualTokenAdapter, VirtualTokens
from adapters_pl.inputs.ranges import AtLeast1

Init = Literal["vocabulary", "random"]


class SoftPrompt(VirtualTokens):
    """``prompt_embeddings`` (P, D) in front of the embedded text, D the width of the base's embedding table.

    The decoder's last hidden states, and so the logits, are those of the T given tokens, unless the virtual
    ones are asked for. Not the identity at step 0: P tokens of the vocabulary, or of noise, stand before the text.
    """

    def __init__(self, count: int, width: int, init: Init) -> None:
        super().__init__(count)
        self.init = init
        self.prompt_embeddings = nn.Parameter(torch.empty(count, width, dtype=torch.float32))

    def embeddings(self) -> Tensor:
        return self.prompt_embeddings

    def reset_parameters(self, generator_for: Callable[[str], torch.Generator], base: nn.Module) -> None:
        """Take the text's embeddings, those of tokens drawn from the vocabulary, or noise of their scale."""
        # Asked, not read from its table: some models scale what they look up (Gemma).
        embed: nn.Module = base.get_input_embeddings()  # type: ignore[operator]
        table: Tensor = embed.weight  # type: ignore[assignment]
        generator = generator_for("prompt_embeddings")
        drawn = torch.randint(table.shape[0], (self.count,), generator=generator)
        embedded = embed((drawn if self.text_ids is None else self.text_ids).to(table.device)).float()
        if self.text_ids is None and self.init == "random":
            normal(self.prompt_embeddings, float(embedded.std(correction=0)), generator)
        else:
            self.prompt_embeddings.copy_(embedded)

    def begin(self, base: nn.Module, call: dict[str, Any], batch: int) -> None:
        """Embed the given tokens and put the virtual ones in front."""
        embedded = call.get("inputs_embeds")
        if embedded is None:
            embedded = base.get_input_embeddings()(call.pop("input_ids"))  # type: ignore[operator]
        virtual = self.embeddings().to(embedded).expand(batch, -1, -1)
        call["inputs_embeds"] = torch.cat([virtual, embedded], dim=1)
        call["input_ids"] = None
        if (positions := call.get("position_ids")) is not None:
            # A prefix that is there already holds the first positions.
            start = getattr(call.get("past_key_values"), "virtual_length", 0)
            first = torch.arange(start, start + self.count, device=positions.device)
            call["position_ids"] = torch.cat([first.expand(positions.shape[0], -1), positions], dim=1)

    def leave(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Take the virtual positions out of the hidden states again."""
        if kwargs.get("inputs_embeds") is None or self.return_virtual:
            return output
        if isinstance(output, tuple):
            return (output[0][:, self.count :], *output[1:])
        output.last_hidden_state = output.last_hidden_state[:, self.count :]
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(states[:, self.count :] for states in output.hidden_states)
        return output


@dataclass(eq=False)
class SoftPromptAdapter(VirtualTokenAdapter):
    """What :class:`PromptTuning` and PTuning share."""

    def follow_peft(self, model: PreTrainedModel) -> None:
        """Count positions by place: PEFT drops the positions that ``generate`` takes from the mask.

        A left-padded row then sees its text further from the virtual tokens than an unpadded one, so this is
        only for adapters in plain transformers models, which should answer as they do under PEFT.
        """
        self.layer(model).by_place = True

    def peft_extra(self, model: PreTrainedModel) -> dict[str, Any]:
        text = model.config.get_text_config()
        return {
            "token_dim": embedding_width(model),
            "num_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "num_transformer_submodules": 1,
        }


@dataclass(eq=False)
class PromptTuning(SoftPromptAdapter):
    """Learned embeddings in front of the text's own.

    Not the identity at step 0. Logits cover the T given tokens; ``model(..., return_virtual=True)`` gives
    those of the virtual tokens too, P + T.

    Args:
        virtual_tokens: how many; the paper (section 3.2) finds little gain beyond 20.
        init: ``vocabulary`` begins as tokens drawn from the vocabulary, ``random`` as noise of their scale.
        init_text: begin as this text's tokens instead, repeated or cut to fit.
    """

    peft_type = "PROMPT_TUNING"

    virtual_tokens: AtLeast1 = 20
    _: KW_ONLY
    init: Init = "vocabulary"
    init_text: str | None = None

    def make_layer(self, model: PreTrainedModel) -> SoftPrompt:
        return SoftPrompt(self.virtual_tokens, embedding_width(model), self.init)

    def peft_extra(self, model: PreTrainedModel) -> dict[str, Any]:
        """As every soft prompt; how the tokens began does not matter any more."""
        return {**super().peft_extra(model), "prompt_tuning_init": "RANDOM"}


def embedding_width(model: PreTrainedModel) -> int:
    """The width of the base's embedding table, which is not the hidden size in every model (OPT-350m)."""
    table: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    return table.shape[1]
