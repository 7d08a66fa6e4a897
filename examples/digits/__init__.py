"""Handwritten digits, learnt from accuracy alone."""
