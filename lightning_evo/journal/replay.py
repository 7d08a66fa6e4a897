"""A generation's weights from a checkpoint and a journal, without the module's code or data."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evo.algorithms import Algorithm, State
from lightning_evo.generation.anchor import Anchor, StartingWeights
from lightning_evo.generation.evolution import CHECKPOINT_KEY
from lightning_evo.generation.laying import laid_over
from lightning_evo.generation.update import learn_from
from lightning_evo.journal import (
    Conditions,
    Journal,
    JournalError,
    RecordedParameter,
    check_of,
    describe_algorithm,
    rebuild_algorithm,
    weights_checksum,
)
from lightning_evo.journal.records import meddled, recorded_step
from lightning_evo.spaces.search_space import EvolvingParameter, SearchSpace
from lightning_evo.utils.messages import first_line

__all__ = ["Departed", "OtherUpdate", "load_checkpoint", "replay"]


class Departed(JournalError):
    """The run's weights are not those that its journal gives.

    Attributes:
        since: Generations after which they were last found to be the same.
        generation: Generations after which they were not.
    """

    def __init__(self, message: str, since: int, generation: int) -> None:
        super().__init__(message)
        self.since, self.generation = since, generation


class OtherUpdate(JournalError):
    """A generation's fitness gives another update here than when it was recorded.

    Attributes:
        generation: Its number.
    """

    def __init__(self, message: str, generation: int) -> None:
        super().__init__(message)
        self.generation = generation


def replay(
    checkpoint: str | Path | Mapping[str, Any],
    journal: str | Path | Journal,
    *,
    to: int | None = None,
    algorithm: Algorithm[Any] | None = None,
    device: str | torch.device = "cpu",
    exact: bool = True,
    start: str | Path | Mapping[str, Any] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Rebuild the weights that a run had after some generation.

    What evolved is rebuilt, bit for bit. Everything else, such as buffers (BatchNorm's statistics) and frozen weights,
    stays as the checkpoint has it. Where the journal has a checksum of the run's weights (about every hundred
    generations, and at the end of a fit), they are compared with it.

    Args:
        checkpoint: Of this run, at or before that generation; a path, or what is in it. For the run's first generation
            the weights alone are enough, of which the journal has a checksum.
        journal: The run's journal.
        to: Generations finished, as ``global_step`` counts them where each step is one; ``None`` for all recorded.
        algorithm: The run's algorithm, if the journal can't hold it: one with a function of your own for ``shaping``.
        device: Where to compute. The CPU and GPUs draw the same noise.
        exact: Whether to stop where a generation's update is not, in its last bits, the one that was made, or weights
            are not those that the run had. If false, the weights are compared all the same, with one warning.
        start: Of a run with an anchor: the weights that its script built, to which it was drawn back; a path, or what
            is in it. ``None`` if ``checkpoint`` holds them.
        progress: Called with the generations replayed and their total.

    Returns:
        A checkpoint of weights only, to be loaded by ``load_from_checkpoint`` or as ``["state_dict"]``: the given one
        without the states of optimizer, loops and callbacks, which a journal does not hold. It can be a further
        replay's ``checkpoint``. Tensors are on the CPU. ``["lightning_evo"]["compared"]`` is the last generation at
        which they were found to be the run's; what your own code did to weights after it is not noticed.

    Raises:
        JournalError: If checkpoint and journal are not of the same run, the generation is not between them, a parameter
            is missing or of another shape or dtype, the algorithm can't be rebuilt or is another one, the checkpoint
            can't be read, there is no such device, the weights that it was anchored to are missing or others, or (with
            ``exact``) the weights departed from the run's.

    Example:
        >>> import tempfile, lightning as L
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_evo import EvoStrategy
        >>> folder = tempfile.mkdtemp()
        >>> model = BoringModel()
        >>> start = {name: value.clone() for name, value in model.state_dict().items()}
        >>> strategy = EvoStrategy("mezo", update="in_place", journal=True)
        >>> trainer = L.Trainer(
        ...     strategy=strategy, max_steps=3, accelerator="cpu", default_root_dir=folder, barebones=True
        ... )
        >>> trainer.fit(model)
        >>> replayed = replay(start, f"{folder}/evolution.evoj")["state_dict"]
        >>> torch.equal(replayed["layer.weight"], model.layer.weight)
        True
    """
    opened = Journal.open(journal) if not isinstance(journal, Journal) else journal
    try:
        base = load_checkpoint(checkpoint)
        anchor = _Anchored(opened, base if start is None else load_checkpoint(start), _device(device), start is None)
        return _replay(base, opened, to, algorithm, _device(device), exact, anchor, progress)
    finally:
        if opened is not journal:
            opened.close()


def _replay(
    base: Mapping[str, Any],
    journal: Journal,
    to: int | None,
    algorithm: Algorithm[Any] | None,
    device: torch.device,
    exact: bool,
    anchor: _Anchored,
    progress: Callable[[int, int], object] | None,
) -> dict[str, Any]:
    algorithm = _algorithm(journal, algorithm)
    saved = base.get(CHECKPOINT_KEY, {})
    if saved and "state" not in saved:
        raise JournalError(
            "The checkpoint was written by an older version of lightning-evo, which this one can't continue. Replay it "
            "with that version."
        )
    first = int(saved["state"]["generation"]) if saved else journal.header.generation
    last = journal.end if to is None else to
    _check_range(journal, first, last)
    weights = _Weights(_tensors(base), device)
    comparison = _Comparison(journal, first, exact)
    if _check_run(journal, saved, first, weights):
        comparison.agreed = first
    if first - 1 in journal:
        comparison.at(first, weights.space(journal.conditions_at(first - 1).parameters))
    state = _state(algorithm, saved, journal, first, weights)
    for generation in range(first, last):
        record, conditions = journal.read(generation), journal.conditions_at(generation)
        space = weights.space(conditions.parameters)
        state = replace(state, seed=conditions.seed)
        population = laid_over(algorithm.ask(replace(state, sigma=record.sigma)), space)
        fitness = torch.tensor(record.fitness, dtype=torch.float64)
        state, update = learn_from(algorithm, state, population, space, fitness, anchor.at(conditions))
        if exact and check_of(update) != record.check:
            raise OtherUpdate(
                f"Generation {generation} of {journal.path}: its fitness gives another update here than when it was "
                "written, by another version of lightning-evo or torch, or on another processor"
                f"{meddled(algorithm.owns_center)}. Replay it there; or accept weights that are not the run's: "
                "exact=False (`--inexact`).",
                generation,
            )
        if update:
            update.apply(recorded_step(record, conditions))
        comparison.at(generation + 1, space)
        if progress is not None:
            progress(generation + 1 - first, last - first)
    return _checkpoint(base, weights, journal, state, comparison.agreed)


class _Anchored:
    """What a replayed run is drawn back to."""

    def __init__(self, journal: Journal, base: Mapping[str, Any], device: torch.device, is_checkpoint: bool) -> None:
        self._start: StartingWeights | None = None
        recorded = journal.header.anchor
        if recorded is None:
            return
        self._start = StartingWeights(Anchor(recorded["strength"], recorded["by"]))
        self._weights = _Weights(_tensors(base), device)
        self.at(journal.header.conditions)
        found = self._start.recorded(self._weights.space(journal.header.conditions.parameters))["start"]
        if found != recorded["start"]:
            what = "the checkpoint holds others" if is_checkpoint else "those that were given are others"
            raise JournalError(
                f"The run of {journal.path} was drawn back to the weights that its script had built (anchor="
                f"{self._start.anchor}), and {what}: their checksum is {found}, not {recorded['start']}. Give those: "
                "lightning_evo.journal.replay.replay(…, start=…), or --start FILE; for example a file that "
                "torch.save(module.state_dict(), FILE) wrote before the fit."
            )

    def at(self, conditions: Conditions) -> StartingWeights | None:
        """The weights to which an update of these parameters is drawn back; ``None`` if it is not."""
        if self._start is not None:
            self._start.hold(self._weights.space(conditions.parameters))
        return self._start


class _Comparison:
    """Compares replayed weights with the run's, where the journal has a checksum of them."""

    def __init__(self, journal: Journal, first: int, exact: bool) -> None:
        self.agreed: int | None = None
        """The last generation that run and replay began with the same weights."""
        self._journal, self._first, self._exact = journal, first, exact
        self._warned = False

    def at(self, generation: int, space: SearchSpace) -> None:
        """Compare the weights with which a generation begins.

        Args:
            generation: Its number.
            space: The parameters that evolved in the generation before.

        Raises:
            JournalError: If they are not the run's, and ``exact`` is true.
        """
        recorded = self._journal.weights.get(generation)
        if recorded is None:
            return
        found = weights_checksum(space)
        if found == recorded:
            self.agreed = generation
            return
        since = self._first if self.agreed is None else self.agreed
        where = f"Between generations {since} and" if since < generation else "Before generation"
        message = (
            f"{where} {generation} of {self._journal.path} the run's weights departed from what its fitness gives: "
            f"generation {generation} began with weights of the checksum {recorded}, and the replay has {found}. Most "
            "likely your code or a callback moved them, too (for example clamped, normalized, pruned or averaged "
            "them), which is not in a journal; or another processor or version of torch rounds differently. "
        )
        if self._exact:
            raise Departed(
                f"{message}Resume the fit instead, which runs that code again; replay no further than {since}; or "
                "accept weights that are not the run's: exact=False (`--inexact`).",
                since,
                generation,
            )
        if not self._warned:
            self._warned = True
            warnings.warn(f"{message}The replay goes on without that. Shown once.", stacklevel=4)


def _state(
    algorithm: Algorithm[Any], saved: Mapping[str, Any], journal: Journal, first: int, weights: _Weights
) -> State:
    """The algorithm's state before the first generation that is replayed."""
    if saved:
        try:
            state: State = algorithm.State.from_state_dict(saved["state"])
            return state
        except ValueError as error:
            raise JournalError(str(error)) from error
    header = journal.header
    center = weights.space(header.conditions.parameters).vector() if algorithm.owns_center else None
    state = algorithm.init(center, seed=header.conditions.seed)
    return replace(state, generation=first)


def _tensors(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict in a checkpoint; itself, if it is one."""
    # Lightning's WeightAveraging saves the average as `state_dict`, and the evolving weights under another key.
    found: Mapping[str, Any] = checkpoint.get("current_model_state", checkpoint.get("state_dict", checkpoint))
    return found


class _Weights:
    """The tensors of a state dict, those that evolve as parameters."""

    def __init__(self, state_dict: Mapping[str, Any], device: torch.device) -> None:
        self._state_dict = dict(state_dict)
        self._device = device
        self._moving: dict[str, nn.Parameter] = {}
        self._names: dict[str, tuple[str, ...]] = {}
        self._last: tuple[tuple[RecordedParameter, ...], SearchSpace] | None = None

    def space(self, parameters: tuple[RecordedParameter, ...]) -> SearchSpace:
        """The search space that these parameters make."""
        if self._last is None or self._last[0] is not parameters:
            found = [EvolvingParameter(p.names[0], self._parameter(p), p.index, p.padding_row) for p in parameters]
            self._last = parameters, SearchSpace.from_parameters(found)
        return self._last[1]

    def _parameter(self, described: RecordedParameter) -> nn.Parameter:
        name = described.names[0]
        if name not in self._moving:
            found = next((self._state_dict[n] for n in described.names if n in self._state_dict), None)
            if not isinstance(found, Tensor):
                raise JournalError(
                    f"The journal's parameter {name} is not in the checkpoint, which has "
                    f"{', '.join(list(self._state_dict)[:20])}. Is it a checkpoint of the same module?"
                )
            dtype = str(found.dtype).removeprefix("torch.")
            if tuple(found.shape) != described.shape or dtype != described.dtype:
                raise JournalError(
                    f"The journal's parameter {name} is {described.dtype} {list(described.shape)}; in the checkpoint "
                    f"it is {dtype} {list(found.shape)}. Is it a checkpoint of the same module, in the same precision?"
                )
            self._moving[name] = nn.Parameter(found.detach().to(self._device, copy=True), requires_grad=False)
            self._names[name] = described.names
        return self._moving[name]

    def state_dict(self) -> dict[str, Any]:
        """All tensors, tied ones sharing their memory."""
        for name, parameter in self._moving.items():
            value = parameter.detach().cpu()
            self._state_dict.update({alias: value for alias in self._names[name] if alias in self._state_dict})
        return self._state_dict


def load_checkpoint(checkpoint: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """What is in a checkpoint, on the CPU.

    Raises:
        JournalError: If it is not one, or holds more than plain data.
        OSError: If it can't be read.
    """
    if isinstance(checkpoint, Mapping):
        return checkpoint
    if Path(checkpoint).is_dir():
        raise JournalError(
            f"{checkpoint} is a folder, as evo_fsdp writes its checkpoints. Make it one file: "
            f"python -m lightning.fabric.utilities.consolidate_checkpoint {checkpoint}"
        )
    try:
        loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a file that is not a pickle may raise anything: KeyError, IndexError, …
        known = isinstance(error, (pickle.UnpicklingError, RuntimeError, EOFError))
        reason = first_line(error) if known else "it is not a file of torch.save."
        raise JournalError(
            f"{checkpoint} can't be read as plain data: {reason} If it is a checkpoint that holds objects of "
            "your code, load it yourself and pass what is in it: lightning_evo.journal.replay.replay(torch.load(…), …)."
        ) from error
    if not isinstance(loaded, Mapping):
        raise JournalError(
            f"{checkpoint} is not a checkpoint: it holds a {type(loaded).__name__}, not a dictionary. Give a file that "
            "the Trainer saved, or the weights alone: torch.save(module.state_dict(), path)."
        )
    return loaded


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # "meta" holds no values
    except Exception as error:  # a build of torch without it, no such GPU, …
        raise JournalError(
            f"There is no device {str(name)!r} here: {first_line(error).rstrip('.')}. Give cpu, cuda or cuda:1."
        ) from error
    return device


def _algorithm(journal: Journal, given: Algorithm[Any] | None) -> Algorithm[Any]:
    described = journal.header.algorithm
    if given is None:
        return rebuild_algorithm(described)
    here = describe_algorithm(given)
    differences = [
        f"{name} ({described.get(name)!r} there, {here.get(name)!r} here)"
        for name in sorted(described.keys() | here.keys())
        if described.get(name) != here.get(name)
    ]
    if differences:
        raise JournalError(
            f"{journal.path} was written with another algorithm: {', '.join(differences)}. Pass the run's own."
        )
    return given


def _check_range(journal: Journal, first: int, last: int) -> None:
    start, end = journal.header.generation, journal.end
    if not start <= first <= end:
        raise JournalError(
            f"The checkpoint is of generation {first}, and {journal.path} has generations {start} to {end}. Take a "
            "checkpoint of one of these."
        )
    if last < first:
        raise JournalError(
            f"The checkpoint is of generation {first}, and a replay only goes forward: {last} is before it. Take an "
            "earlier checkpoint."
        )
    if last > end:
        raise JournalError(f"{journal.path} ends at generation {end}, before {last}. Replay to {end} at most.")


def _check_run(journal: Journal, saved: Mapping[str, Any], first: int, weights: _Weights) -> bool:
    """Check that the checkpoint is of the journal's run: by the run's number, or at its start by the weights.

    Returns:
        Whether the weights were compared, too.
    """
    header, named = journal.header, saved.get("journal")
    if named is not None and named["run"] == header.run:
        compared = bool(named.get("weights")) and first - 1 in journal
        if compared:
            found = weights_checksum(weights.space(journal.conditions_at(first - 1).parameters))
            if found != named["weights"]:
                raise JournalError(
                    f"The checkpoint's weights have the checksum {found}; those of the run had {named['weights']} when "
                    "it was written, so something else was saved (for example averaged weights) or changed since. Give "
                    "another checkpoint of the run."
                )
        return compared
    if first == header.generation:
        found = weights_checksum(weights.space(header.conditions.parameters))
        if found == header.start:
            return True
        raise JournalError(
            f"The checkpoint's weights have the checksum {found}; {journal.path} begins with {header.start}. Give the "
            "checkpoint that the run began with, or one that it wrote."
        )
    is_of = "does not name its journal" if named is None else f"is of the run {named['run']:016x}"
    raise JournalError(
        f"The checkpoint {is_of}, and {journal.path} is of the run {header.run:016x}. Give a checkpoint of that run."
    )


def _checkpoint(
    base: Mapping[str, Any], weights: _Weights, journal: Journal, state: State, compared: int | None
) -> dict[str, Any]:
    # States of the checkpoint's own generation, from which no run must be resumed by mistake.
    dropped = ["loops", "callbacks", "optimizer_states", "lr_schedulers", "state_dict", CHECKPOINT_KEY]
    dropped += ["current_model_state", "averaging_state"]  # the average is not replayed
    others = {name: value for name, value in base.items() if name not in dropped} if "state_dict" in base else {}
    saved: dict[str, Any] = {
        "algorithm": journal.header.algorithm["name"],
        "state": state.state_dict(),
        "journal": {"run": journal.header.run, "path": str(journal.path.resolve()), "batches": 0},
        "compared": compared,
    }
    if "global_step" in others:
        others["global_step"] = state.generation
    return {**others, "state_dict": weights.state_dict(), CHECKPOINT_KEY: saved}
