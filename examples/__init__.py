"""Runnable examples of training by evolution; each one is started by a single command."""
