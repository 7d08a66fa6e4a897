"""The seed journal: a run recorded as the fitness of its members, a few bytes for each generation.

Noise is a pure function of its address, so a generation is fully described by the fitness of its members. A journal is
a file ``*.evoj`` that is only ever appended to:

============================  ==========================================================================
:mod:`.records`               what it records of a run and of each generation
:mod:`.description`           how it describes algorithm, parameters and weights
:mod:`.format`                the same as bytes: head, frames, torn and damaged files
:mod:`.file`                  the file: created, opened, read and appended to
:mod:`.disk`                  what it asks of the file system: fsync, locks, names that are never overwritten
:mod:`.recorder`              how a run writes its generations, and recalls those that are there
:mod:`.resume`                which journal a run continues
:mod:`.checksums`             when checksums of the weights are written and compared
:mod:`.replay`                a generation's weights from a checkpoint and a journal
:mod:`.verify`                whether a run's weights are those
============================  ==========================================================================
"""

from lightning_evo.journal.description import (
    check_of,
    describe_algorithm,
    describe_parameters,
    rebuild_algorithm,
    weights_checksum,
)
from lightning_evo.journal.file import SUFFIX, Journal, next_free
from lightning_evo.journal.format import VERSION
from lightning_evo.journal.records import Conditions, Header, JournalError, Record, RecordedParameter

__all__ = [
    "SUFFIX",
    "VERSION",
    "Conditions",
    "Header",
    "Journal",
    "JournalError",
    "Record",
    "RecordedParameter",
    "check_of",
    "describe_algorithm",
    "describe_parameters",
    "next_free",
    "rebuild_algorithm",
    "weights_checksum",
]
