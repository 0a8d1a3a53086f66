"""The arms of a benchmark train what they say, and their times are summed up as they should be."""

import json
import os
import signal

import pytest
import torch

from adapters_pl import BoolQ, CausalLMModule, InstructionJSON, LoRA, SeriesAdapter, UserError, save_adapter
from adapters_pl.training.adapter_files import read_adapter
from adapters_pl.training.benchmark import answering, fitting, measure
from adapters_pl.training.benchmark.fitting import ARMS
from adapters_pl.training.benchmark.pace import Finished, Job, Pace, StepTime
from tests.conftest import tiny_model


class Turns:
    """A connection that asks for ``turns`` of steps and keeps what it is sent."""

    def __init__(self, *turns):
        self.turns = list(turns)
        self.steps = []
        self.peak = 0

    def send(self, answer):
        steps, peak = answer
        self.steps += steps
        self.peak = max(self.peak, peak)

    def recv(self):
        return self.turns.pop(0) if self.turns else None


@pytest.fixture
def job(make_base, rows_file):
    def make(*adapters, steps=7, accumulate=2, **data):
        module = CausalLMModule(str(make_base()), lr=1e-2)
        rows = InstructionJSON(path=str(rows_file), batch_size=2, val_size=4, **data)
        trainer = {"accelerator": "cpu", "accumulate_grad_batches": accumulate, "gradient_clip_val": 1.0}
        return Job(module, rows, list(adapters) or [LoRA(rank=4, dropout=0.0)], trainer, steps, 3)

    return make


def run(arm, job, *turns):
    connection = Turns(*turns)
    with pytest.raises(Finished):
        ARMS[arm](job, Pace(connection))
    return connection


def test_both_trainers_compute_the_same_losses_on_the_same_tokens(job, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    ours, theirs = (run(arm, job(), 3, 3) for arm in ("adapters-pl", "peft"))
    assert len(ours.steps) == len(theirs.steps) == 6
    assert [step.tokens for step in ours.steps] == [step.tokens for step in theirs.steps]
    # Six steps apart, Adam divides what rounding has left of small gradients by its size.
    assert [s.loss for s in ours.steps] == pytest.approx([s.loss for s in theirs.steps], abs=2e-3)
    assert ours.steps[-1].loss < ours.steps[0].loss
    assert set(ours.steps[0].parts) == {"data", "forward", "backward", "optimizer"}
    assert sum(ours.steps[1].parts.values()) <= ours.steps[1].seconds
    assert ours.peak > 0


def test_the_floor_computes_the_loss_of_the_base_and_changes_nothing(job):
    floor = job()
    first = run("floor", floor, 2).steps[0]
    assert set(first.parts) == {"data", "forward", "backward"}
    model = floor.module.model
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    again = job()
    batch, second = (next(batches) for batches in [fitting._batches(again)] for _ in range(2))
    with torch.no_grad():
        again.module.build_base().train()
        losses = [again.module.label_losses(again.module.hidden_states(b), b["labels"]).sum() for b in (batch, second)]
    assert first.loss == pytest.approx(float(sum(losses) / batch["loss_tokens"]), rel=1e-5)
    assert first.tokens == int(batch["attention_mask"].sum() + second["attention_mask"].sum())
    assert first.computed == batch["attention_mask"].numel() + second["attention_mask"].numel()
    assert second["ends_step"]
    assert not batch["ends_step"]


def test_the_floors_backward_pass_reaches_the_embeddings(job):
    floor, reached = job(), []
    layer = floor.module.build_base().get_decoder().layers[0]
    layer.register_full_backward_hook(lambda module, inputs, outputs: reached.append(inputs[0] is not None))
    run("floor", floor, 1)
    assert reached == [True, True]


def test_an_adapter_that_peft_has_not_is_said_to_be_so(job):
    with pytest.raises(UserError, match="peft has nothing like SeriesAdapter"):
        ARMS["peft"](job(SeriesAdapter(8)), Pace(Turns(1)))
    with pytest.raises(UserError, match="compares one adapter"):
        ARMS["peft"](job(LoRA(), LoRA(name="b")), Pace(Turns(1)))


def test_a_quantised_base_is_refused(job):
    quantised = job()
    quantised.module.source.quantization = "8bit"
    with pytest.raises(UserError, match=r"leave --model\.quantization out"):
        ARMS["floor"](quantised, Pace(Turns(1)))


def test_ratios_are_of_the_time_for_a_real_token_round_by_round():
    ours = [[StepTime(2.0, 10, 20, 1.0)], [StepTime(3.0, 10, 20, 1.0)], [StepTime(9.0, 30, 40, 4.0)]]
    theirs = [[StepTime(2.0, 20, 20, 1.0)], [StepTime(2.0, 20, 20, 1.0)], [StepTime(2.0, 20, 20, 1.0)]]
    ratios = measure._ratios(
        {"adapters-pl": ours, "peft": theirs}, {"adapters-pl": 6, "peft": 4}, lambda step: step.tokens
    )
    assert ratios == {"peft": {"seconds": pytest.approx([3.0, 2.0, 3.0]), "memory": 1.5}}
    summary = measure._summary(ours)
    assert summary["step_seconds"] == 3.0
    assert summary["tokens_per_second"] == pytest.approx(10 / 3)
    assert summary["padding"] == pytest.approx(1 - 50 / 80)
    assert summary["loss"] == pytest.approx(2.0)


def broken(steps):
    raise ValueError("no such thing")


def test_what_goes_wrong_in_an_arm_is_said_and_ends_all_of_them():
    with pytest.raises(UserError, match="floor failed: ValueError: no such thing"):
        measure.measure(broken, ["floor"], 1, 1)


def interrupted(steps):
    os.kill(os.getpid(), signal.SIGINT)
    raise UserError("still here")


def test_an_interrupt_of_the_group_is_the_measuring_process_own_affair():
    with pytest.raises(UserError, match="still here"):
        measure.measure(interrupted, ["floor"], 1, 1)


def test_a_result_is_plain_data():
    steps = {"floor": [[StepTime(1.0, 2, 3, 0.5, {"forward": 0.5})]]}
    assert json.loads(json.dumps(measure._summary(steps["floor"])))["parts"] == {"forward": 0.5}


def test_options_are_judged_as_the_harness_judges_them(make_base, tmp_path):
    file = tmp_path / "rows.json"
    rows = [{"instruction": f"is {n} even?", "output": f"the correct answer is {n % 2 == 0}".lower()} for n in range(9)]
    file.write_text(json.dumps([{**row, "answer": row["output"].split()[-1]} for row in rows]))
    said = {}
    for arm in answering.SCORING:
        data = BoolQ(files={BoolQ.spec.test: str(file)}, protocol="loglikelihood", eval_batch_size=4)
        job = Job(CausalLMModule(str(make_base())), data, [LoRA(rank=2)], {"accelerator": "cpu"}, 1, 0)
        connection = Turns(1)
        with pytest.raises(Finished):
            answering.SCORING[arm](job, Pace(connection))
        (step,) = connection.steps
        assert (step.rows, step.tokens) == (9, 0)
        said[arm] = step.answers
    assert said["lm-eval"] == said["adapters-pl"]
    assert set(said["lm-eval"]) <= {"true", "false"}


def test_a_saved_adapter_answers_and_not_a_new_one(make_base, rows_file, tmp_path):
    model, adapter = tiny_model("llama"), LoRA(rank=4)
    adapter.attach_to(model)
    for parameter in adapter.adapter_parameters(model).values():
        parameter.data.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    save_adapter(model, adapter, tmp_path / "adapter")
    answers = {}
    for saved in (None, read_adapter(tmp_path / "adapter", model.config)):
        for arm in ("adapters-pl", "generate"):
            data = InstructionJSON(test_path=str(rows_file), limit_test=6, max_new_tokens=6)
            job = Job(CausalLMModule(str(make_base())), data, [], {"accelerator": "cpu"}, 1, 0, saved)
            connection = Turns(1)
            with pytest.raises(Finished):
                answering.WRITING[arm](job, Pace(connection))
            answers.setdefault(saved is None, []).append(connection.steps[0].answers)
    assert answers[True][0] == answers[True][1] != answers[False][0] == answers[False][1]
