"""A trainer without ornaments, and a training on the little sums."""

from __future__ import annotations

from lightning.pytorch import Trainer

from adapters_pl import CausalLMModule, InstructionJSON, LoRA


def trainer(folder, *callbacks, **settings):
    defaults = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "use_distributed_sampler": False,
    }
    return Trainer(callbacks=list(callbacks), **{**defaults, **settings})


def fit(folder, base, rows_file, adapter=None, data=None, module=None, **settings):
    """Train a module on the little sums and return it with its trainer."""
    module = module or CausalLMModule(str(base), lr=1e-2)
    adapters = [adapter or LoRA(rank=4, dropout=0.0)]
    run = trainer(folder, *adapters, **settings)
    run.fit(module, datamodule=InstructionJSON(path=str(rows_file), **{"val_size": 4, **(data or {})}))
    return module, run
