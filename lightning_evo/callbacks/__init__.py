"""Lightning callbacks for evolution runs."""

from lightning_evo.callbacks.completions import Completions
from lightning_evo.callbacks.journal import SeedJournal
from lightning_evo.callbacks.monitor import EvolutionMonitor

__all__ = ["Completions", "EvolutionMonitor", "SeedJournal"]
