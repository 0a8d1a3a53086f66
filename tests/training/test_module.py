"""The Lightning module: what is trained, what the loss is, what a checkpoint holds, and what it refuses."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace

import pytest
import torch

from adapters_pl import CausalLMModule, InstructionJSON, LoRA, PrefixTuning, PromptTuning, UserError
from adapters_pl.adapters import adapter_layers
from adapters_pl.data.tokens import Collate
from adapters_pl.models.fingerprint import fingerprint, same_base
from adapters_pl.training import module as module_file
from adapters_pl.training.module import LinearWarmup
from tests.conftest import TINY, tiny_model
from tests.helpers.training import fit, trainer

# ---- loss


def attached(name="llama", world=1, accumulate=1):
    """A module with a model and just enough of a trainer to compute a loss."""
    from types import SimpleNamespace

    module = CausalLMModule("unused")
    module.model = tiny_model(name)
    module.source.config = module.model.config
    module._trainer = SimpleNamespace(world_size=world, accumulate_grad_batches=accumulate)
    return module


class Noted(CausalLMModule):
    """Keeps the loss of every labelled token that is trained on, and what is logged of every step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.losses, self.steps = [], []

    def label_losses(self, hidden, labels):
        losses = super().label_losses(hidden, labels)
        self.losses.append(losses.detach())
        return losses

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if len(self.steps) < self.trainer.global_step:
            mean = torch.cat(self.losses).mean().item()
            self.steps.append((self.trainer.callback_metrics["train_loss"].item(), mean, batch["loss_tokens"]))
            self.losses = []


@pytest.mark.parametrize(
    ("accumulate", "limit"),
    [(1, 1.0), (3, 1.0), (4, 6), (3, 4), (2, 0.4)],
    ids=["alone", "whole", "cut", "one more", "share"],
)
def test_what_is_logged_is_the_mean_loss_of_the_whole_step(tmp_path, make_base, rows_file, accumulate, limit):
    """Of every step, also where the epoch ends before the step has all of its batches."""
    module = Noted(str(make_base()), lr=1e-2)
    data = {"val_size": 0, "batch_size": 5}
    settings = {"accumulate_grad_batches": accumulate, "limit_train_batches": limit}
    fit(tmp_path, None, rows_file, data=data, module=module, **settings)
    batches = int(8 * limit) if isinstance(limit, float) else limit
    assert len(module.steps) == -(-batches // accumulate)
    for logged, mean, _ in module.steps:
        assert logged == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy"])
def test_a_training_after_a_validation_answers_only_where_it_is_asked_to(tmp_path, make_base, rows_file, monitor):
    module = CausalLMModule(str(make_base()), monitor=monitor)
    data = InstructionJSON(path=str(rows_file), val_size=4, max_new_tokens=2)
    trainer(tmp_path, LoRA(rank=4)).validate(module, datamodule=data, verbose=False)
    run = trainer(tmp_path, LoRA(rank=4))
    run.fit(module, datamodule=data)
    assert ("val_accuracy" in run.callback_metrics) == (monitor == "val_accuracy")


def test_accumulation_that_changes_is_refused(tmp_path, make_base, rows_file):
    from lightning.pytorch.callbacks import GradientAccumulationScheduler

    run = trainer(tmp_path, LoRA(rank=4), GradientAccumulationScheduler({0: 2, 1: 4}))
    with pytest.raises(UserError, match=r"set one number with --trainer\.accumulate_grad_batches"):
        run.fit(CausalLMModule(str(make_base())), datamodule=InstructionJSON(path=str(rows_file), val_size=0))


@pytest.mark.parametrize("make", [PromptTuning, PrefixTuning])
@pytest.mark.parametrize("base", ["opt", "gpt2"])
def test_virtual_tokens_are_part_of_the_context(tmp_path, make_base, base, make):
    """Learned positions end where the context does: a token more is an error of the embedding table."""
    rows = [{"instruction": "x" * n, "output": "1" * 30, "answer": "1"} for n in range(10, 40)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    module = CausalLMModule(str(make_base(base, max_position_embeddings=64, n_positions=64)))
    settings = {"template": "plain", "val_size": 2, "test_path": str(tmp_path / "rows.json"), "contamination": "allow"}
    data = InstructionJSON(path=str(tmp_path / "rows.json"), **settings)
    run = trainer(tmp_path, make(20))
    run.fit(module, datamodule=data)
    lengths = [row.length for row in data.training.rows]
    assert max(lengths) == 64 - 20
    run.test(module, datamodule=data, verbose=False)
    assert max(map(len, data.questions("rows").prompts.values())) + data.questions("rows").max_new_tokens == 64 - 20
    assert len(module.records["rows"]) == 30
    data.asking = replace(data.asking, template="alpaca")
    with pytest.raises(UserError, match="the model's context is 44 without the 20 virtual tokens"):
        run.test(module, datamodule=data, verbose=False)


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_an_unusual_head_is_noticed_before_options_are_scored(tmp_path, make_base, command):
    rows = [{"instruction": f"Is {n} odd?", "output": "yes", "answer": ["no", "yes"][n % 2]} for n in range(30)]
    (tmp_path / "odd.json").write_text(json.dumps(rows))
    module = CausalLMModule(str(make_base()))
    module.build_base()
    head = module.model.lm_head
    module.model.lm_head = torch.nn.Sequential(head, torch.nn.Softsign())
    module.model.get_output_embeddings = lambda: head
    data = InstructionJSON(path=str(tmp_path / "odd.json"), protocol="loglikelihood", val_size=3)
    with pytest.raises(UserError, match="computes its logits in a way that is not known here"):
        getattr(trainer(tmp_path), command)(module, datamodule=data)


def batch_of(labels_from=4, rows=3, length=9):
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(3, 300, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        ids[row, length - row :] = 2  # padding that looks like the end token
        mask[row, length - row :] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :labels_from] = -100
    count = int((labels != -100).sum())
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "loss_tokens": count}


@pytest.mark.parametrize("name", TINY)
def test_the_loss_is_the_models_own_on_labelled_tokens(name):
    module, batch = attached(name), batch_of()
    with torch.no_grad():
        ours = module.loss(module.hidden_states(batch), batch)
        theirs = module.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]
        ).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_logits_of_hidden_states_are_the_models_own(name):
    module, batch = attached(name), batch_of()
    with torch.no_grad():
        hidden = module.hidden_states(batch)
        theirs = module.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert hidden.shape == (3, 9, 32)
    here = batch["attention_mask"].bool()
    assert torch.allclose(module.logits(hidden)[here], theirs[here], atol=1e-5)


def test_the_loss_is_normalised_over_the_whole_step():
    """Two batches with one and with many labels weigh every token alike, whatever they are divided into."""
    few, many = batch_of(labels_from=8), batch_of(labels_from=2)
    total = few["loss_tokens"] + many["loss_tokens"]
    few["loss_tokens"] = many["loss_tokens"] = total
    module = attached(world=2, accumulate=3)
    with torch.no_grad():
        parts = [module.loss(module.hidden_states(batch), batch) for batch in (few, many)]
        losses = torch.cat([module.label_losses(module.hidden_states(batch), batch["labels"]) for batch in (few, many)])
    # Lightning divides by the accumulated batches, and gradients are averaged over the processes.
    assert (sum(parts) / (2 * 3)).item() == pytest.approx(losses.mean().item(), rel=1e-6)


def test_a_batch_without_labels_has_no_loss_and_a_gradient_of_zero():
    module, batch = attached(), batch_of(labels_from=9)
    LoRA(rank=2).attach_to(module.model)
    batch["loss_tokens"] = 5
    loss = module.loss(module.hidden_states(batch), batch)
    loss.backward()
    assert loss.item() == 0
    gradients = [layer.lora_B.grad for layer in adapter_layers(module.model).values()]
    assert all(gradient is None or not gradient.any() for gradient in gradients)


@pytest.mark.parametrize(("accumulate", "batch_size"), [(1, 6), (3, 2)])
def test_accumulated_batches_equal_one_large_batch(tmp_path, make_base, rows_file, accumulate, batch_size):
    """Rows of very different lengths, a last step that is not full: the trained adapter is the same."""
    rows = json.loads(rows_file.read_text())[:20]
    for i, row in enumerate(rows):
        row["output"] = "so " * (1 + 7 * (i % 4)) + row["output"]
    rows_file.write_text(json.dumps(rows))
    data = {"val_size": 0, "batch_size": batch_size}
    module, _ = fit(tmp_path, make_base(), rows_file, data=data, accumulate_grad_batches=accumulate)
    reference, _ = fit(tmp_path, make_base(), rows_file, data={"val_size": 0, "batch_size": 6})
    untrained = CausalLMModule(str(make_base()))
    untrained.add_adapter(LoRA(rank=4, dropout=0.0))
    for name, parameter in module.adapter_parameters().items():
        start = untrained.adapter_parameters()[name]
        assert torch.allclose(parameter, reference.adapter_parameters()[name], atol=2e-5), name
        assert (parameter - start).abs().max() > 1e-3


def test_the_validation_loss_is_the_mean_over_all_labelled_tokens(tmp_path, make_base, rows_file):
    """Batches with few and with many labels: no token weighs more than another."""
    rows = json.loads(rows_file.read_text())
    for i, row in enumerate(rows):
        row["output"] = "so " * (1 + 7 * (i % 4)) + row["output"]
    rows_file.write_text(json.dumps(rows))
    module = CausalLMModule(str(make_base()))
    data = InstructionJSON(path=str(rows_file), val_size=4, eval_batch_size=1, max_new_tokens=1)
    (found,) = trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    batch = Collate(module.tokenizer.pad_token_id)(data.validation.__getitems__(list(range(4))))
    assert len(set(data.validation.label_counts())) > 1
    with torch.no_grad():
        losses = module.label_losses(module.hidden_states(batch), batch["labels"])
    assert found["val_loss"] == pytest.approx(losses.mean().item(), rel=1e-5)


# ---- what is trained


def test_training_changes_the_adapter_and_nothing_else(tmp_path, make_base, rows_file):
    module, _ = fit(tmp_path, make_base(), rows_file)
    base = tiny_model("llama")
    trained = {name for name, _ in module.named_parameters() if name in module.adapter_parameters()}
    assert len(trained) == 20
    for name, parameter in base.named_parameters():
        assert torch.equal(module.model.get_parameter(name), parameter), name
    assert all(layer.lora_B.any() for layer in adapter_layers(module.model).values())


def test_dropout_is_on_in_training_and_off_in_validation_and_test(tmp_path, make_base, rows_file):
    modes = {}

    class Watch(CausalLMModule):
        def hidden_states(self, batch):
            stage = "train" if self.trainer.training else "validate"
            modes.setdefault(stage, set()).update(m.training for m in self.model.modules())
            return super().hidden_states(batch)

        def engine(self, batch_size):
            modes.setdefault("generate", set()).update(m.training for m in self.model.modules())
            return super().engine(batch_size)

    module, _run = fit(tmp_path, make_base("opt"), rows_file, module=Watch(str(make_base("opt"))))
    data = InstructionJSON(test_path=str(rows_file), max_new_tokens=2)
    trainer(tmp_path).test(module, datamodule=data, verbose=False)
    assert modes == {"train": {True}, "validate": {False}, "generate": {False}}


def test_a_test_folds_the_adapter_in_and_lets_go_of_the_second_weights(tmp_path, make_base, rows_file, monkeypatch):
    module, _run = fit(tmp_path, make_base(), rows_file)
    weights = {name: (p.data_ptr(), p.clone()) for name, p in module.model.named_parameters()}
    contexts, own = [], module_file.folded

    def noted(*arguments):
        found = own(*arguments)
        contexts.append(weakref.ref(found))
        return found

    monkeypatch.setattr(module_file, "folded", noted)
    data = InstructionJSON(test_path=str(rows_file), max_new_tokens=2)
    trainer(tmp_path).test(module, datamodule=data, verbose=False)
    trainer(tmp_path).predict(module, datamodule=data)
    gc.collect()
    assert [context() for context in contexts] == [None, None]
    assert all(p.data_ptr() == weights[name][0] for name, p in module.model.named_parameters())
    assert all(torch.equal(p, weights[name][1]) for name, p in module.model.named_parameters())
    # Below float32 the change of the weights would be rounded away.
    trainer(tmp_path, precision="bf16-true").test(module, datamodule=data, verbose=False)
    assert len(contexts) == 2


def test_the_seed_of_everything_draws_the_adapter(make_base, monkeypatch):
    def drawn(seed):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)  # what Lightning's seed_everything sets
        module = CausalLMModule(str(make_base()))
        module.add_adapter(LoRA(rank=2))
        return torch.cat([parameter.flatten() for parameter in module.adapter_parameters().values()])

    assert torch.equal(drawn("1"), drawn("1"))
    assert not torch.equal(drawn("1"), drawn("2"))


def test_nothing_to_train_is_an_error(tmp_path, make_base, rows_file):
    with pytest.raises(UserError, match="Nothing to train"):
        trainer(tmp_path).fit(CausalLMModule(str(make_base())), datamodule=InstructionJSON(path=str(rows_file)))


def test_fit_then_test_leaves_one_adapter(tmp_path, make_base, rows_file):
    adapter = LoRA(rank=4)
    module, run = fit(tmp_path, make_base(), rows_file, adapter=adapter)
    trained = {name: p.clone() for name, p in module.adapter_parameters().items()}
    run.test(module, datamodule=InstructionJSON(test_path=str(rows_file), max_new_tokens=2), verbose=False)
    assert len(adapter_layers(module.model)) == 10
    assert all(torch.equal(p, trained[name]) for name, p in module.adapter_parameters().items())


def test_two_adapters_with_one_name_are_refused(make_base):
    module = CausalLMModule(str(make_base()))
    module.add_adapter(LoRA(rank=2))
    with pytest.raises(UserError, match="Two adapters are named 'default'"):
        module.add_adapter(LoRA(rank=3))


def test_several_adapters_train_together(tmp_path, make_base, rows_file):
    module = CausalLMModule(str(make_base()), lr=1e-2)
    one, two = LoRA(rank=2, name="one", placement="attn"), LoRA(rank=3, name="two", placement="mlp")
    trainer(tmp_path, one, two).fit(module, datamodule=InstructionJSON(path=str(rows_file), val_size=0))
    for adapter in (one, two):
        parameters = adapter.adapter_parameters(module.model)
        assert all(p.any() for name, p in parameters.items() if name.endswith("lora_B"))


def test_the_base_alone_is_tested_beside_the_adapter(tmp_path, make_base, rows_file):
    module, _run = fit(tmp_path, make_base(), rows_file, max_epochs=8)
    data = InstructionJSON(test_path=str(rows_file), max_new_tokens=12)
    trainer(tmp_path).test(module, datamodule=data, verbose=False)
    with_base = module.records["sums"]
    alone = CausalLMModule(str(make_base()))
    trainer(tmp_path).test(
        alone, datamodule=InstructionJSON(test_path=str(rows_file), max_new_tokens=12), verbose=False
    )
    assert sorted(r["row"] for r in with_base) == list(range(40))
    base = {record["row"]: record["prediction"] for record in alone.records["sums"]}
    assert {r["row"]: r["base_prediction"] for r in with_base} == base
    assert all("base_prediction" not in record for record in alone.records["sums"])
    module.test_base = False
    trainer(tmp_path).test(
        module, datamodule=InstructionJSON(test_path=str(rows_file), max_new_tokens=12), verbose=False
    )
    assert all("base_prediction" not in record for record in module.records["sums"])


def test_a_test_returns_the_accuracy_of_every_set(tmp_path, make_base, rows_file):
    module = CausalLMModule(str(make_base()))
    data = InstructionJSON(test_path=str(rows_file), max_new_tokens=2, eval_batch_size=7)
    for _ in range(2):  # a second test begins to count anew
        (found,) = trainer(tmp_path).test(module, datamodule=data, verbose=False)
        records = module.records["sums"]
        assert found == {"accuracy/sums": sum(record["correct"] for record in records) / 40}


# ---- optimizer


def test_warm_up_and_decay_are_linear():
    factor = LinearWarmup(4, 24)
    assert [factor(step) for step in (0, 3, 4, 14, 24, 30)] == pytest.approx([0.2, 0.8, 1.0, 0.5, 0.0, 0.0])


def test_the_default_is_adamw_over_the_adapter_and_warms_up_in_a_tenth_at_most(tmp_path, make_base, rows_file):
    module, run = fit(tmp_path, make_base(), rows_file, data={"batch_size": 2, "val_size": 0}, max_epochs=1)
    (optimizer,) = run.optimizers
    assert type(optimizer) is torch.optim.AdamW
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in module.adapter_parameters().values()
    }
    schedule = run.lr_scheduler_configs[0].scheduler.lr_lambdas[0]
    assert (schedule.warmup, schedule.total) == (2, 20)


def test_lora_plus_trains_its_b_matrices_faster(tmp_path, make_base, rows_file):
    adapter = LoRA(rank=4, lr_ratio=16, dropout=0.0)
    _, run = fit(tmp_path, make_base(), rows_file, adapter=adapter)
    assert [group["initial_lr"] for group in run.optimizers[0].param_groups] == pytest.approx([1e-2, 16e-2])


def test_learning_rate_and_weight_decay_are_those_given(tmp_path, make_base, rows_file):
    module = CausalLMModule(str(make_base()), lr=0.02, weight_decay=0.3)
    _, run = fit(tmp_path, make_base(), rows_file, module=module)
    (group,) = run.optimizers[0].param_groups
    assert (group["initial_lr"], group["weight_decay"]) == (0.02, 0.3)


def test_any_optimizer_and_scheduler_can_be_given(tmp_path, make_base, rows_file):
    module = CausalLMModule(
        str(make_base()),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
    )
    _, run = fit(tmp_path, make_base(), rows_file, module=module, data={"batch_size": 20, "val_size": 0})
    assert type(run.optimizers[0]) is torch.optim.SGD
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.5 * 0.5**2)


# ---- checkpoints


@pytest.fixture
def checkpoint(tmp_path, make_base, rows_file):
    """A checkpoint of a trained adapter, with the module that wrote it."""
    module, run = fit(tmp_path, make_base(), rows_file)
    path = tmp_path / "some.ckpt"
    run.save_checkpoint(path)
    return path, module


def test_a_checkpoint_holds_the_adapter_alone(checkpoint):
    path, module = checkpoint
    stored = torch.load(path, weights_only=True)
    assert stored["state_dict"].keys() == module.adapter_parameters().keys()
    own = sum(p.numel() * p.element_size() for p in module.adapter_parameters().values())
    assert path.stat().st_size <= 3 * own * 1.05 + 64 * 1024
    ours = stored["adapters_pl"]
    assert ours["format"] == 2
    assert ours["base"]["id"] == module.base
    assert ours["adapters"][0]["class_path"] == "adapters_pl.LoRA"
    assert ours["adapters"][0]["init_args"]["rank"] == 4


def test_a_checkpoint_restores_the_adapter(checkpoint, tmp_path, make_base, rows_file):
    path, module = checkpoint
    restored = CausalLMModule(str(make_base()))
    data = InstructionJSON(test_path=str(rows_file), max_new_tokens=4)
    trainer(tmp_path, LoRA(rank=4, dropout=0.0)).test(restored, datamodule=data, ckpt_path=path, verbose=False)
    for name, parameter in module.adapter_parameters().items():
        assert torch.equal(restored.adapter_parameters()[name], parameter), name


def test_what_a_subclass_holds_outside_the_base_may_be_whole_numbers(tmp_path, make_base, rows_file):
    class Counting(CausalLMModule):
        def __init__(self, base):
            super().__init__(base)
            self.register_buffer("seen", torch.tensor(7))

    _, run = fit(tmp_path, make_base(), rows_file, module=Counting(str(make_base())))
    run.save_checkpoint(tmp_path / "counting.ckpt")
    again = Counting(str(make_base()))
    again.seen.zero_()
    data = InstructionJSON(test_path=str(rows_file), max_new_tokens=4)
    plain = trainer(tmp_path, LoRA(rank=4, dropout=0.0))
    plain.test(again, datamodule=data, ckpt_path=tmp_path / "counting.ckpt", verbose=False)
    assert again.seen == 7


def test_a_plain_model_takes_the_checkpoint(checkpoint):
    from adapters_pl import load_adapter

    path, module = checkpoint
    ids = torch.tensor([[1, 40, 41, 42]])
    module.eval()
    with torch.no_grad():
        theirs = load_adapter(tiny_model("llama"), path)(ids).logits
        assert torch.allclose(theirs, module.model(ids).logits, atol=1e-5)
        assert not torch.allclose(theirs, tiny_model("llama")(ids).logits, atol=1e-3)
    with pytest.raises(UserError, match="belongs to another base"):
        load_adapter(tiny_model("llama", seed=1), path)


@pytest.mark.parametrize(
    ("base", "adapter", "message"),
    [
        ({"seed": 1}, LoRA(rank=4), "belongs to another base"),
        ({"name": "llama_gqa"}, LoRA(rank=4), "belongs to another base"),
        ({}, LoRA(rank=8), r"holds LoRA\(rank=4.*this run has LoRA\(rank=8"),
        ({}, LoRA(rank=4, placement="attn"), "This checkpoint's adapter differs"),
        ({}, None, r"holds LoRA\(rank=4.*this run has none"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(checkpoint, tmp_path, make_base, rows_file, base, adapter, message):
    module = CausalLMModule(str(make_base(**base)))
    run = trainer(tmp_path, *([adapter] if adapter else []))
    with pytest.raises(UserError, match=message):
        run.test(module, datamodule=InstructionJSON(test_path=str(rows_file)), ckpt_path=checkpoint[0])


def test_a_foreign_checkpoint_is_refused(tmp_path, make_base):
    module = CausalLMModule(str(make_base()))
    with pytest.raises(UserError, match="not written by adapters-pl"):
        module.on_load_checkpoint({"state_dict": {}})


# ---- the fingerprint


def test_the_fingerprint_tells_bases_apart_and_does_not_mind_the_dtype():
    base = fingerprint(tiny_model("llama"))
    assert same_base(base, fingerprint(tiny_model("llama")))
    assert same_base(base, fingerprint(tiny_model("llama").to(torch.bfloat16)))
    assert same_base(base, fingerprint(tiny_model("llama").to(torch.float16)))
    assert not same_base(base, fingerprint(tiny_model("llama", seed=1)))
    assert not same_base(base, fingerprint(tiny_model("llama_gqa")))
    assert not same_base(base, fingerprint(tiny_model("opt")))


def test_the_fingerprint_tells_structures_apart_where_the_embedding_is_the_same():
    base, other = tiny_model("llama"), tiny_model("llama_gqa")
    other.set_input_embeddings(base.get_input_embeddings())
    assert fingerprint(base)["sample"] == fingerprint(other)["sample"]
    assert not same_base(fingerprint(base), fingerprint(other))


def test_the_fingerprint_does_not_see_adapters():
    model = tiny_model("llama")
    before = fingerprint(model)
    LoRA(rank=2).attach_to(model)
    assert fingerprint(model) == before


# ---- finding the base


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("./nowhere", "no such directory"),
        ("/nowhere/at/all", "no such directory"),
        ("a b c", "no such directory"),
        ("nobody/nothing-of-the-kind", "the hub did not give it"),
    ],
)
def test_a_base_that_does_not_exist_is_a_clear_error(base, message):
    with pytest.raises(UserError, match=message):
        _ = CausalLMModule(base).config


@pytest.fixture
def no_network(monkeypatch):
    """The host of the hub has no address, and nothing says so beforehand. A try to reach any host fails the test."""
    import socket

    from huggingface_hub import constants

    def no_address(host, *args, **kwargs):
        hosts.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    hosts = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("adapters_pl.inputs.hub.getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    return hosts


@pytest.mark.parametrize("what", ["config", "tokenizer", "build_base"])
def test_a_hub_that_cannot_be_reached_is_said_at_once(no_network, what):
    with pytest.raises(UserError, match=r"^'no/such': .* the hub cannot be reached to download it .*not known"):
        getattr(CausalLMModule("no/such"), what)() if what == "build_base" else getattr(CausalLMModule("no/such"), what)
    assert len(no_network) == 1  # the hub's client would try on for a minute


def test_a_base_in_the_cache_needs_no_network(no_network, make_base, monkeypatch, tmp_path):
    from huggingface_hub import constants

    snapshot = tmp_path / "models--some--base/snapshots/abc"
    shutil.copytree(make_base(), snapshot)
    (tmp_path / "models--some--base/refs").mkdir()
    (tmp_path / "models--some--base/refs/main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    module = CausalLMModule("some/base")
    assert module.tokenizer.eos_token_id == 2
    assert module.build_base().config.vocab_size == module.config.vocab_size
    assert len(no_network) < 5
    assert not constants.HF_HUB_OFFLINE


def test_a_directory_without_a_model_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json"):
        _ = CausalLMModule(str(tmp_path)).config


def test_a_tokenizer_without_padding_pads_with_its_end_token_and_one_without_end_is_refused(tmp_path):
    from tests.conftest import tiny_tokenizer

    tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer(pad_token=None).save_pretrained(tmp_path)
    tokenizer = CausalLMModule(str(tmp_path)).tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    tiny_tokenizer(eos_token=None).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no end token"):
        _ = CausalLMModule(str(tmp_path)).tokenizer


def test_random_init_gives_other_weights_and_the_same_ones_each_time(make_base):
    first, second = (CausalLMModule(str(make_base()), random_init=True).build_base() for _ in range(2))
    weight = tiny_model("llama").model.layers[0].mlp.up_proj.weight
    assert torch.equal(first.model.layers[0].mlp.up_proj.weight, second.model.layers[0].mlp.up_proj.weight)
    assert not torch.allclose(first.model.layers[0].mlp.up_proj.weight, weight, atol=0.01)


def test_code_that_comes_with_a_base_is_not_run_unless_asked_for(tmp_path, make_base):
    base, witness = shutil.copytree(make_base(), tmp_path / "base"), tmp_path / "ran"
    (base / "mine.py").write_text(
        f"from pathlib import Path\nfrom transformers import LlamaConfig\nPath({str(witness)!r}).touch()\n"
        "class Mine(LlamaConfig):\n    pass\n"
    )
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "mine.Mine"}}))
    assert type(CausalLMModule(str(base)).config).__name__ == "LlamaConfig"
    CausalLMModule(str(base)).build_base()
    assert not witness.exists()


def test_the_base_is_built_once_and_frozen(make_base):
    module = CausalLMModule(str(make_base()), dtype="bfloat16")
    model = module.build_base()
    assert module.build_base() is model
    assert model.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in model.parameters())
