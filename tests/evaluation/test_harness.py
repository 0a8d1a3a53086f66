"""What lm-evaluation-harness says of the same rows, prompts and options, by task files of our own and no network.

Published rows where they are at hand, and made ones in the same form everywhere.
"""

from __future__ import annotations

import json

import pytest
import torch
from lightning.pytorch import Trainer
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from adapters_pl import CausalLMModule
from adapters_pl.data import AQuA, ARCChallenge, BoolQ, InstructionJSON, ReasoningDataModule, SingleEq
from adapters_pl.data.questions import LEADS
from adapters_pl.data.sets import problems
from adapters_pl.quickstart import BASE
from tests.conftest import DATA, shared

ROWS = 40
#: What the harness calls our accuracies.
METRICS = {"acc": "correct", "acc_norm": "correct_normalised"}

TASK = """
task: ours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/docs.json}}, cache_dir: {folder}}}
test_split: test
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{gold}}}}"
"""
SCORED = (
    TASK
    + """
output_type: multiple_choice
doc_to_choice: "{{{{choices}}}}"
target_delimiter: "{delimiter}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
)
GENERATED = (
    TASK
    + """
output_type: generate_until
generation_kwargs: {{until: [], max_gen_toks: {tokens}, do_sample: false, num_beams: {beams}}}
filter_list: [{{name: ours, filter: [{{function: custom, filter_fn: !function reading.read}}]}}]
process_results: !function reading.judge
metric_list: [{{metric: correct, aggregation: mean, higher_is_better: true}}]
"""
)
READING = """
from adapters_pl.answers import PROTOCOLS
protocol = PROTOCOLS["{protocol}"]
def read(responses, docs):
    return [protocol.extract(response[0], "number", set_name="SingleEq") for response in responses]
def judge(doc, results):
    return {{"correct": protocol.match(results[0], doc["gold"], "number")}}
"""


class Judged:
    """A test of ours on the quickstart base: its records in the rows' order, and the prompts that it asked."""

    def __init__(self, data: ReasoningDataModule, folder) -> None:
        module = CausalLMModule("quickstart", dtype="float32")
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        trainer.test(module, datamodule=data, verbose=False)
        [(_, records)] = module.records.items()
        self.records = sorted(records, key=lambda record: record["row"])
        examples = data.examples("test")
        self.prompts = [data.test_prompt(examples[record["row"]]) for record in self.records]


def of_the_harness(folder, docs, task, batch_size=4, **changes):
    """The harness's samples in the rows' order; the base is loaded by the harness itself."""
    (folder / "docs.json").write_text(json.dumps(docs))
    (folder / "ours.yaml").write_text(task.format(folder=folder, **changes))
    tasks = TaskManager(include_path=str(folder), include_defaults=False).load(["ours"])["tasks"]
    model = HFLM(pretrained=str(BASE), device="cpu", dtype="float32", batch_size=batch_size)
    found = evaluate(model, tasks, bootstrap_iters=0, log_samples=True)
    return sorted(found["samples"]["ours"], key=lambda sample: sample["doc_id"])


@pytest.fixture
def made(tmp_path):
    """A folder in the published layout with made rows of the given set; the published one's rows are not needed."""

    def made(name, rows):
        file = tmp_path / "made" / "dataset" / name / "test.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(rows))
        return str(tmp_path / "made")

    return made


def questions(of):
    return [of(number) for number in range(10)]


def made_choices(number):
    offered = "/".join(f"answer{place}" for place in range(1, 4 + number % 3))
    question = f"Question: what is {number} times 3?\n\n" + " ".join(f"{name}: {number}" for name in offered.split("/"))
    return {"instruction": f"{question}\n\nAnswer format: {offered}", "answer": "answer1"}


def made_letters(number):
    listed = " ".join(f"({letter}) {number + place}" for place, letter in enumerate("ABCDE"))
    return {"instruction": f"What is {number} plus 3? Answer Choices: {listed}", "answer": "ABCDE"[number % 5]}


def made_truths(number):
    return {
        "instruction": f"Is {number} even?\n\nAnswer format: true/false",
        "answer": ("true", "false")[number % 2],
    }


SCORED_SETS = [(ARCChallenge, made_choices), (BoolQ, made_truths), (AQuA, made_letters)]


def same_scores(data, folder):
    """Compare every option's score, and whether the likeliest is right, by its sum and per character."""
    ours = Judged(data, folder)
    lead, docs = LEADS[data.kind] if data.spec.test else "", []
    for record, prompt in zip(ours.records, ours.prompts, strict=True):
        options = list(record["scores"])
        shown = [f"({option})" for option in options] if data.kind == "letter" else options
        docs.append({"prompt": prompt + lead, "choices": shown, "gold": options.index(record["gold"])})
    theirs = of_the_harness(folder, docs, SCORED, delimiter=" " if lead else "")
    furthest = 0.0
    for record, sample in zip(ours.records, theirs, strict=True):
        scores = torch.tensor([response[0][0] for response in sample["resps"]])
        furthest = max(furthest, (scores - torch.tensor(list(record["scores"].values()))).abs().max().item())
        assert {name: bool(sample[name]) for name in METRICS} == {name: record[key] for name, key in METRICS.items()}, (
            record
        )
    print(f"{data.set_name}: {len(docs)} rows, scores at most {furthest:.2g} nats apart")
    # Sums of log-likelihoods near -30 in float32, from differently padded batches.
    assert furthest < 1e-4
    assert len({tuple(record["scores"].values()) for record in ours.records}) == len(docs)
    return ours.records


@pytest.mark.parametrize(("kind", "row"), SCORED_SETS, ids=lambda value: getattr(value, "set_name", ""))
def test_the_harness_scores_made_options_the_same(tmp_path, made, kind, row):
    root = made(kind.set_name, questions(row))
    same_scores(kind(root=root, protocol="loglikelihood", eval_batch_size=3), tmp_path)


def test_the_harness_scores_texts_of_different_lengths_the_same(tmp_path):
    """Rows of one's own: the options stand for themselves, and nothing leads to them."""
    answers = ("nowhere", "in the park", "at home, of course, where else would they be")
    rows = [{"instruction": f"Where are {number} apples?", "answer": answers[number % 3]} for number in range(12)]
    (tmp_path / "places.json").write_text(json.dumps(rows))
    data = InstructionJSON(test_path=str(tmp_path / "places.json"), protocol="loglikelihood", eval_batch_size=5)
    records = same_scores(data, tmp_path)
    assert any(record["prediction"] != record["prediction_normalised"] for record in records)


@shared(DATA)
@pytest.mark.parametrize("kind", [kind for kind, _ in SCORED_SETS], ids=lambda kind: kind.set_name)
def test_the_harness_scores_published_options_the_same(tmp_path, kind):
    same_scores(kind(root=str(DATA), protocol="loglikelihood", limit_test=ROWS, eval_batch_size=7), tmp_path)


def same_answers(data, folder, tokens):
    """Compare every text, the answer in it and whether it is right."""
    ours = Judged(data, folder)
    (folder / "reading.py").write_text(READING.format(protocol=data.asking.protocol.name))
    docs = [{"prompt": p, "gold": r["gold"]} for p, r in zip(ours.prompts, ours.records, strict=True)]
    theirs = of_the_harness(folder, docs, GENERATED, tokens=tokens, beams=data.asking.protocol.beams)
    assert [sample["resps"][0][0] for sample in theirs] == [record["output"] for record in ours.records]
    assert [sample["filtered_resps"][0] for sample in theirs] == [record["prediction"] for record in ours.records]
    assert [bool(sample["correct"]) for sample in theirs] == [record["correct"] for record in ours.records]
    return ours.records


@pytest.mark.parametrize("protocol", ["strict", "llm_adapters"])
def test_the_harness_generates_the_same_answers_to_made_rows(tmp_path, made, protocol):
    root = made("SingleEq", problems.generate("test", 10, seed=0))
    records = same_answers(SingleEq(root=root, protocol=protocol, max_new_tokens=24), tmp_path, 24)
    assert len({record["output"] for record in records}) > 3


@shared(DATA)
def test_the_harness_generates_the_same_answers_to_published_rows(tmp_path):
    data = SingleEq(root=str(DATA), max_new_tokens=32, limit_test=ROWS, eval_batch_size=7)
    records = same_answers(data, tmp_path, 32)
    assert len({record["prediction"] for record in records}) > 5
