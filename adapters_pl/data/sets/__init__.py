"""The data modules of the sets: a class for every row of ``answers/sets.py``, and for files of one's own."""

from adapters_pl.answers.sets import ROWS
from adapters_pl.data.module import ReasoningDataModule
from adapters_pl.data.sets.instruction_json import InstructionJSON
from adapters_pl.data.sets.mathqa import MathQA
from adapters_pl.data.sets.word_problems import FreshWordProblems, UnseenWordProblems, WordProblems

#: Every class by its name: those with arguments of their own, and one for each of the other rows.
CLASSES: dict[str, type[ReasoningDataModule]] = {
    kind.__name__: kind for kind in (InstructionJSON, MathQA, WordProblems, FreshWordProblems, UnseenWordProblems)
}
for _row in ROWS:
    if _row.called not in CLASSES:
        _body = {"spec": _row, "__module__": "adapters_pl.data"}
        CLASSES[_row.called] = type(_row.called, (ReasoningDataModule,), _body)
