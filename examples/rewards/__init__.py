"""A language model learns from a reward to answer shortly and rightly."""
