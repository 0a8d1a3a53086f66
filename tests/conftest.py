"""Tiny models made on the spot, a tokenizer for them, and the shared data where it is at hand."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
# One thread a process, also in what tests start: several workers share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

# Asserts of the helpers say as much as those of the tests.
pytest.register_assert_rewrite("tests.helpers")
# Handlers that Lightning made in one test outlive that test's captured streams.
logging.raiseExceptions = False

SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDEN = SHARED / "golden"
DATA = SHARED / "llm_adapters_data"

VOCABULARY = 320
# Dropout is on wherever a model has it, so that a test which forgets evaluation mode goes red.
TINY: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 48, "num_key_value_heads": 4},
    "llama_gqa": {"model_type": "llama", "intermediate_size": 48, "num_key_value_heads": 2},
    "mistral": {"intermediate_size": 48, "num_key_value_heads": 2},
    "qwen2": {"intermediate_size": 48, "num_key_value_heads": 2},
    "qwen3": {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8},
    "bloom": {"n_layer": 2, "n_head": 4, "hidden_dropout": 0.1},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.1},
    "gptj": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "rotary_dim": 4,
        "n_positions": 512,
        "resid_pdrop": 0.1,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]], "resid_dropout": 0.1},
    "gpt_neox": {"intermediate_size": 48, "hidden_dropout": 0.1},
    "gemma": {"intermediate_size": 48, "num_key_value_heads": 1, "head_dim": 16},
    "gemma2": {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 16},
    "gemma3_text": {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 16},
    "phi": {"intermediate_size": 48, "resid_pdrop": 0.1},
    "phi3": {"intermediate_size": 48, "num_key_value_heads": 2, "resid_pdrop": 0.1},
    "falcon": {"multi_query": True, "hidden_dropout": 0.1},
    "glm": {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8},
    "glm4": {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8},
}


def tiny_config(name: str, **changes: Any) -> Any:
    """The configuration of a two-layer model of 32 dimensions and 4 heads."""
    settings = dict(TINY[name])
    model_type = settings.pop("model_type", name)
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return AutoConfig.for_model(model_type, **{**common, **settings, **changes})


def tiny_model(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A tiny model with weights large enough that every part of it matters, frozen, in evaluation mode."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(name, **changes), attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    return model.requires_grad_(False).eval()


def tiny_tokenizer(**changes: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 320 tokens that puts ``<bos>`` before a text and nothing after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the answer is", "how many apples does she have", "### Response:"] * 4, trainer)
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", **changes}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{k: v for k, v in special.items() if v})


#: The files that take longest, in that order: of several workers each takes a file at a time, and none should begin a
#: long one when the others are done.
LONGEST = [
    *("test_notebooks.py", "cli/test_training.py", "cli/test_machine_faults.py", "test_documented_commands.py"),
    *("runs/test_configs.py", "cli/test_hostile_inputs.py", "distributed/test_equality.py"),
    *("distributed/test_two_hosts.py", "adapters/test_matrix.py", "cli/commands/test_bench.py"),
    *("models/test_quantisation.py", "cli/commands/test_study.py", "adapters/test_peft_adapter.py"),
    *("cli/commands/test_doctor.py", "training/planning/test_tracing.py", "cli/commands/test_plan.py"),
    *("adapters/test_lora_files.py", "training/test_resume.py", "evaluation/test_engine.py"),
    *("cli/commands/test_export.py", "training/test_benchmark.py", "evaluation/test_invariance.py"),
    *("cli/test_noise.py", "distributed/test_ddp.py", "cli/test_fuzz.py", "studies/test_ledger.py"),
    *("evaluation/test_harness.py", "inputs/test_secrets.py", "distributed/test_resume.py"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first."""
    tests = Path(__file__).parent
    place = {tests / file: i for i, file in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def make_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a tiny model with its tokenizer as a directory in the hub's layout; the same call, the same folder."""
    made: dict[str, Path] = {}

    def make(name: str = "llama", seed: int = 0, **changes: Any) -> Path:
        key = f"{name}-{seed}-{sorted(changes.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"base-{name}-{seed}")
            tiny_model(name, seed, **changes).save_pretrained(made[key])
            tiny_tokenizer().save_pretrained(made[key])
        return made[key]

    return make


def sums() -> list[dict[str, str]]:
    """Forty short additions in the published layout."""
    return [
        {
            "instruction": f"What is {a} plus {b}?",
            "input": "",
            "output": f"It is {a + b}. The answer is {a + b}.",
            "answer": str(a + b),
        }
        for a in range(5)
        for b in range(8)
    ]


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    """A file of them."""
    path = tmp_path / "sums.json"
    path.write_text(json.dumps(sums()))
    return path


def shared(path: Path) -> pytest.MarkDecorator:
    """Skip, visibly, where the shared data is not beside the project."""
    return pytest.mark.skipif(not path.exists(), reason=f"{path.name} is not beside the project")
