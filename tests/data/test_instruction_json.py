"""One's own rows from several files, from tables and from the hub."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import datasets
import pytest

from adapters_pl.answers import SUITES
from adapters_pl.data import InstructionJSON
from adapters_pl.data.published import blob_sha1
from adapters_pl.data.sets import instruction_json
from adapters_pl.data.sets.instruction_json import infer_kinds
from adapters_pl.inputs.errors import UserError


@pytest.fixture
def file(tmp_path):
    def file(name, rows):
        path = tmp_path / name
        if path.suffix == ".csv":
            lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
            path.write_text("\n".join(lines) + "\n")
        else:
            path.write_text(json.dumps(rows))
        return str(path)

    return file


def rows(begin, end, **changes):
    return [{"instruction": f"Question {n}", "output": "It is 1.", "answer": "1", **changes} for n in range(begin, end)]


def taken(data):
    """How often each row is trained on, and the rows held out."""
    train, held_out = data.division(data.examples("train"))
    return Counter(train), held_out


# ---- several files


def test_several_files_are_one_training_set(file):
    data = InstructionJSON(path=[file("a.json", rows(0, 3)), file("b.csv", rows(3, 5))])
    assert [example.instruction for example in data.examples("train")] == [f"Question {n}" for n in range(5)]
    assert data.set_name == "a+b"


def test_weights_say_how_often_a_files_rows_are_taken(file):
    paths = [file("a.json", rows(0, 10)), file("b.json", rows(10, 30)), file("c.json", rows(30, 40))]
    data = InstructionJSON(path=paths, weights=[2, 0.5, 1.3], val_size=0)
    counts, held_out = taken(data)
    assert held_out == []
    assert {counts[n] for n in range(10)} == {2}
    assert sorted(counts[n] for n in range(10, 30)) == [0] * 10 + [1] * 10
    assert sorted(counts[n] for n in range(30, 40)) == [1] * 7 + [2] * 3
    assert taken(data) == (counts, [])
    other, _ = taken(InstructionJSON(path=paths, weights=[2, 0.5, 1.3], val_size=0, seed=7))
    assert other != counts
    assert other.total() == counts.total()


def test_a_row_taken_twice_is_not_held_out_as_well(file):
    data = InstructionJSON(path=[file("a.json", rows(0, 30))], weights=[3], val_size=3)
    counts, held_out = taken(data)
    assert len(held_out) == 3
    assert not set(held_out) & set(counts)
    assert set(counts.values()) == {3}


@pytest.mark.parametrize("weights", [[1], [1, 2, 3], [1, 0], [1, -1], [1, 1e18], [1, float("nan")]])
def test_weights_are_one_positive_number_a_file(file, weights):
    with pytest.raises(
        UserError, match=r"data\.weights has to be one number above 0, and at most 1,000, for each of the 2"
    ):
        InstructionJSON(path=[file("a.json", rows(0, 1)), file("b.json", rows(0, 1))], weights=weights)


def test_the_same_id_in_two_files_is_an_error(file):
    data = InstructionJSON(path=[file("a.json", rows(0, 1, id="x")), file("b.json", rows(1, 2, id="x"))])
    with pytest.raises(UserError, match=r"a\+b: rows 1 and 2 have the same id 'x'"):
        data.examples("train")


# ---- columns


def test_columns_are_mapped(file):
    path = file("a.json", [{"question": "Add.", "rationale": "It is 2.", "gold": 2}])
    data = InstructionJSON(path=path, columns={"instruction": "question", "output": "rationale", "answer": "gold"})
    [example] = data.examples("train")
    assert (example.instruction, example.response, example.answer) == ("Add.", "It is 2.", "2")


def test_a_misspelt_field_offers_the_nearest(file):
    with pytest.raises(UserError, match="there is no field 'instructions': did you mean 'instruction'"):
        InstructionJSON(path="a.json", columns={"instructions": "question"})


@pytest.mark.parametrize(
    ("answers", "kind", "options"),
    [
        (["A", "C", "A"], "letter", ("A", "B", "C")),
        (["E", "B"], "letter", ("A", "B", "C", "D", "E")),
        (["A", "yes", "A"], "choice", ("A", "yes")),
        (["A", "A"], "choice", ("A",)),
    ],
)
def test_letters_are_known(answers, kind, options):
    assert infer_kinds(answers) == dict.fromkeys(answers, (kind, options))


@pytest.fixture
def said(monkeypatch):
    """What the data module tells the user."""
    lines = []
    monkeypatch.setattr(instruction_json, "rank_zero_info", lines.append)
    return lines


def test_a_mixture_has_a_kind_for_each_row(file, said):
    answers = [*map(str, range(20)), "B", "A", "D"]
    test_rows = [{"instruction": f"Question {n}", "answer": answer} for n, answer in enumerate(answers)]
    data = InstructionJSON(test_path=file("mixed.json", test_rows))
    letters = ("A", "B", "C", "D")
    assert [(e.kind, e.options) for e in data.examples("test")] == [("number", ())] * 20 + [("letter", letters)] * 3
    data.examples("test")
    [line] = said
    assert line.endswith("mixed.json: answers by kind: 20 number, 3 letter (--data.answer_kind sets one for all)")


@pytest.mark.parametrize("blank", ["", "  \t"])
def test_a_blank_answer_is_no_gold_and_changes_no_other_row(file, said, blank):
    test_rows = [{"instruction": f"Question {n}", "answer": blank if n == 6 else str(n)} for n in range(40)]
    data = InstructionJSON(test_path=file("blank.json", test_rows))
    examples = data.examples("test")
    assert examples[6].answer is None
    assert {example.kind for example in examples} == {"number"}
    assert said[0].endswith("blank.json: 1 of 40 rows have no gold answer (row 7)")


def test_results_can_name_the_files_that_were_read(file):
    paths = [file("a.json", rows(0, 2)), file("b.csv", rows(2, 4))]
    data = InstructionJSON(path=paths)
    data.examples("train")
    assert data.checksums == {path: blob_sha1(Path(path)) for path in paths}


# ---- the hub


@pytest.fixture
def hub(monkeypatch):
    """A hub with one dataset; keeps what it was asked for."""
    requests = []

    def load_dataset(*arguments, **options):
        requests.append((arguments, options))
        if arguments[0] != "owner/sums":
            raise ConnectionError(f"Couldn't reach '{arguments[0]}' on the Hub (offline)\nand more lines")
        made = datasets.Dataset.from_list([{"question": "Add.", "answer": 2}, {"question": "Add up.", "answer": 3}])
        return datasets.DatasetDict({"train": made, "validation": made.select([0])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return requests


def test_a_hub_dataset_is_read_without_running_its_code(hub):
    data = InstructionJSON(path="owner/sums", columns={"instruction": "question"}, hub_config="main", val_size=0)
    assert [(e.instruction, e.answer) for e in data.examples("train")] == [("Add.", "2"), ("Add up.", "3")]
    assert data.set_name == "sums"
    assert hub == [(("owner/sums", "main"), {})]


def test_a_split_that_does_not_exist_offers_those_that_do(hub):
    data = InstructionJSON(test_path="owner/sums", columns={"instruction": "question"}, test_split="validatoin")
    with pytest.raises(UserError, match=r"owner/sums has no split 'validatoin': did you mean 'validation'"):
        data.examples("test")


def test_a_hub_that_cannot_be_reached_is_one_line(hub):
    with pytest.raises(UserError, match=r"owner/other: no such file, and as a hub dataset it cannot be loaded: ") as e:
        InstructionJSON(path="owner/other").examples("train")
    assert "\n" not in str(e.value)


def test_a_row_of_the_hub_is_named_by_its_split_and_number(hub):
    with pytest.raises(
        UserError, match=r"owner/sums \(train\): row 1 has no 'instruction'; it has 'question', 'answer'"
    ):
        InstructionJSON(path="owner/sums").examples("train")


@pytest.mark.parametrize("path", ["absent.json", "some/absent.csv", "/some/absent", "absent"])
def test_a_missing_file_is_not_looked_for_on_the_hub(hub, path):
    with pytest.raises(UserError, match=r"absent.*: no such file"):
        InstructionJSON(path=path).examples("train")
    assert hub == []


# ---- published sets by their names


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A folder in the published layout, with rows of two sets for training and for testing."""
    monkeypatch.setenv("ADAPTERS_PL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ADAPTERS_PL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    for name, answers in (("ARC-Easy", ("answer1", "answer2")), ("boolq", ("true", "false"))):
        folder = tmp_path / "root/dataset" / name
        folder.mkdir(parents=True)
        for split, count in (("train", 20), ("test", 3)):
            own = [
                {
                    "instruction": f"{name} {split} {n}?\n\nAnswer format: {'/'.join(answers)}",
                    "output": f"the correct answer is {answers[n % 2]}",
                    "answer": answers[n % 2],
                }
                for n in range(count)
            ]
            (folder / f"{split}.json").write_text(json.dumps(own))
    return str(tmp_path / "root")


def test_published_sets_are_trained_on_by_their_names_and_judged_on(published):
    data = InstructionJSON(path=["ARCEasy", "boolq"], weights=[0.5, 1], root=published, val_size=0)
    assert data.set_name == "ARC-Easy+boolq"
    assert data.test_sets == ["ARC-Easy", "boolq"]
    assert [data.distribution(name) for name in ("ARC-Easy", "boolq", "piqa")] == ["in", "in", "out"]
    examples = data.examples("train")
    assert [example.id for example in examples][::20] == ["ARC-Easy-0", "boolq-20"]
    assert {example.options for example in examples[:20]} == {("answer1", "answer2")}
    assert {example.options for example in examples[20:]} == {("true", "false")}
    assert {example.set for example in examples} == {data.set_name}
    counts, _ = taken(data)
    assert sum(counts[n] for n in range(20)) == 10
    assert sum(counts[n] for n in range(20, 40)) == 20
    assert set(data.checksums) >= {"dataset/ARC-Easy/train.json", "dataset/boolq/train.json"}


def test_rows_of_a_named_set_are_compared_with_its_test_rows(published):
    train = Path(published, "dataset/ARC-Easy/train.json")
    test = json.loads(Path(published, "dataset/ARC-Easy/test.json").read_text())
    train.write_text(json.dumps([*json.loads(train.read_text()), test[0]]))
    data = InstructionJSON(path="ARCEasy", root=published, val_size=0)
    assert (data.set_name, data.test_sets) == ("ARC-Easy-train", ["ARC-Easy"])
    with pytest.raises(UserError, match="1 of 21 training rows are test rows of ARC-Easy"):
        data.division(data.examples("train"), check=True)


def test_a_set_and_a_file_are_judged_on_the_set_and_on_held_out_rows(published, file):
    data = InstructionJSON(path=["boolq", file("a.json", rows(0, 20))], root=published, val_size=4)
    assert data.test_sets == ["boolq", "boolq+a"]
    assert data.distribution("boolq") == "in"
    assert data.distribution("piqa") is None
    examples = data.examples("train")
    assert [examples[n].kind for n in (0, 20)] == ["choice", "number"]
    held_out = data.examples("test")
    assert len(held_out) == 4
    for example in held_out:
        assert example.kind == ("choice" if example.id.startswith("boolq-") else "number")


def test_a_suite_that_a_mixture_is_judged_on_is_its_own_and_what_is_said_counts(published):
    assert InstructionJSON(path=["Math10K"], root=published).test_sets == list(SUITES["Arithmetic"])
    assert InstructionJSON(path=["boolq"], root=published, test_sets=["piqa"]).test_sets == ["piqa"]
    assert InstructionJSON(path=["boolq"], test_path="mine.json", root=published).test_sets == ["mine"]


def test_a_folder_of_a_sets_name_is_named_by_its_path(published, file):
    Path("boolq").mkdir()
    assert len(InstructionJSON(path=["boolq"], root=published).examples("train")) == 20
    with pytest.raises(UserError, match="boolq is a folder"):
        InstructionJSON(path=["./boolq"]).examples("train")


def test_a_named_set_that_cannot_be_trained_on_says_why(published):
    with pytest.raises(UserError, match="gsm8k has no training file, so it can only be tested"):
        InstructionJSON(path=["GSM8K"], root=published).examples("train")
    with pytest.raises(UserError, match=r"no file .*dataset/openbookqa/train.json"):
        InstructionJSON(path=["OpenBookQA"], root=published).examples("train")
