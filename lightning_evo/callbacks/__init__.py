"""Lightning callbacks for evolution runs."""

from lightning_evo.callbacks.journal import SeedJournal
from lightning_evo.callbacks.monitor import EvolutionMonitor

__all__ = ["EvolutionMonitor", "SeedJournal"]
