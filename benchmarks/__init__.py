"""Measurements that the documentation quotes. Each is one command that prints a table and writes JSON."""
