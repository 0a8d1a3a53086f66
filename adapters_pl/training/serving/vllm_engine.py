"""vLLM behind the verbs of an engine."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from adapters_pl.adapters.base import Adapter
from adapters_pl.data.module import ReasoningDataModule
from adapters_pl.data.questions import Choices
from adapters_pl.evaluation.engine import Decoding
from adapters_pl.evaluation.generation import Generation, as_generation, end_tokens
from adapters_pl.evaluation.scoring import Scored
from adapters_pl.inputs.errors import UserError, first_line
from adapters_pl.models.quantisation import short_name
from adapters_pl.training.adapted import BaseSource
from adapters_pl.training.serving.served import LORA_RANKS, NO_SCORING, Served, written

#: What keeps vLLM on this machine: no statistics of its use, no hub, its processes on the loopback interface. The rest
#: are its log, and its threads, which are not pinned to cores that others use.
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
#: Batches of prompts that are handed over at once: vLLM fills places of its own accord, but answers are kept, for a
#: test that is interrupted, when all of them are there.
_BATCHES_AT_ONCE = 8


class VLLMEngine:
    """A base with a LoRA, or with an adapter merged into it, answered by vLLM in a process of its own.

    Greedy answers are the likeliest tokens, as with transformers; where two are nearly as likely, rounding decides, and
    a few texts differ. Sampled ones are drawn by vLLM, with each prompt's own seed.

    Args:
        served: what lies on the disk.
        folder: the temporary directory that it was written to; removed by :meth:`close`.
        tokenizer: the base's own.
        ends: the tokens that end an answer.
        config: the base's.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        batch_size: texts that are answered at the same time.
        longest: the most tokens of a text, with its answer.
    """

    def __init__(
        self,
        served: Served,
        folder: TemporaryDirectory[str],
        tokenizer: PreTrainedTokenizerBase,
        ends: Sequence[int],
        config: PretrainedConfig,
        dtype: str,
        batch_size: int,
        longest: int,
    ) -> None:
        import vllm
        from vllm.lora.request import LoRARequest

        self.tokenizer, self.ends, self._folder = tokenizer, list(ends), folder
        self.context: int | None = longest
        self._at_once = _BATCHES_AT_ONCE * batch_size
        self._parameters = vllm.SamplingParams
        self._lora = LoRARequest("adapter", 1, str(served.lora)) if served.lora else None
        lora: dict[str, Any] = {}
        if served.lora:
            lora = {"enable_lora": True, "max_lora_rank": next(rank for rank in LORA_RANKS if rank >= served.rank)}
        on_cpu = _on_cpu()
        with _environment(cache_gib=cache_gib(config, dtype, batch_size, longest) if on_cpu else None):
            try:
                self._llm = vllm.LLM(
                    str(served.base),
                    dtype=dtype,
                    max_model_len=longest,
                    max_num_seqs=batch_size,
                    generation_config="vllm",  # the base's own settings of decoding are set aside
                    trust_remote_code=False,
                    skip_tokenizer_init=True,
                    enforce_eager=on_cpu,  # compiling takes longer there than most tests
                    distributed_executor_backend="uni",
                    disable_log_stats=True,
                    seed=0,
                    **lora,
                )
            except Exception as error:  # of its own kinds, and of its process
                folder.cleanup()
                raise UserError(
                    f"vLLM could not load {served.base} ({first_line(error)}); what it wrote above says more. Take "
                    "--model.engine transformers."
                ) from error

    @contextmanager
    def base_alone(self) -> Iterator[None]:
        """Within it the base answers without the adapter."""
        lora, self._lora = self._lora, None
        try:
            yield
        finally:
            self._lora = lora

    def generate(
        self, prompts: Sequence[list[int]], decoding: Decoding, seeds: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """Continue every prompt, from the longest to the shortest.

        Raises:
            ValueError: beams, or sampling without a seed for each prompt.
        """
        sampled = decoding.temperature > 0
        if decoding.beams > 1 or (sampled and (seeds is None or len(seeds) != len(prompts))):
            raise ValueError("vLLM takes one beam, and samples with one seed a prompt.")
        for places in self._portions([len(prompt) for prompt in prompts]):
            how = [
                self._parameters(
                    temperature=decoding.temperature,
                    seed=seeds[place] if sampled and seeds is not None else None,
                    max_tokens=decoding.max_new_tokens,
                    stop_token_ids=self.ends,
                    ignore_eos=True,  # it is one of those that end an answer
                    detokenize=False,
                )
                for place in places
            ]
            for place, output in zip(places, self._run([prompts[place] for place in places], how), strict=True):
                yield place, as_generation(self.tokenizer, list(output.outputs[0].token_ids), self.ends)

    def score(self, requests: Sequence[Choices]) -> Iterator[tuple[int, Scored]]:
        """Raise ``UserError``: it is refused before vLLM begins."""
        raise UserError(f"model.engine vllm: {NO_SCORING}")

    def settle(self) -> None:
        """No other process computes with this one."""

    def close(self) -> None:
        """End vLLM's process, and remove what was written for it."""
        if (llm := self.__dict__.pop("_llm", None)) is not None:
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()
        self._folder.cleanup()

    def _portions(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """The places of texts that are handed over together, the longest first."""
        order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
        for first in range(0, len(order), self._at_once):
            yield order[first : first + self._at_once]

    def _run(self, texts: Sequence[list[int]], how: Sequence[Any]) -> list[Any]:
        prompts = [{"prompt_token_ids": ids} for ids in texts]
        try:
            return self._llm.generate(prompts, list(how), lora_request=self._lora, use_tqdm=False)
        except Exception as error:  # of its own kinds, and of its process
            raise UserError(f"vLLM failed ({first_line(error)}). Take --model.engine transformers.") from error


def serve(
    source: BaseSource,
    model: PreTrainedModel,
    adapters: Mapping[str, Adapter],
    data: ReasoningDataModule,
    test_base: bool,
) -> VLLMEngine:
    """Begin vLLM with the base and the adapter, if there is one; the model goes to the CPU, so that vLLM has its place.

    Args:
        source: which base.
        model: the base with its adapter.
        adapters: one or none.
        data: the sets that will be asked.
        test_base: whether the base alone answers, too; then nothing is merged that need not be.

    Raises:
        UserError: vLLM does not take the model.
    """
    # On CPUs a LoRA beside the weights takes vLLM ten times as long as one in them. Below float32 merging would round.
    merged = _on_cpu() and model.dtype == torch.float32 and not test_base
    folder = TemporaryDirectory(prefix="adapters-pl-")
    served = written(source, model, next(iter(adapters.values()), None), Path(folder.name), merged)
    model.to("cpu")  # type: ignore[arg-type]
    questions = [data.questions(name) for name in data.eval_sets]
    longest = max(len(row.prompt) + each.max_new_tokens for each in questions if each for row in each.rows)
    tokenizer, dtype = source.tokenizer, short_name(model.dtype)
    ends = end_tokens(model, tokenizer)
    return VLLMEngine(served, folder, tokenizer, ends, source.config, dtype, data.eval_batch_size, longest)


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def cache_gib(config: PretrainedConfig, dtype: str, batch_size: int, longest: int) -> int:
    """The GiB that keys and values of ``batch_size`` texts of ``longest`` tokens take, rounded up."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    each = 2 * text.num_hidden_layers * heads * size * (4 if dtype == "float32" else 2)
    return math.ceil(each * batch_size * longest / 2**30)


@contextmanager
def _environment(cache_gib: int | None) -> Iterator[None]:
    """Within it vLLM's process begins; what the user has set of it counts."""
    wanted = {**_ENVIRONMENT, **({"VLLM_CPU_KVCACHE_SPACE": str(cache_gib)} if cache_gib else {})}
    added = {key: value for key, value in wanted.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)
