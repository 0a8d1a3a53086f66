"""What Lightning says is as it was when our words for it were written; a new version that changes it shows here."""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from adapters_pl.compat import lightning_messages as compat


@pytest.fixture(scope="module")
def sources():
    """The sources of the libraries that say these things, without the breaks within their texts."""
    found = []
    for package in ("lightning", "torch.utils._pytree", "torch.utils.data.dataloader", "bitsandbytes.backends.cpu"):
        if not importlib.util.find_spec(package.partition(".")[0]):
            continue
        place = Path(importlib.util.find_spec(package).origin)
        files = place.parent.rglob("*.py") if place.name == "__init__.py" else [place]
        found += [file.read_text(encoding="utf-8") for file in files]
    return re.sub(r"\"\s+f?\"", "", "\n".join(found))


@pytest.mark.parametrize("line", compat.NO_NEWS)
def test_a_line_that_is_left_out_is_still_said(sources, line):
    assert " ".join(line.partition(":")[0].split()[:3]) in sources


@pytest.mark.parametrize("noise", compat.NOISE)
def test_a_warning_that_is_left_out_is_still_given(sources, noise):
    words = re.split(r"\(.*`|`", noise.removeprefix(".*"))[-1 if "(" in noise else 0].strip()
    assert words in sources


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("accelerator", "says"), [("gpu", "there is no GPU here"), ("tpu", "there is no TPU here")])
def test_a_missing_accelerator_is_said_in_our_words(accelerator, says):
    with pytest.raises((MisconfigurationException, ModuleNotFoundError, RuntimeError)) as caught:
        Trainer(accelerator=accelerator)
    assert compat.said_of_trainer(caught.value).startswith(says)


@pytest.mark.parametrize("words", ["You requested gpu: ", "But your machine only has: ", "but this machine only has"])
def test_what_is_said_of_too_few_gpus_is_still_said(sources, words):
    assert words in sources


def test_an_error_of_the_trainer_is_said_and_one_of_others_is_not():
    with pytest.raises(MisconfigurationException) as caught:
        Trainer(accelerator="cpu", devices=0)
    assert compat.said_of_trainer(caught.value).startswith("trainer: `Trainer(devices=0)` value is not")
    assert compat.said_of_trainer(MisconfigurationException("not so\nbut so")) == "not so"
    assert compat.said_of_trainer(ValueError("of another")) is None


def test_noise_is_left_out_and_news_are_kept(caplog):
    compat.quiet()
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with caplog.at_level(logging.INFO, logger.name):
        logger.info("TPU available: no")
        logger.info("something of this run")
    assert [record.getMessage() for record in caplog.records] == ["something of this run"]
    with warnings.catch_warnings(record=True) as caught:
        compat.quiet()
        warnings.warn("The dataloader does not have many workers", stacklevel=1)
    assert caught == []
