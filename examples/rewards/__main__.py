"""``python -m examples.rewards [--lora]``."""

from examples.rewards.run import main

if __name__ == "__main__":
    main()
