"""An ordinary script, run as users would run it, by backpropagation and by evolution."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "unchanged" / "train.py"
ENTRY_POINT = "[torch.backends]\nlightning_evo = lightning_evo_autoload:autoload\n"


def run(folder: Path, strategy: str | None, epochs: int) -> tuple[float, dict[str, object]]:
    """Test accuracy that the script prints, and the checkpoint that it leaves."""
    # What `pip install` would have written, so that the test needs no installation and never meets another one.
    metadata = folder / "site" / "lightning_evo-0.0.1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lightning-evo\nVersion: 0.0.1\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(metadata.parent), str(ROOT)])}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    if strategy is not None:
        environment["PL_TRAINER_STRATEGY"] = strategy
    done = subprocess.run(
        [sys.executable, str(SCRIPT), f"--epochs={epochs}"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (accuracy,) = re.findall(r"^Test accuracy: ([\d.]+)$", done.stdout, flags=re.MULTILINE)
    (checkpoint,) = (folder / "checkpoints").glob("*.ckpt")
    return float(accuracy), torch.load(checkpoint, weights_only=True)


def test_script_is_ordinary_and_short() -> None:
    source = SCRIPT.read_text()
    assert "evo" not in source.lower()
    assert len(source.splitlines()) < 60


@pytest.mark.slow
def test_backpropagation(tmp_path: Path) -> None:
    accuracy, checkpoint = run(tmp_path, strategy=None, epochs=10)
    assert "lightning_evo" not in checkpoint
    assert accuracy > 0.9


@pytest.mark.slow
def test_evolution(tmp_path: Path) -> None:
    accuracy, checkpoint = run(tmp_path, strategy="evo", epochs=10)
    # The strategy's own note in the best checkpoint: one generation for each of the script's optimizer steps.
    assert checkpoint["lightning_evo"]["state"]["generation"] == checkpoint["global_step"] > 0
    assert accuracy > 0.7  # one in ten by chance
