"""The wheel carries what the package needs where there is no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel's contents, unpacked."""
    out, site = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = out.glob("adapters_pl-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def test_the_wheel_has_every_configuration_and_the_base(installed):
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert (installed / "adapters_pl" / "configs" / path.relative_to(ROOT / "configs")).is_file()
    base = installed / "adapters_pl" / "quickstart" / "base"
    assert {path.name for path in base.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}


def test_the_wheel_trains_and_tests_outside_the_checkout(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_WAIT_POLICY": "passive"}

    few = ["--data.train_rows", "32", "--data.val_size", "4", "--trainer.max_epochs", "1"]
    commands = [
        ["recipes", "show", "ia3_qwen3_8b"],
        ["fit", "--config", "quickstart.yaml", *few],
        ["test", "--data.test_rows", "4", "--data.max_new_tokens", "4"],
    ]
    program = (
        "import adapters_pl, sys; from adapters_pl.cli.main import main; print(adapters_pl.__file__); "
        f"sys.exit(any([main(words) for words in {commands}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(str(installed))
    assert "base: Qwen/Qwen3-8B  # models/qwen3_8b.yaml" in done.stdout
    assert (tmp_path / "runs/quickstart-1/results.json").is_file()
