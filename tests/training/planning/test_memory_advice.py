"""The estimate in words: what fits, what would, and what a run that ran out of memory is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adapters_pl import CausalLMModule, LoRA, UserError
from adapters_pl.cli.main import main
from adapters_pl.inputs.errors import out_of_memory
from adapters_pl.training.adapted import BaseSource
from adapters_pl.training.planning.memory import Estimate, MemoryModel, Setup
from adapters_pl.training.planning.memory_advice import Forecast, amount, easier
from tests.conftest import tiny_config, tiny_model

GIB = 2**30
CUDA = Setup(dtype=torch.bfloat16, accelerator="cuda")


class Model(MemoryModel):
    """A base of 16 GiB in float32 and activations of 1 GiB a row, a quarter of that with checkpointing."""

    def __init__(self):
        with torch.device("meta"):
            super().__init__(CausalLMModule(), tiny_model("llama"), [])

    def held(self, setup):
        base = {None: 4 * GIB * setup.dtype.itemsize, "8bit": 5 * GIB, "4bit": 3 * GIB}[setup.quantization]
        return Estimate(base // setup.parts, GIB // 8, GIB // 8, GIB // 4, 0, 2 * base)

    def estimate(self, setup):
        rows = GIB // 4 if setup.activation_checkpointing else GIB
        return replace(self.held(setup), activations=rows * max(setup.batch_size, setup.eval_batch_size // 4))


def forecast(room, setup=CUDA, host=None):
    made = Forecast(Model(), setup)
    made.room, made.host = room and int(room * GIB), host and int(host * GIB)
    return made


def options(room, setup=CUDA):
    return forecast(room, setup).advice().removeprefix("Try ").partition(": about")[0]


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 MiB"), (214 * 2**20, "214 MiB"), (GIB - 1, "1024 MiB"), (1.26 * GIB, "1.3 GiB")]
)
def test_amounts(size, words):
    assert amount(size) == words


# ---- the line


def test_the_line_says_what_is_needed_of_what_there_is_and_for_what():
    assert forecast(16).line() == (
        "memory: about 12.5 GiB of 16.0 GiB free "
        "(base 8.0 GiB, adapter 128 MiB, gradients 128 MiB, optimizer 256 MiB, activations 4.0 GiB); fits"
    )


def test_the_line_of_several_devices_and_of_none():
    line = forecast(None, replace(CUDA, devices=2, nodes=2, division="ddp")).line()
    assert line.startswith("memory: about 12.5 GiB on each of 4 GPUs (base")
    assert line.endswith("; there is no GPU here to compare with")
    line = forecast(16, replace(CUDA, accelerator="cpu", devices=2, division="ddp")).line()
    assert line.startswith("memory: about 12.5 GiB of 16.0 GiB free on each of 2 processes (base")


@pytest.mark.parametrize(("room", "verdict"), [(12.5 / 0.95 + 0.01, True), (12.5 / 0.95 - 0.01, False)])
def test_a_twentieth_is_left_free(room, verdict):
    assert forecast(room).fits is verdict
    assert ("; fits" in forecast(room).line()) is verdict


def test_a_host_too_small_to_load_the_base_does_not_fit():
    line = forecast(16, host=8).line()
    assert "; does not fit: the host needs 16.0 GiB of 8.0 GiB free to load the base. Try" in line
    assert forecast(16, host=20).fits


def test_what_could_not_be_traced_is_said():
    made = forecast(16)
    made.estimate = replace(made.model.held(CUDA), problem="TypeError: no")
    assert made.line() == (
        "memory: at least 8.5 GiB of 16.0 GiB free (base 8.0 GiB, adapter 128 MiB, gradients 128 MiB, "
        "optimizer 256 MiB; activations are not known: TypeError: no); may fit"
    )


# ---- what would fit


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (10.1, "--model.activation_checkpointing true"),
        (9.9, "--model.activation_checkpointing true --data.batch_size 2 --trainer.accumulate_grad_batches 2"),
        (9.3, "--model.activation_checkpointing true --data.batch_size 1 --trainer.accumulate_grad_batches 4"),
        (7.8, "--model.activation_checkpointing true --model.quantization 8bit"),
        (5.2, "--model.activation_checkpointing true --model.quantization 4bit"),
        (3.9, "--model.activation_checkpointing true --trainer.strategy fsdp --trainer.devices 4"),
        (
            1.4,
            "--model.activation_checkpointing true --data.batch_size 1 --trainer.accumulate_grad_batches 4 "
            "--trainer.strategy fsdp --trainer.devices 8 --trainer.num_nodes 2",
        ),
    ],
)
def test_the_mildest_option_that_fits_is_offered(room, expected):
    assert options(room) == expected


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (18.5, "--model.activation_checkpointing true"),
        (14, "--model.dtype bfloat16"),
        (10.5, "--model.activation_checkpointing true --model.dtype bfloat16"),
        (7, "--model.activation_checkpointing true --model.quantization 8bit"),
    ],
)
def test_a_float32_base_is_offered_half_its_bits_before_fewer(room, expected):
    assert options(room, replace(CUDA, dtype=torch.float32, accelerator="cpu")) == expected


def test_advice_says_what_it_comes_to():
    assert forecast(11).advice() == "Try --model.activation_checkpointing true: about 9.5 GiB."
    assert forecast(11).line().endswith("; does not fit. Try --model.activation_checkpointing true: about 9.5 GiB.")


def test_where_nothing_fits_that_is_said():
    assert forecast(0.2).advice() == "No option makes it fit: take a smaller base, or more memory."


def test_smaller_batches_keep_the_rows_of_a_step_and_lower_the_validations_too():
    setup = replace(CUDA, batch_size=6, accumulate=2, eval_batch_size=8)
    found = [(o, s) for o, s in easier(setup, Model()) if o.startswith("--data.batch_size")]
    assert [o for o, _ in found[:2]] == [
        "--data.batch_size 3 --trainer.accumulate_grad_batches 4 --data.eval_batch_size 3",
        "--data.batch_size 1 --trainer.accumulate_grad_batches 12 --data.eval_batch_size 1",
    ]
    assert all(s.batch_size * s.accumulate == 12 for _, s in found)


def test_batches_of_a_number_of_tokens_become_smaller_by_it():
    setup = replace(CUDA, batch_size=4, by_tokens=True, tokens=256)
    assert "--data.max_tokens_per_batch 512 --trainer.accumulate_grad_batches 2" in [
        o for o, _ in easier(setup, Model())
    ]
    assert not any("batch_size" in option for option, _ in easier(setup, Model()))


@pytest.mark.parametrize(
    ("setup", "never"),
    [
        (replace(CUDA, activation_checkpointing=True), "activation_checkpointing"),
        (replace(CUDA, batch_size=1), "batch_size"),
        (CUDA, "bfloat16"),
        (replace(CUDA, dtype=torch.float32, precision="bf16-true"), "bfloat16"),
        (replace(CUDA, quantization="4bit"), "quantization"),
        (replace(CUDA, quantization="4bit"), "fsdp"),
        (replace(CUDA, division="fsdp", devices=2), "quantization"),
        (replace(CUDA, accelerator="cpu"), "fsdp"),
    ],
)
def test_what_is_so_already_or_cannot_be_is_not_offered(setup, never):
    assert not any(never in option for option, _ in easier(setup, Model()))


def test_every_option_is_one_of_the_command_lines(monkeypatch, tmp_path):
    """And does what was counted with."""
    from adapters_pl.cli.command_line import CommandLine
    from adapters_pl.cli.commands.plan import PlanCLI

    monkeypatch.chdir(tmp_path)
    setup = replace(CUDA, dtype=torch.float32, batch_size=4, eval_batch_size=8, tokens=256)
    base = ["--adapter", "LoRA", "--data", "WordProblems", "--trainer.accelerator", "gpu", "--model.dtype", "float32"]
    for option, changed in list(easier(setup, Model()))[1::9]:
        cli = PlanCLI(CommandLine.read("plan", [*base, *option.split()]))
        assert Setup.of(cli.model, cli.config.trainer, cli.config.data.init_args) == changed, option


# ---- refusing


def test_a_base_too_big_for_the_memory_is_refused_and_a_run_too_big_is_not():
    forecast(8.1).refuse()
    forecast(None).refuse()
    with pytest.raises(
        UserError, match=r"The base takes 8.0 GiB and there are 7.9 GiB free. Try --model.act.* 8bit: about"
    ):
        forecast(7.9).refuse()


@pytest.fixture
def fit(tmp_path, monkeypatch, make_base, rows_file):
    """A short training from the command line; returns the exit code."""
    monkeypatch.chdir(tmp_path)
    given = ["--model.base", str(make_base()), "--data", "InstructionJSON", "--data.path", str(rows_file)]
    given += ["--data.val_size", "0", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu"]

    def run(*arguments):
        return main(["fit", "--adapter", "LoRA", *given, "--trainer.enable_progress_bar", "false", *arguments])

    return run


def test_fit_says_what_it_needs_before_it_loads_weights(fit, capsys, monkeypatch):
    printed = []
    monkeypatch.setattr(
        BaseSource, "load", lambda source, device: printed.append(capsys.readouterr().out) or tiny_model("llama")
    )
    fit()
    assert "memory: about " in printed[0]
    assert "; fits\n" in printed[0]


def test_fit_refuses_a_base_that_is_too_big_before_it_loads_weights(fit, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "adapters_pl.training.planning.memory_advice.free_memory", lambda accelerator, processes: 100_000
    )
    monkeypatch.setattr(BaseSource, "load", lambda source, device: pytest.fail("weights were loaded"))
    assert fit("--data.batch_size", "2") == 1
    out, error = capsys.readouterr()
    assert "; does not fit" in out
    assert error.startswith("error: The base takes 0 MiB and there are 0 MiB free.")
    assert error.count("\n") == 1
    assert not list((tmp_path / "runs").iterdir())


def test_fit_tries_what_may_not_fit(fit, capsys, monkeypatch):
    monkeypatch.setattr(
        "adapters_pl.training.planning.memory_advice.free_memory", lambda accelerator, processes: 300_000
    )
    assert fit() == 0
    assert "; does not fit. " in capsys.readouterr().out


# ---- running out


def test_relief_is_the_mildest_change_that_takes_a_tenth_less():
    assert forecast(16).relief() == ("Try --model.activation_checkpointing true: about 9.5 GiB instead of 12.5 GiB.")
    least = replace(CUDA, activation_checkpointing=True, batch_size=1, quantization="4bit", accelerator="cpu")
    assert forecast(16, least).relief() == "Nothing known here takes much less: take a smaller base, or more memory."


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: 12"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (MemoryError("std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("DefaultCPUAllocator"), False),
    ],
)
def test_errors_of_too_little_memory_are_known(error, known):
    assert out_of_memory(error) is known


def test_the_cpus_allocator_says_what_is_looked_for():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ..."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_training_that_runs_out_is_answered_with_advice(fit, capsys, monkeypatch, tmp_path, error):
    def run_out(*given):
        raise error

    monkeypatch.setattr(CausalLMModule, "training_step", run_out)
    assert fit() == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-2].startswith("error: out of memory: ")
    assert said[-1].startswith("Try --model.activation_checkpointing true: about ")
    assert not list((tmp_path / "runs").glob("*/crash.log"))


def test_after_a_checkpoint_the_way_on_is_named_and_a_test_is_told_of_its_batches(fit, rows_file, capsys, monkeypatch):
    def run_out(*given):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(CausalLMModule, "on_train_end", run_out)
    assert fit() == 1
    assert "Go on from runs/lora-1/checkpoints/last.ckpt with --ckpt_path last." in capsys.readouterr().err
    monkeypatch.setattr(CausalLMModule, "test_step", run_out)
    given = ["--ckpt_path", "runs/lora-1", "--data.test_path", str(rows_file), "--data.contamination", "allow"]
    assert main(["test", *given, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]) == 1
    assert capsys.readouterr().err.endswith(
        "error: out of memory: CUDA out of memory.\n"
        "Lower --data.eval_batch_size (now 8), or hold the base in less: --model.quantization 4bit.\n"
    )


def test_an_estimate_that_fails_does_not_stop_the_training(fit, capsys, monkeypatch):
    monkeypatch.setattr("adapters_pl.training.planning.memory.training_peak", lambda *given: 1 / 0)
    assert fit() == 0
    assert "activations are not known: ZeroDivisionError: division by zero); may fit" in capsys.readouterr().out


def test_a_tiny_base_in_its_real_memory_fits():
    module = CausalLMModule()
    module.source.config = tiny_config("llama")
    adapter = LoRA(rank=4)
    with torch.device("meta"):
        skeleton = tiny_model("llama")
    adapter.attach_to(skeleton, seed=None)
    made = Forecast(MemoryModel(module, skeleton, [adapter]), Setup(2, tokens=16))
    assert made.fits
    assert made.room > made.estimate.total
