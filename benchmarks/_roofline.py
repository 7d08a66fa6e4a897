"""What a GPU can reach at most, on paper: the operations and bytes of what a generation does.

Each thing is counted as :class:`Work`, and takes no less time than the slowest of its parts. Counted is what the
definitions of noise and of updates ask for (``lightning_evo/kernels``), each tensor read and written once, in bfloat16.
Not counted are loads of coefficients, addresses, and the time to start a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

__all__ = [
    "GPUS",
    "SHAPES",
    "Gpu",
    "Shape",
    "Work",
    "dense",
    "draw",
    "forward",
    "gpu_named",
    "member",
    "rank_one",
    "share_of_forward",
    "table",
    "update",
    "value",
]

ROUNDS = 10  # of Philox4x32
PER_ROUND = 2 + 2 + 2 + 2  # low words of two products, high words, xor of three, and the next round's key
BLOCK = ROUNDS * PER_ROUND  # integer operations for four words
VALUES = {"gaussian": 8, "rademacher": 128, "uniform16": 8}  # of a block
MAP = {  # of a value, after its word: integer operations and conversions, operations of floats
    "gaussian": (9, 6),  # half a word, sign, slice, place from the tail, as float, segment (2), mantissa, sign; cubic
    "rademacher": (2, 0),  # bit, sign of one
    "uniform16": (1, 0),  # half a word
}
ROUND = 6  # integer operations that round a float to bfloat16, to nearest or with a random number; NaN is kept
BYTES = 2  # of a weight in bfloat16


@dataclass(frozen=True)
class Work:
    """What something asks of a GPU.

    Attributes:
        integer: Integer operations and conversions of 32 bits.
        floating: Operations of floats of 32 bits; multiplications and additions apart, as bits must not depend on
            whether they are fused.
        moved: Bytes that are read or written.
        products: Multiplications and additions of matrix products in bfloat16.
    """

    integer: float = 0.0
    floating: float = 0.0
    moved: float = 0.0
    products: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Work:
        return Work(*(times * each for each in astuple(self)))

    __rmul__ = __mul__


@dataclass(frozen=True)
class Gpu:
    """What a GPU can do in a second, by its data sheet.

    Attributes:
        name: For people; part of the name that CUDA gives.
        multiprocessors: Each does 64 integer operations in a cycle, and starts 128 of any kind.
        clock: Cycles in a second.
        bandwidth: Bytes in a second, to and from its memory.
        products: Multiplications and additions of dense matrix products in bfloat16.
    """

    name: str
    multiprocessors: int
    clock: float
    bandwidth: float
    products: float

    def seconds(self, work: Work) -> float:
        """The least time: everything at once, and each unit always busy."""
        cycles = self.multiprocessors * self.clock
        return max(
            work.integer / (64 * cycles),
            (work.integer + work.floating) / (128 * cycles),
            work.moved / self.bandwidth,
            work.products / self.products,
        )


# The products' rate is 4,096 in a cycle of a multiprocessor, at this clock.
GPUS = (
    Gpu("H100", 132, 1.83e9, 3.35e12, 989e12),
    Gpu("H200", 132, 1.83e9, 4.8e12, 989e12),
)


def gpu_named(name: str) -> Gpu | None:
    """The GPU whose name is part of what CUDA calls it (the SXM modules); ``None`` for others."""
    return next((gpu for gpu in GPUS if gpu.name in name), None)


# --- noise and weights ---


def value(distribution: str = "gaussian") -> Work:
    """One random value, in a register."""
    integer, floating = MAP[distribution]
    return Work(BLOCK / VALUES[distribution] + integer, floating)


def draw(distribution: str = "gaussian") -> Work:
    """One value, written in float32."""
    return value(distribution) + Work(moved=4)


def member(signs: int = 2) -> Work:
    """A weight of one member: ``center + sigma eps``, where ``signs`` members (a pair, or one) share the noise."""
    own = Work(integer=ROUND, floating=2, moved=BYTES)
    return own + (value() + Work(integer=1, moved=BYTES)) * (1 / signs)  # the center is read, and widened


def update(directions: int) -> Work:
    """The move of a weight along a sum of directions, rounded stochastically, and its part in the norm."""
    summed = (value() + Work(floating=2)) * directions
    return summed + value("uniform16") + Work(integer=1 + ROUND, floating=4, moved=2 * BYTES)


# --- models ---


@dataclass(frozen=True)
class Shape:
    """A Qwen3.

    Attributes:
        layers: How many.
        width: Of the hidden state.
        heads: Of attention.
        key_value_heads: Of keys and values.
        feed_forward: Width of the feed-forward part.
        head_size: Width of one head.
        tied: Whether the embedding is the output layer, as in the small published ones.
        vocabulary: Tokens.
    """

    layers: int
    width: int
    heads: int
    key_value_heads: int
    feed_forward: int
    head_size: int = 128
    tied: bool = False
    vocabulary: int = 151_936

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Inputs and outputs of all linear layers, with the output layer."""
        query, key = self.heads * self.head_size, self.key_value_heads * self.head_size
        width, wide = self.width, self.feed_forward
        layer = [
            (width, query),
            (width, key),
            (width, key),
            (query, width),
            (width, wide),
            (width, wide),
            (wide, width),
        ]
        return layer * self.layers + [(width, self.vocabulary)]

    @property
    def multiplied(self) -> int:
        """Weights that a token is multiplied by."""
        return sum(inputs * outputs for inputs, outputs in self.matrices)

    @property
    def weights(self) -> int:
        """All weights."""
        norms = self.layers * 2 * (self.width + self.head_size) + self.width
        return self.multiplied + norms + (0 if self.tied else self.vocabulary * self.width)


SHAPES = {
    "0.5B": Shape(24, 1024, 8, 4, 4096, tied=True),
    "1.7B": Shape(28, 2048, 16, 8, 6144, tied=True),
    "8B": Shape(36, 4096, 32, 8, 12_288),
    "32B": Shape(64, 5120, 64, 8, 25_600),
}


def forward(shape: Shape, tokens: int) -> Work:
    """A forward pass, of which only the matrix products count, and the weights that are read."""
    return Work(moved=BYTES * shape.multiplied, products=2 * shape.multiplied * tokens)


def dense(shape: Shape, signs: int = 2) -> Work:
    """What a dense member asks for beyond a forward: its weights. (Of a separate embedding only rows are made.)"""
    return member(signs) * shape.multiplied


def rank_one(shape: Shape, tokens: int) -> Work:
    """What a member of rank 1 asks for beyond a forward: ``x B`` reads each layer's input, ``(x B) A^T`` is written.

    The product with the center adds to what was written, and reads it while it multiplies. What the GPU's cache still
    holds is not read from memory: with few tokens that is nearly all, and this is more than needed.
    """
    return Work(moved=BYTES * tokens * sum(map(sum, shape.matrices)))


def share_of_forward(gpu: Gpu, shape: Shape, tokens: int, extra: Work, *, seconds: float | None = None) -> float:
    """How fast members can be evaluated, of as many plain forward passes, one after the other.

    Args:
        gpu: Where.
        shape: Of the model.
        tokens: Of each member.
        extra: What a member asks for beyond the forward.
        seconds: That the forward takes, if it was measured; else the least that it can.
    """
    plain = gpu.seconds(forward(shape, tokens)) if seconds is None else seconds
    return plain / (plain + gpu.seconds(extra))


# --- the table of docs/benchmarks.md ---


def table() -> list[tuple[str, ...]]:
    """Rows of what each GPU can reach: a name, and a figure for each of :data:`GPUS`."""
    rows: list[tuple[str, ...]] = [("", *(gpu.name for gpu in GPUS))]

    def row(name: str, figures: Sequence[str]) -> None:
        rows.append((name, *figures))

    def rates(name: str, work: Work) -> None:
        row(name, [f"{1e-9 / gpu.seconds(work):,.0f}" for gpu in GPUS])

    rates("normal values in registers, 10^9/s", value())
    rates("normal values written in float32, 10^9/s", draw())
    rates("weights of a pair's members, 10^9/s", member())
    rates("weights moved along 1 direction, 10^9/s", update(1))
    rates("weights moved along 8 directions, 10^9/s", update(8))
    for size in ("0.5B", "1.7B", "8B"):
        for tokens in (512, 2048):
            shape = SHAPES[size]
            title = f"{size}, {tokens:,} tokens"
            for kind, extra in (("dense pair", dense(shape)), ("rank 1", rank_one(shape, tokens))):
                shares = [share_of_forward(gpu, shape, tokens, extra) for gpu in GPUS]
                row(f"{title}: {kind}, of a plain forward", [f"{share:.2f}" for share in shares])
    return rows
