"""Generated word problems: what the quickstart trains and tests on, with no file and no download."""

from __future__ import annotations

from typing import Any

from adapters_pl.answers import SPECS
from adapters_pl.data.module import ReasoningDataModule, set_named
from adapters_pl.data.rows import Split
from adapters_pl.data.sets import problems
from adapters_pl.inputs.ranges import AtLeast0, AtLeast1, refuse_out_of_range


class WordProblems(ReasoningDataModule):
    """Instruction-style additions, subtractions and multiplications whose test operands are held out.

    Args:
        train_rows: problems to generate for training.
        test_rows: problems to generate for each test set.
        problem_seed: the generator's seed.
        kwargs: as for every dataset.
    """

    spec = SPECS["word_problems"]
    split_of_test = "test"
    seed_of_test = 1

    def __init__(
        self,
        train_rows: AtLeast1 = 6000,
        test_rows: AtLeast1 = 200,
        problem_seed: AtLeast0 = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        refuse_out_of_range("data.", WordProblems.__init__, locals())
        self.train_rows = train_rows
        self.test_rows = test_rows
        self.problem_seed = problem_seed

    def _set(self, name: str) -> ReasoningDataModule:
        kind = set_named(name)
        if issubclass(kind, WordProblems):
            return kind(test_rows=self.test_rows, problem_seed=self.problem_seed)
        return super()._set(name)

    def rows(self, split: Split) -> list[dict[str, Any]]:
        """Generate a split; the same arguments give the same rows."""
        if split == "test":
            seed = self.problem_seed + self.seed_of_test
            return problems.generate(self.split_of_test, self.test_rows, seed)
        return problems.generate("train", self.train_rows, self.problem_seed)


class FreshWordProblems(WordProblems):
    spec = SPECS["word_problems-fresh"]
    seed_of_test = 9001


class UnseenWordProblems(WordProblems):
    spec = SPECS["word_problems-unseen"]
    split_of_test = "unseen"
