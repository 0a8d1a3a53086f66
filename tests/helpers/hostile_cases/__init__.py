"""The cases that :mod:`tests.helpers.hostile_inputs` tries: what is typed, and what is done to the files before."""

from __future__ import annotations

from collections.abc import Iterator

from tests.helpers.hostile_cases.adapters import adapter_cases
from tests.helpers.hostile_cases.checkpoints import checkpoint_cases, sharded_cases
from tests.helpers.hostile_cases.commands import command_cases
from tests.helpers.hostile_cases.common import ADAPTERS, QUIET, fit
from tests.helpers.hostile_cases.configs import class_cases, config_cases, key_cases
from tests.helpers.hostile_cases.data import data_cases, mixture_cases
from tests.helpers.hostile_cases.models.bases import base_cases
from tests.helpers.hostile_cases.models.gguf import gguf_cases, prepare_gguf
from tests.helpers.hostile_cases.models.named import fetch_cases
from tests.helpers.hostile_cases.reports.figures import figure_cases
from tests.helpers.hostile_cases.reports.seen import report_word_cases, seen_cases
from tests.helpers.hostile_cases.reports.texts import prepare_seen, text_cases
from tests.helpers.hostile_cases.runs import run_file_cases, run_folder_cases
from tests.helpers.hostile_cases.studies.files import prepare_study, study_file_cases, study_word_cases
from tests.helpers.hostile_cases.studies.folders import study_folder_cases
from tests.helpers.hostile_cases.studies.storage import study_storage_cases
from tests.helpers.hostile_cases.values import value_cases
from tests.helpers.hostile_inputs import Case

__all__ = ["ADAPTERS", "QUIET", "cases", "fit", "prepare_more"]

FAMILIES = (
    value_cases,
    key_cases,
    config_cases,
    checkpoint_cases,
    class_cases,
    run_folder_cases,
    sharded_cases,
    adapter_cases,
    base_cases,
    data_cases,
    run_file_cases,
    command_cases,
    study_file_cases,
    study_word_cases,
    study_folder_cases,
    study_storage_cases,
    text_cases,
    seen_cases,
    figure_cases,
    report_word_cases,
    gguf_cases,
    fetch_cases,
    mixture_cases,
)


def prepare_more() -> None:
    """What the cases of single subjects need besides, in the prepared folder."""
    prepare_study()
    prepare_seen()
    prepare_gguf()


def cases() -> Iterator[Case]:
    """All of them; a name that comes again gets a number."""
    seen: dict[str, int] = {}
    for family in FAMILIES:
        for case in family():
            seen[case.name] = number = seen.get(case.name, 0) + 1
            if number > 1:
                case.name += f" ({number})"
            yield case
