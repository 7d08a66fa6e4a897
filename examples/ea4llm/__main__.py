"""``python -m examples.ea4llm``."""

from examples.ea4llm.run import main

main()
