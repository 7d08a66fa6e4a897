"""Searches: algorithms that sample vectors and say where the center goes, one file each.

:mod:`.search` has what they share, :mod:`.ranks` turns fitness into weights by rank.
"""
