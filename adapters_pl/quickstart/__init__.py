"""A tiny pretrained Llama base and word problems to tune it on, for trying adapters in two minutes on a CPU.

``problems`` makes the tuning data, ``corpus`` the pretraining text, and ``pretrain`` turns the text into
the files under ``BASE``. Importing this package loads nothing but the path.
"""

from pathlib import Path

BASE = Path(__file__).parent / "base"

__all__ = ["BASE"]
