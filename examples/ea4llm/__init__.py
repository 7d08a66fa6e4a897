"""EA4LLM (arXiv 2510.10603): pretraining a Qwen3-shaped language model by evolution.

``python -m examples.ea4llm`` trains the ``tiny`` preset on CPU; see the README in this folder.
"""

from examples.ea4llm.data import ByteTokenizer, TextDataModule
from examples.ea4llm.model import PRESETS, CausalLM, Preset

__all__ = ["PRESETS", "ByteTokenizer", "CausalLM", "Preset", "TextDataModule"]
