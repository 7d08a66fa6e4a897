"""Counting, choosing, repeating and protecting the samples of a batch, whatever its structure."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy
import torch
from torch import Tensor

from lightning_evo.evaluation.job import Refusal
from lightning_evo.evaluation.places import set_place
from lightning_evo.isolation.contents import Contents
from lightning_evo.isolation.reach import reach
from lightning_evo.isolation.snapshots import take

__all__ = ["Repeat", "SharedBatch", "choose", "count", "random_samples", "samples_of"]


def count(batch: Any) -> int:
    """Number of samples: the size of dimension 0 that all tensors of a batch share.

    Without tensors it is the length of the first list that has an entry for each sample. Dictionaries in a list are
    samples also where they hold tensors, if each has a text or messages: a batch of texts has them in a list.

    Raises:
        ValueError: If there is nothing to count, or tensors disagree.

    Example:
        >>> count({"x": torch.zeros(8, 3), "y": torch.zeros(8)})
        8
        >>> count([{"prompt": "1 + 1 =", "answer": 2}, {"prompt": "1 + 2 =", "answer": 3}])
        2
    """
    if _is_of_rows(batch):
        return len(batch)
    sizes = set(_sizes(batch)) or ({samples_of(batch)} - {0})
    if len(sizes) != 1:
        found = (
            f"tensors of sizes {sorted(sizes)} in dimension 0"
            if sizes
            else "no tensor with a dimension, and no list of samples"
        )
        raise ValueError(
            f"The samples of this batch can't be counted: it holds {found}. samples_per_generation needs batches whose "
            "tensors all have one row per sample, or lists with one entry per sample; leave it out for others."
        )
    return sizes.pop()


def choose(batch: Any, samples: Tensor) -> Any:
    """The batch with only some of its samples.

    Args:
        batch: Tensors in any nesting of mappings, lists, tuples and named tuples. Other objects are passed on as they
            are, except lists and tuples with one entry per sample (for example strings), whose entries are chosen, too.
        samples: int64 ``[chosen]``, which samples to keep, on the CPU.

    Example:
        >>> choose((torch.arange(5) * 10, ["a", "b", "c", "d", "e"]), torch.tensor([4, 0]))
        (tensor([40,  0]), ['e', 'a'])
    """
    if _is_of_rows(batch):
        return type(batch)(batch[i] for i in samples.tolist())
    return _choose(batch, samples, count(batch))


_NOTHING = "no tensor with a dimension, and no list of samples"


def _is_of_rows(batch: Any) -> bool:
    """Whether a batch is a list with a dictionary for each sample, with a text or messages in each."""
    if not isinstance(batch, list | tuple) or hasattr(batch, "_fields") or not batch:
        return False
    return all(isinstance(row, Mapping) and any(map(_is_text, row.values())) for row in batch)


def _is_text(value: Any) -> bool:
    messages = isinstance(value, list | tuple) and bool(value) and all(isinstance(each, Mapping) for each in value)
    return isinstance(value, str) or messages


def _sizes(batch: Any) -> list[int]:
    if isinstance(batch, Tensor):
        return [len(batch)] if batch.dim() else []
    if isinstance(batch, Mapping):
        batch = batch.values()
    elif not isinstance(batch, list | tuple):
        return []
    return [size for part in batch for size in _sizes(part)]


def _choose(batch: Any, samples: Tensor, size: int) -> Any:
    if isinstance(batch, Tensor):
        return batch.index_select(0, samples.to(batch.device)) if batch.dim() else batch
    named = hasattr(batch, "_fields")
    if isinstance(batch, list | tuple) and len(batch) == size and not named and not _sizes(batch):
        return type(batch)(batch[i] for i in samples.tolist())
    return _rebuild(batch, lambda part: _choose(part, samples, size))


def _rebuild(batch: Any, convert: Callable[[Any], Any]) -> Any:
    """The same kind of container with converted parts; anything else as it is."""
    if isinstance(batch, Mapping):
        converted = {key: convert(value) for key, value in batch.items()}
        try:
            rebuilt = copy.copy(batch)  # keeps what else it holds, for example a BatchEncoding's encodings
            for key, value in converted.items():
                rebuilt[key] = value  # type: ignore[index]  # one by one: transformers' outputs refuse `update`
        except Exception:  # it can't be written to
            return type(batch)(converted)  # type: ignore[call-arg]
        return rebuilt
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(convert, batch))
    if isinstance(batch, list | tuple):
        return type(batch)(map(convert, batch))
    return batch


def samples_of(batch: Any) -> int:
    """Number of samples as a :class:`Repeat` sees it; 0 if it sees none.

    It is the size of dimension 0 that most tensors and arrays have, the first one's if that is a tie; without tensors
    the length of the first list that has an entry for each sample. In a list with one dictionary for each sample, or
    with tensors of different lengths, entries are samples, too.

    Example:
        >>> samples_of({"tokens": torch.zeros(8, 3), "causal": torch.ones(3, 3)}), samples_of({"prompt": ["a", "b"]})
        (8, 2)
        >>> samples_of([torch.zeros(5), torch.zeros(3), torch.zeros(4), torch.zeros(9)])
        4
    """
    sizes = Counter(_lengths(batch, of_lists=False))
    return max(sizes, key=sizes.__getitem__) if sizes else next(_lengths(batch, of_lists=True), 0)


def _lengths(batch: Any, of_lists: bool) -> Iterator[int]:
    fields = _fields_of(batch)
    if isinstance(batch, Tensor | numpy.ndarray):
        if batch.ndim:
            yield len(batch)
    elif isinstance(batch, list | tuple) and _is_of_samples(batch):
        if of_lists or _is_array(batch[0]):
            yield len(batch)
    elif fields is not None:
        for part in fields:
            yield from _lengths(part, of_lists)


def _fields_of(batch: Any) -> list[Any] | None:
    """The parts of a batch that may have one entry for each sample; ``None`` for what has no parts."""
    if isinstance(batch, Mapping):
        return list(batch.values())
    if isinstance(batch, list | tuple):
        return list(batch)
    if _is_dataclass(batch):
        return [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    return None


def _is_dataclass(batch: Any) -> bool:
    return dataclasses.is_dataclass(batch) and not isinstance(batch, type)


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | numpy.ndarray)


def _is_of_samples(batch: list[Any] | tuple[Any, ...]) -> bool:
    """Whether a list has an entry for each sample: dictionaries, texts, numbers, or what is of different lengths."""
    if not batch or hasattr(batch, "_fields"):
        return False
    if all(map(_is_array, batch)):
        kinds = {(str(each.dtype), each.shape[1:]) for each in batch}
        return len(kinds) == 1 and batch[0].ndim > 0 and len(set(map(len, batch))) > 1
    if all(isinstance(each, list | tuple) and not hasattr(each, "_fields") for each in batch):
        inner = [part for each in batch for part in each]
        ragged = len(set(map(len, batch))) > 1
        return not any(map(_is_array, inner)) and (ragged or all(isinstance(x, int | float | Mapping) for x in inner))
    return all(isinstance(each, Mapping) for each in batch) or not any(
        _is_array(each) or isinstance(each, Mapping | list | tuple) for each in batch
    )


class Repeat:
    """Repeats the samples of batches, all of them and then all again, as rows of that many members.

    Tensors, arrays, lists and tuples with one entry per sample (:func:`samples_of`) are repeated; all else stays. Which
    ones these are is seen in the first batch, since something else may be as long as a later one: the last is shorter.

    Example:
        >>> repeat = Repeat()
        >>> repeat({"x": torch.tensor([1, 2]), "text": ["a", "b"], "scale": torch.ones(1)}, 2)
        {'x': tensor([1, 2, 1, 2]), 'text': ['a', 'b', 'a', 'b'], 'scale': tensor([1.])}
        >>> repeat({"x": torch.tensor([3]), "text": ["c"], "scale": torch.ones(1)}, 2)
        {'x': tensor([3, 3]), 'text': ['c', 'c'], 'scale': tensor([1.])}
    """

    def __init__(self) -> None:
        self._paths: set[_Path] | None = None

    def samples(self, batch: Any) -> int:
        """How many a batch has; 0 if none are seen."""
        if self._paths is None:
            return samples_of(batch)
        return next(iter(self._lengths(batch)), 0)

    def __call__(self, batch: Any, times: int) -> Any:
        """The batch with its samples ``times`` times.

        Args:
            batch: Tensors and other values in any nesting of mappings, dataclasses, lists, tuples and named tuples.
            times: How often each sample is wanted.

        Raises:
            Refusal: If the entries that had one value per sample in the first batch are of different lengths now.
        """
        if self._paths is None:
            size, paths = samples_of(batch), set[_Path]()

            def first(path: _Path, part: Any) -> bool:
                if len(part) != size or not _may_be_samples(part, size):
                    return False
                paths.add(path)
                return True

            repeated = _repeat(batch, times, first)
            self._paths = paths
            return repeated
        if len(self._lengths(batch)) > 1:
            raise Refusal("the batch's entries that had one value per sample in the first batch differ in length now")
        return _repeat(batch, times, self._knows)

    def _knows(self, path: _Path, part: Any) -> bool:
        return path in (self._paths or ())

    def _lengths(self, batch: Any) -> set[int]:
        found = set[int]()

        def note(path: _Path, part: Any) -> bool:
            if self._knows(path, part):
                found.add(len(part))
                return True
            return False

        _repeat(batch, 1, note)
        return found


_Path: TypeAlias = "tuple[Any, ...]"


def _may_be_samples(part: Any, size: int) -> bool:
    """Whether a tensor, array, list or tuple of the right length has an entry for each sample, not a field."""
    if _is_array(part) or _is_of_samples(part):
        return True
    fields = any(_is_array(each) or isinstance(each, list | tuple) for each in part) and any(
        hasattr(each, "__len__") and not isinstance(each, str) and len(each) == size for each in part
    )
    return not fields


def _repeat(batch: Any, times: int, has_samples: Callable[[_Path, Any], bool], path: _Path = ()) -> Any:
    sized = batch.ndim > 0 if _is_array(batch) else isinstance(batch, list | tuple) and not hasattr(batch, "_fields")
    if sized and has_samples(path, batch):
        if isinstance(batch, Tensor):
            rows = torch.cat([batch] * times)
            set_place(rows, -rows.dim())
            return rows
        if isinstance(batch, numpy.ndarray):
            return numpy.concatenate([batch] * times)
        return type(batch)(_own(each) for _ in range(times) for each in batch)
    if _is_dataclass(batch) and not isinstance(batch, Mapping):
        repeated = copy.copy(batch)
        for field in dataclasses.fields(batch):
            part = _repeat(getattr(batch, field.name), times, has_samples, (*path, field.name))
            object.__setattr__(repeated, field.name, part)
        return repeated
    keys = iter(batch if isinstance(batch, Mapping) else itertools.count())
    return _rebuild(batch, lambda part: _repeat(part, times, has_samples, (*path, next(keys))))


def _own(part: Any) -> Any:
    """Lists and dictionaries of one's own, with the same tensors and objects."""
    return _rebuild(part, _own)


class SharedBatch:
    """One batch for all members, whatever they do to it.

    Each member gets lists and dictionaries of its own. Tensors, arrays and objects (a dataclass, a graph of
    torch_geometric) are the same for all, and hold what they held at first.

    Example:
        >>> batch = SharedBatch({"x": torch.ones(2)})
        >>> batch.for_member().pop("x").mul_(3)
        tensor([3., 3.])
        >>> batch.for_member()
        {'x': tensor([1., 1.])}
    """

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        held = reach({"the batch": batch}, code=False)
        self._contents = Contents(found.value for found in held if isinstance(found.value, Tensor))
        self._objects = [take(found.value) for found in held if not isinstance(found.value, Tensor)]

    def for_member(self) -> Any:
        """The batch as it was."""
        self.restore()
        return _own(self._batch)

    def take_back(self) -> None:
        """Have objects hold what they held, so that nothing that a member put there outlives its forward."""
        for each in self._objects:
            each.restore()

    def restore(self) -> None:
        """Undo what the last member wrote."""
        self.take_back()
        self._contents.restore()


def random_samples(total: int, wanted: int, uniform: Tensor) -> Tensor:
    """``wanted`` of ``total`` samples, uniformly without replacement, in ascending order.

    Args:
        total: Number of samples.
        wanted: How many to choose, at most ``total``.
        uniform: Independent uniform values ``[total]``; the largest win.
    """
    return torch.sort(uniform.argsort(descending=True, stable=True)[:wanted]).values
