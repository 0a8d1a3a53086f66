"""An interrupted test goes on where it was, and never takes another test's answers."""

from __future__ import annotations

import json

import pytest
from lightning.pytorch import Callback, Trainer

from adapters_pl import CausalLMModule, InstructionJSON, LoRA
from adapters_pl.evaluation.journal import PartialAnswers
from adapters_pl.runs.run import Run
from adapters_pl.training.callbacks import RunRecorder

ROWS = [
    {"row": i, "prompt_hash": f"h{i}", "output": "\ud800 ü\u2028" if i else "a\nb", "correct": True} for i in range(3)
]
HASHES = {i: f"h{i}" for i in range(3)}


@pytest.fixture
def partial(tmp_path):
    return PartialAnswers(tmp_path / "predictions" / "gsm8k.partial.jsonl", {"protocol": "strict", "sizes": (1, 2)})


def test_what_was_appended_is_read_again(partial):
    partial.begin()
    partial.append(ROWS[:2])
    partial.append([])
    partial.append(ROWS[2:])
    assert partial.read(HASHES) == dict(enumerate(ROWS))
    partial.begin()
    assert partial.read(HASHES) == dict(enumerate(ROWS))
    assert [path.name for path in partial.path.parent.iterdir()] == ["gsm8k.partial.jsonl"]
    partial.remove()
    assert partial.read(HASHES) == {}


def test_a_line_that_was_cut_is_left_out_and_does_not_spoil_the_next(partial):
    partial.begin()
    partial.append(ROWS)
    partial.path.write_bytes(partial.path.read_bytes()[:-7])
    assert list(partial.read(HASHES)) == [0, 1]
    partial.begin()
    partial.append(ROWS[2:])
    assert list(partial.read(HASHES)) == [0, 1, 2]


def test_rows_that_are_asked_otherwise_are_not_taken(partial):
    partial.begin()
    partial.append(ROWS)
    assert list(partial.read({0: "h0", 1: "other"})) == [0]


def test_other_settings_begin_anew(partial, tmp_path):
    partial.begin()
    partial.append(ROWS)
    other = PartialAnswers(partial.path, {"protocol": "llm_adapters"})
    assert other.read(HASHES) == {}
    other.begin()
    assert partial.read(HASHES) == {}


def test_another_directory_of_the_same_test_is_taken_over(partial, tmp_path):
    partial.begin()
    partial.append(ROWS[:1])
    later = PartialAnswers(tmp_path / "later" / "gsm8k.partial.jsonl", partial.settings)
    later.begin([tmp_path / "absent", partial.path])
    assert list(later.read(HASHES)) == [0]
    assert partial.path.is_file()


# ---- with a model


class Interrupt(Callback):
    """Ends the test after some batches."""

    def __init__(self, after):
        self.after = after

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx + 1 == self.after:
            raise RuntimeError("the power went")


class Batches(Callback):
    """Keeps the rows of the batches that were answered."""

    def __init__(self):
        self.rows = []

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.rows.append(batch["row_ids"].tolist())


class Count(CausalLMModule):
    """Counts the rows it is asked to answer."""

    asked_rows = 0

    def engine(self, batch_size=8):
        engine = super().engine(batch_size)
        generate = engine.generate

        def counted(prompts, *how):
            self.asked_rows += len(prompts)
            return generate(prompts, *how)

        engine.generate = counted
        return engine


@pytest.fixture
def tested(tmp_path, make_base, rows_file):
    """Test in a run's directory, perhaps with an interruption; the module that was tested."""

    def tested(run, *callbacks, rank=0, value=None, ends=2, **options):
        module = Count(str(make_base(eos_token_id=ends)))
        if rank:
            module.add_adapter(LoRA(rank=rank))
            for parameter in module.adapter_parameters().values() if value is not None else ():
                parameter.data.fill_(value)
        recorder = RunRecorder(run, "data: {}\n", "LoRA" if rank else None)
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            default_root_dir=tmp_path,
            callbacks=[recorder, *callbacks],
        )
        data = InstructionJSON(test_path=str(rows_file), **{"max_new_tokens": 4, "eval_batch_size": 7, **options})
        if callbacks:
            with pytest.raises(RuntimeError, match="the power went"):
                trainer.test(module, datamodule=data, verbose=False)
        else:
            trainer.test(module, datamodule=data, verbose=False)
        return module

    return tested


def predictions(run):
    return [json.loads(line) for line in (run.path / "predictions/sums.jsonl").read_text().splitlines()]


def journalled(run):
    """The rows whose answers an interrupted test has left."""
    _, *lines = (run.path / "predictions/sums.partial.jsonl").read_text().splitlines()
    return [json.loads(line)["row"] for line in lines]


@pytest.mark.parametrize("rank", [0, 2])
def test_an_interrupted_test_resumes_from_what_it_wrote(tmp_path, tested, rank):
    uninterrupted, broken = Run.create(tmp_path / "a", "test"), Run.create(tmp_path / "b", "test")
    tested(uninterrupted, rank=rank)
    batches = Batches()
    tested(broken, batches, Interrupt(after=3), rank=rank)
    assert not (broken.path / "predictions/sums.jsonl").exists()
    assert not (broken.path / "results.json").exists()
    kept = journalled(broken)
    # Rows end in any order: some of later batches may be among them, and each is there once.
    assert len(batches.rows) == 3
    assert {row for batch in batches.rows for row in batch} <= set(kept)
    assert len(kept) == len(set(kept)) < 40
    # Another batch size: the rows that are left are answered, and no other.
    assert tested(broken, rank=rank, eval_batch_size=5).asked_rows == (40 - len(kept)) * (1 + bool(rank))
    assert predictions(broken) == predictions(uninterrupted)
    results = [json.loads((run.path / "results.json").read_text()) for run in (uninterrupted, broken)]
    assert results[1]["sets"]["sums"]["resumed"] == len(kept)
    assert results[0]["sets"]["sums"]["accuracy"] == results[1]["sets"]["sums"]["accuracy"]
    assert [path.name for path in (broken.path / "predictions").iterdir()] == ["sums.jsonl"]
    # A test that was completed is not resumed but done again.
    assert tested(broken, rank=rank).asked_rows == 40 * (1 + bool(rank))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"max_new_tokens": 5}),
        ({}, {"template": "plain"}),
        ({"rank": 2}, {"rank": 3}),
        ({"rank": 2}, {"rank": 2, "value": 0.1}),
        ({}, {"samples": 2, "seed": 1}),
        ({"samples": 1, "temperature": 0.5, "seed": 1}, {"temperature": 0.5, "seed": 2}),
    ],
)
def test_nothing_is_taken_from_another_model_or_other_settings(tmp_path, tested, before, after):
    run = Run.create(tmp_path / "runs", "test")
    tested(run, Interrupt(after=2), **before)
    module = tested(run, **after)
    assert module.asked_rows == 40 * after.get("samples", 1) * (1 + bool(after.get("rank")))


def test_a_test_without_a_checkpoint_is_found_in_its_last_directory(tmp_path, tested):
    first, second = Run.create(tmp_path / "runs", "test"), Run.create(tmp_path / "runs", "test")
    tested(first, Interrupt(after=2))
    kept = journalled(first)
    assert 12 <= len(kept) < 40
    assert tested(second).asked_rows == 40 - len(kept)
    assert [row["row"] for row in predictions(second)] == list(range(40))


def test_results_say_what_a_test_depended_on(tmp_path, tested):
    run = Run.create(tmp_path / "runs", "test")
    tested(run, samples=3, temperature=0.8, seed=5)
    results = json.loads((run.path / "results.json").read_text())
    found = results["sets"]["sums"]
    assert (results["protocol"], results["seed"], results["config"]) == ("strict", 5, {"data": {}})
    assert results["command"].startswith("adapters-pl")
    assert {"versions", "git"} <= results["environment"].keys()
    assert found["settings"]["temperature"] == 0.8
    assert found["interval"][0] <= found["accuracy"] <= found["interval"][1]
    assert found["accuracy"] <= found["pass@3"]
    assert found["seconds"] > 0
    assert found["tokens_per_second"] > 0
    row = predictions(run)[0]
    assert len(row["samples"]) == len(row["sample_predictions"]) == 3
    assert len(row["prompt_hash"]) == 16


@pytest.mark.parametrize("rank", [0, 2])
def test_rows_of_later_batches_that_end_first_are_journalled_once(tmp_path, tested, rank):
    uninterrupted, broken, newest, batches = (
        Run.create(tmp_path / "a", "test"),
        Run.create(tmp_path / "b", "test"),
        [],
        [],
    )

    class Newest(Callback):
        def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            newest.append({record["row"] for record in pl_module.answers.newest})
            batches.append(set(batch["row_ids"].tolist()))

    how = {"rank": rank, "ends": list(range(2, 60)), "max_new_tokens": 16}
    tested(broken, Newest(), Interrupt(after=2), **how)
    kept = journalled(broken)
    assert sorted(kept) == sorted(row for rows in newest for row in rows)
    assert set.union(*batches) < set(kept)
    assert len(kept) == len(set(kept)) < 40
    assert tested(broken, **how).asked_rows == (40 - len(kept)) * (1 + bool(rank))
    tested(uninterrupted, **how)
    assert predictions(broken) == predictions(uninterrupted)
