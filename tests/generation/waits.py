"""Counts what would wait for a device, on a CPU, where nothing does.

A tensor is taken to lie on the device if it was said to (weights, a batch), was made by ``device=…`` or of such
tensors; it leaves by ``cpu``, ``tolist``, ``item``, ``numpy``, and by what turns it into a Python number. A copy that
needs a number of Python's on a device waits, too. Each is noted with the function of this package that asked for it.
"""

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lightning_evo

PACKAGE = Path(lightning_evo.__file__).parent
FACTORIES = ("empty", "zeros", "ones", "full", "arange", "rand", "randn")
WAITING = ("_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "allclose")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")


class Waits(TorchDispatchMode):
    """While it is active, waits are counted.

    Args:
        tensors: On the device.

    Attributes:
        found: ``(what waits, the function that asks for it)``, in order.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self._storages = {}
        for tensor in tensors:
            self._put(tensor)

    def _put(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._storages[storage.data_ptr()] = storage  # held, so that no other tensor gets its address

    def _is_there(self, value: object) -> bool:
        if not isinstance(value, Tensor) or torch._C._functorch.is_functorch_wrapped_tensor(value):
            return False
        return value.numel() > 0 and value.untyped_storage().data_ptr() in self._storages

    def note(self, what: str) -> None:
        """Note a wait."""
        frame = sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE):
                where = path.relative_to(PACKAGE).with_suffix("").as_posix()
                self.found.append((what, f"{where}.{frame.f_code.co_name}"))
                return
            frame = frame.f_back

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = any(map(self._is_there, given))
        name = func.overloadpacket.__name__
        if there and name in WAITING:
            self.note(name)
        if there and name in INDEXING and any(each.dtype in (torch.bool, torch.uint8) for each in given[1:]):
            self.note("a mask as index")
        result = func(*args, **kwargs)
        if there:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and leaf.numel():
                    self._put(leaf)
        return result

    def __enter__(self):
        self._patches = ExitStack()
        for name in ("cpu", "tolist", "numpy"):
            self._patches.enter_context(mock.patch.object(Tensor, name, self._leaving(name, getattr(Tensor, name))))
        for name in FACTORIES:
            self._patches.enter_context(mock.patch.object(torch, name, self._making(getattr(torch, name))))
        given, new = torch.tensor, Tensor.new_tensor

        def tensor(*args, **kwargs):
            if kwargs.get("device") not in (None, "cpu"):
                self.note("torch.tensor")
            return given(*args, **kwargs)

        def new_tensor(own, *args, **kwargs):
            if self._is_there(own):
                self.note("new_tensor")
            return new(own, *args, **kwargs)

        self._patches.enter_context(mock.patch.object(torch, "tensor", tensor))
        self._patches.enter_context(mock.patch.object(Tensor, "new_tensor", new_tensor))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._patches.close()

    def _making(self, function):
        def make(*args, **kwargs):
            made = function(*args, **kwargs)
            if kwargs.get("device") not in (None, "cpu") and made.numel():
                self._put(made)
            return made

        return make

    def _leaving(self, name, method):
        def leave(tensor, *args, **kwargs):
            if not self._is_there(tensor):
                return method(tensor, *args, **kwargs)
            self.note(name)
            copy = tensor.detach().clone()
            self._storages.pop(copy.untyped_storage().data_ptr(), None)
            return method(copy, *args, **kwargs)

        return leave
