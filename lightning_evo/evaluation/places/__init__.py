"""Where the rows of members lie in the tensors of a forward, if members are rows of one batch.

:func:`follow` gives what a torch function gave its place, by rules for each kind of function, one file each.
"""

from lightning_evo.evaluation.places.follow import follow
from lightning_evo.evaluation.places.place import Lost, forget_written, made_of, place_of, set_made, set_place

__all__ = ["Lost", "follow", "forget_written", "made_of", "place_of", "set_made", "set_place"]
