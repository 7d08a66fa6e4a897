"""Keeps members from affecting each other and the run: what a module can reach, and how it is put back.

:class:`Isolation` is the context; :func:`shared` and :func:`register` say how objects of a class are treated.
"""

from lightning_evo.isolation.isolation import Isolation
from lightning_evo.isolation.snapshots import register, shared
from lightning_evo.isolation.traces import Traces

__all__ = ["Isolation", "Traces", "register", "shared"]
