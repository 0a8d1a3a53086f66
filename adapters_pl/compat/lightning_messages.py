"""What Lightning, and a library or two beside it, say: what of it is left out, and what is said in our words.

``tests/compat/test_lightning_messages.py`` goes red where a new version says it in another way.
"""

from __future__ import annotations

import logging
import re
import traceback
import warnings
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from adapters_pl.inputs.errors import first_line
from adapters_pl.inputs.masking import masked

#: What it says of a trainer that cannot be, and our words for it.
TRAINER: tuple[tuple[str, str], ...] = (
    (r"TPU|torch_xla", "there is no TPU here that torch can use: pass --trainer.accelerator cpu."),
    (
        r"No supported gpu backend|`CUDAAccelerator` can not run",
        "there is no GPU here that torch can use: pass --trainer.accelerator cpu.",
    ),
    (
        r"You requested gpu: \[(.*)\]\s*But your machine only has: \[(.*)\]",
        "GPUs {0} were asked for and only {1} is here (they count from 0): pass --trainer.devices auto.",
    ),
    (
        r"requested to find (\d+) devices but this machine only has (\d+)",
        "{0} GPUs were asked for, and there are {1}: pass --trainer.devices {1}.",
    ),
)

#: Warnings of every run, or of settings that are meant.
NOISE = (
    ".*does not have many workers",
    ".*LeafSpec",
    ".*callbacks used to create the checkpoint",
    ".*smaller than the logging interval",
    ".*Total length of `list`",
    ".*custom batch sampler",
    ".*exists and is not empty",
    ".*Experiment logs directory",
    # The last epoch ends before the validation that follows it.
    r".*ModelCheckpoint\(monitor='val_(loss|accuracy)'\)` could not find the monitored key",
)

#: How lines begin that say nothing of this run, advertise, or repeat what is printed anyway.
NO_NEWS = (
    "\N{ELECTRIC LIGHT BULB}",
    "GPU available: False",
    "TPU available",
    "Loading `train_dataloader` to estimate",
    # Which checkpoint it is has been said, and that it cannot be restored is an error.
    "Restoring states from the checkpoint",
    "Restored all states from the checkpoint",
    "Loaded model weights from the checkpoint",
    # Of bitsandbytes, which has kernels of its own beside these.
    "Failed to load CPU gemm_4bit_forward from kernels-community",
)


def said_of_trainer(error: BaseException) -> str | None:
    """What is wrong with ``--trainer.*`` in our words, if Lightning raised ``error`` while it built the trainer."""
    frames = traceback.extract_tb(error.__traceback__)
    if frames and "lightning" in Path(frames[-1].filename).parts:
        for pattern, words in TRAINER:
            if found := re.search(pattern, str(error)):
                return words.format(*found.groups())
        return f"trainer: {first_line(error)}"
    return first_line(error) if isinstance(error, MisconfigurationException) else None


def while_restoring(error: BaseException) -> bool:
    """Whether ``error`` came while Lightning took a checkpoint over."""
    files = [Path(frame.filename).name for frame in traceback.extract_tb(error.__traceback__)]
    return "checkpoint_connector.py" in files


def quiet() -> None:
    """Leave out what libraries say of every run, and of settings that are meant."""
    for logger in ("lightning.pytorch.utilities.rank_zero", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(logger).addFilter(_is_news)
    for noise in NOISE:
        warnings.filterwarnings("ignore", message=noise)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a library's line says something about this run that is not said otherwise; secrets are masked."""
    record.msg, record.args = masked(record.getMessage()), ()
    return not record.msg.startswith(NO_NEWS)
