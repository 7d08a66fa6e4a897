"""``python -m examples.countdown [options of LightningCLI]``: the tiny model on a CPU."""

import sys

from examples.countdown.run import main

if __name__ == "__main__":
    main(sys.argv[1:])
