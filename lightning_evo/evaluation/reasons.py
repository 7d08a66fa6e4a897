"""Why a way of evaluating members is not used, in one plain sentence: where in the code, what it does, what to change.

PyTorch's own texts on ``vmap`` say what it lacks and ask for a report to PyTorch. Here they are told apart by words
that all versions have in common; what none of them fits keeps its own text, up to the end of a sentence.
"""

from __future__ import annotations

import linecache
import os
import re
import sysconfig
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch

from lightning_evo.utils.messages import first_sentence

__all__ = ["faster_plain", "reason_of"]


class _Cause(NamedTuple):
    """What members that share a forward can't do.

    Attributes:
        words: Of the exception: its type, then what it says. A regular expression; its group ``name`` may be used.
        does: What the code does, after the line that does it.
        remedy: What to change.
    """

    words: str
    does: str
    remedy: str


_CAUSES = (  # the first one that fits
    _Cause(
        r"TorchScript interpreter",
        "runs scripted code (torch.jit), which can't be run for several members at once",
        "call the Python function",
    ),
    _Cause(
        r"torch\._(dynamo|inductor)\.",
        "runs compiled code (torch.compile), which can't be compiled for several members at once",
        "call the function as it is in a fitness_step",
    ),
    _Cause(
        r"can't allocate memory|[Oo]ut of memory|OutOfMemoryError",
        "needs more memory for several members at once than there is",
        "give a smaller members_per_forward, or smaller batches",
    ),
    _Cause(
        r"randomness|random operation",
        "draws random numbers by members' own values, so that they would not be those of a member alone",
        "draw them by shapes (torch.rand_like, gumbel_softmax, rsample), then transform them",
    ),
    _Cause(
        r"calling \.item\(\)",
        "makes a Python number of a member's tensor (.item(), float(), int(), a format)",
        "keep it a tensor",
    ),
    _Cause(
        r"data-dependent control flow|allclose|aten::(equal|is_nonzero)\b",
        "decides by members' values (if, while, assert, in), which may differ from member to member",
        "choose with torch.where, or leave the decision out of fitness_step",
    ),
    _Cause(r"one_hot", "leaves it to the values how many classes one_hot has", "pass num_classes"),
    _Cause(
        r"dynamic shape|masked_select|stack expects each tensor to be equal size",
        "gives a tensor whose size depends on members' values (a mask as index, nonzero, unique)",
        "keep all elements and choose with torch.where, or multiply by the mask",
    ),
    _Cause(
        r"by `?\.data|`\.data`|accessing `data`",
        "sets .data of a tensor to a member's",
        "use the member's tensor itself",
    ),
    _Cause(
        r"more elements than `self`|doesn't match the broadcast shape",
        "writes members' values into a tensor that all members share",
        "make a new tensor (x = x + y, torch.stack), or have it made like a member's (torch.zeros_like(y))",
    ),
    _Cause(
        r"data pointer of Tensor|storage of BatchedTensor",
        "takes a member's tensor out of PyTorch (NumPy, tolist(), a copy by pickle, another library)",
        "compute it with PyTorch's functions",
    ),
    _Cause(
        r"for aten::\w+\.\w*out\b|out variants",
        "writes members' values into a tensor given as out=",
        "take what the function returns",
    ),
    _Cause(
        r"setup_context",
        "calls a torch.autograd.Function without setup_context",
        "define setup_context, and generate_vmap_rule = True",
    ),
    _Cause(
        r"vmap over (?P<name>\w+), but it does not have vmap support",
        "calls {name}, a torch.autograd.Function without a rule for several members",
        "set its generate_vmap_rule = True",
    ),
    _Cause(
        r"torch\.func transformations|functorch transform|functorch functions|enable_grad",
        "takes gradients or uses torch.func, which members that share a forward can't",
        "leave that out of fitness_step",
    ),
    _Cause(
        r"escaped from inside a function being vmapped",
        "uses a tensor that another member's forward left behind",
        "keep nothing that is computed from one forward to the next",
    ),
    _Cause(
        r"memory_format",
        "asks for a memory format (channels_last)",
        "leave memory formats to the input and the weights",
    ),
    _Cause(r"Sparse\w*' backend", "makes a sparse tensor of a member's", "keep it dense"),
    _Cause(
        r"aten::(?P<name>lstm|gru|rnn_tanh|rnn_relu)\b",
        "runs a recurrent layer ({name}), which PyTorch can't for several members at once",
        "write the recurrence out if that must be faster",
    ),
    _Cause(
        r"aten::_?(?P<name>nested\w*)",
        "makes a nested tensor of members' tensors",
        "pad them to one length",
    ),
    _Cause(
        r"(?:not implemented for|yet support|hit the vmap fallback|special handling).*?aten::(?P<name>\w+)"
        r"|aten::(?P<other>\w+).*?(?:hit the vmap fallback|special handling)",
        "calls {name}, which PyTorch can't run for several members at once",
        "write it with other functions",
    ),
)


def reason_of(error: BaseException) -> str:
    """Why a way can't be used, by the exception that it raised where the plain loop raises none.

    Args:
        error: The exception, with its traceback.

    Returns:
        A sentence without its full stop: the line of the members' code, what it does, and after a colon what to change.

    Example:
        >>> loss = torch.tensor([0.5, 0.25])
        >>> try:
        ...     _ = torch.func.vmap(lambda one: one * float(one))(loss)
        ... except RuntimeError as error:
        ...     print(reason_of(error).split("makes ")[1])
        a Python number of a member's tensor (.item(), float(), int(), a format): keep it a tensor
    """
    kind = type(error)
    said = f"{kind.__module__}.{kind.__qualname__}: {error}"
    where = _place(error.__traceback__)
    for cause in _CAUSES:
        found = re.search(cause.words, said, flags=re.DOTALL)
        if found:
            named = found.groupdict()
            does = cause.does.format(name=named.get("name") or named.get("other"))
            return f"{where or 'the code'} {does}: {cause.remedy}"
    return f"{f'{where} raises ' if where else ''}{kind.__name__}: {first_sentence(error) or 'without a message'}"


def faster_plain(name: str, seconds: float, plain: float) -> str:
    """Why the plain loop is used where another way works, too.

    Args:
        name: Of the other way.
        seconds: The least that it took for a member.
        plain: The least that the plain loop took.

    Example:
        >>> faster_plain("in_forward", 0.0019, 0.0012)
        'plain was faster than in_forward for the first members (1.2 against 1.9 ms each), with the same bits'
    """
    times = f"{_milliseconds(plain)} against {_milliseconds(seconds)} ms each"
    return f"plain was faster than {name} for the first members ({times}), with the same bits"


def _milliseconds(seconds: float) -> str:
    """With two digits, without an exponent."""
    return f"{float(f'{seconds * 1e3:.2g}'):,g}"


def _place(traceback: TracebackType | None) -> str:
    """The innermost line that is neither PyTorch's nor Python's nor ours; in a library also the user's line."""
    lines: list[tuple[str, int, str]] = []
    while traceback is not None:
        code, number = traceback.tb_frame.f_code, traceback.tb_lineno
        if not _is_machinery(code.co_filename):
            text = linecache.getline(code.co_filename, number, traceback.tb_frame.f_globals).strip()
            lines.append((code.co_filename, number, text))
        traceback = traceback.tb_next
    if not lines:
        return ""
    file, number, text = lines[-1]
    where = f"{_short(file)}:{number}"
    own = next(((f, n) for f, n, _ in reversed(lines) if not _is_library(f)), None)
    if own is not None and own != (file, number):
        where += f", called at {_short(own[0])}:{own[1]}"
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST].rstrip()}…"
    return f"`{shown}` ({where})" if shown else where


_LONGEST = 80  # characters of a line of code
_OURS = tuple(f"{Path(file).parents[up]}{os.sep}" for file, up in ((torch.__file__, 0), (__file__, 1)))
_PYTHONS = ("<frozen", *(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib")))
_PACKAGES = ("site-packages", "dist-packages")
_LIGHTNING = ("lightning", "lightning_fabric", "pytorch_lightning")


def _is_machinery(file: str) -> bool:
    """Whether a file is PyTorch's, ours, Lightning's or Python's own."""
    if file.startswith(_OURS):
        return True
    return _in_package(file)[0] in _LIGHTNING if _is_library(file) else file.startswith(_PYTHONS)


def _is_library(file: str) -> bool:
    """Whether a file is an installed package's."""
    return any(part in _PACKAGES for part in Path(file).parts)


def _in_package(file: str) -> tuple[str, ...]:
    """A file's path from the folder of installed packages on."""
    parts = Path(file).parts
    last = max(number for number, part in enumerate(parts) if part in _PACKAGES)
    return parts[last + 1 :]


def _short(file: str) -> str:
    """A file as one recognises it: from the current folder, or from the package, or its name."""
    if _is_library(file):
        return "/".join(_in_package(file))
    path = Path(file)
    try:
        return path.relative_to(Path.cwd()).as_posix()
    except (ValueError, OSError):
        return path.name
