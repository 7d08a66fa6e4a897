"""``python -m examples.digits [options of LightningCLI]``"""

import sys
import warnings
from pathlib import Path

import torch

from lightning_evo.cli.main import main

if __name__ == "__main__":
    warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # from Lightning about torch, nothing to act on
    torch.set_num_threads(1)  # so small a network is slower with more
    main(["fit", "--config", str(Path(__file__).with_name("config.yaml")), *sys.argv[1:]])
