"""Runs the members of a population through the user's code, isolated from each other.

One way of doing so per file; :mod:`~lightning_evo.evaluation.ways.plain` is the loop that all others must equal.
"""
