"""Which tensors evolve: their names, order, memory and shards."""

from lightning_evo.spaces.search_space import Evolve, EvolvingParameter, SearchSpace

__all__ = ["Evolve", "EvolvingParameter", "SearchSpace"]
