"""Every way in which code may read its weights, and every kind of noise: a new one is one line."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from lightning_evo.algorithms import EvolutionStrategy, Population
from lightning_evo.evaluation.job import Job, Way
from lightning_evo.evaluation.ways.plain import Plain
from lightning_evo.generation.laying import laid_over
from lightning_evo.isolation import Isolation
from lightning_evo.spaces.search_space import SearchSpace

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A module, and what its fitness is.

    Attributes:
        make: The module, in float32.
        run: Gives a tensor whose weighted mean is the fitness.
        exact: Whether a member without low-rank noise gives the same bits in the forward as in the weights.
        batched: Whether ``vmap`` must be able to do it. Where it need not be, it may raise, but not be wrong.
        dtype: Of the module and its inputs.
        autocast: Whether it runs under autocast to bfloat16.
    """

    make: Callable[[], nn.Module]
    run: Callable[[nn.Module], Tensor]
    exact: bool = True
    batched: bool = True
    dtype: torch.dtype = torch.float32
    autocast: bool = False
    evolve: Any = None

    def module(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make().to(self.dtype)

    def fitness(self, module: nn.Module) -> Callable[[], Tensor]:
        def fitness() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                output = self.run(module)
            weights = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).cos().view(output.shape)
            return (output.double() * weights).mean() if output.numel() else output.double().sum()

        return fitness


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


WITH_GRADIENT = x(3, 6).requires_grad_()


def ids(*shape: int, entries: int = 10) -> Tensor:
    return torch.randint(entries, shape, generator=torch.Generator().manual_seed(2))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 2, bias=False))


def cnn(dropout: float = 0.3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout),
        nn.Conv2d(8, 6, 3, padding="same", dilation=2, bias=False), nn.BatchNorm2d(6), nn.Dropout2d(dropout),
        nn.Flatten(), nn.Linear(54, 5),
    )  # fmt: skip


def of(*shape: int) -> Callable[[nn.Module], Tensor]:
    """The module's output for inputs of a shape."""
    return lambda module: module(x(*shape).to(next(module.parameters()).dtype))


class Weights(nn.Module):
    """Bare parameters a to d, read by functions."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))


def weights(**shapes: tuple[int, ...]) -> Callable[[], nn.Module]:
    return lambda: Weights(**shapes)


def gpt2() -> nn.Module:
    transformers = __import__("transformers")
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=16, vocab_size=24, n_positions=12, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def tied() -> nn.Module:
    module = nn.ModuleDict({"embedding": nn.Embedding(10, 6), "head": nn.Linear(6, 10, bias=False)})
    module["head"].weight = module["embedding"].weight
    return module


def sharing_memory() -> nn.Module:
    module = nn.ModuleDict({"a": nn.Linear(6, 6, bias=False), "b": nn.Linear(6, 6, bias=False)})
    module["b"].weight = nn.Parameter(module["a"].weight.data)
    return module


def frozen() -> nn.Module:
    module = mlp()
    module[0].requires_grad_(False)
    module[2].bias.requires_grad_(False)
    return module


def checkpointed(reentrant: bool) -> Callable[[nn.Module], Tensor]:
    return lambda m: m[2:](checkpoint(m[:2], WITH_GRADIENT if reentrant else x(3, 6), use_reentrant=reentrant))


MODELS: dict[str, Case] = {
    # --- dtypes and modes ---
    "mlp": Case(mlp, of(4, 6)),
    "mlp_float64": Case(mlp, of(4, 6), dtype=torch.float64),
    "mlp_bfloat16": Case(mlp, of(4, 6), dtype=torch.bfloat16),
    "mlp_autocast": Case(mlp, of(4, 6), autocast=True),
    "cnn": Case(cnn, of(4, 3, 6, 6)),
    "cnn_eval": Case(lambda: cnn().eval(), of(4, 3, 6, 6)),
    "cnn_bfloat16": Case(cnn, of(4, 3, 6, 6), dtype=torch.bfloat16),
    "cnn_autocast": Case(cnn, of(4, 3, 6, 6), autocast=True),
    "cnn_channels_last": Case(lambda: cnn(0.0).to(memory_format=torch.channels_last), of(4, 3, 6, 6), exact=False),
    # --- linear layers ---
    "linear_of_a_vector": Case(mlp, of(6)),
    "linear_of_four_dimensions": Case(mlp, of(2, 3, 2, 6)),
    "linear_of_no_samples": Case(mlp, lambda m: torch.cat([m(x(0, 6)), m(x(3, 6))])),
    "linear_with_keywords": Case(mlp, lambda m: F.linear(input=x(3, 6), weight=m[0].weight, bias=m[0].bias)),
    "linear_without_evolving_bias": Case(frozen, of(4, 6)),
    "only_biases": Case(mlp, of(4, 6), evolve="bias"),
    "only_one_weight": Case(mlp, of(4, 6), evolve="2.weight"),
    "linear_of_a_parameter": Case(weights(a=(6, 7), b=(5, 7), c=(5,)), lambda m: F.linear(m.a, m.b, m.c)),
    "linear_with_a_computed_bias": Case(mlp, lambda m: F.linear(x(3, 6), m[0].weight, m[0].bias * 2)),
    "bilinear": Case(lambda: nn.Bilinear(4, 5, 3), lambda m: m(x(6, 4), x(6, 5))),
    # --- convolutions ---
    "conv1d": Case(lambda: nn.Conv1d(3, 8, 3, padding=1), of(2, 3, 7)),
    "conv_of_one_output_and_many_taps": Case(lambda: nn.Conv1d(17, 1, 18), of(2, 17, 20)),
    "conv_of_a_point_channels_last": Case(
        lambda: nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU()).to(memory_format=torch.channels_last),
        lambda m: m(x(4, 8, 5, 5).to(memory_format=torch.channels_last)),
    ),
    "conv3d": Case(lambda: nn.Conv3d(3, 6, 2), of(2, 3, 4, 4, 4)),
    "conv_grouped": Case(lambda: nn.Conv2d(4, 8, 3, groups=2), of(2, 4, 5, 5)),
    "conv_depthwise": Case(lambda: nn.Conv2d(6, 12, 3, groups=6), of(2, 6, 5, 5)),
    "conv_transposed": Case(lambda: nn.ConvTranspose2d(6, 7, 3, stride=2), of(2, 6, 4, 4)),
    "conv_circular": Case(lambda: nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular"), of(2, 3, 5, 5)),
    "conv_of_one_sample": Case(lambda: nn.Conv2d(3, 6, 3), of(3, 5, 5)),
    "conv_of_no_samples": Case(
        lambda: nn.Conv2d(3, 6, 3), lambda m: torch.cat([m(x(0, 3, 5, 5)), m(x(2, 3, 5, 5))])
    ),
    # --- recurrence and attention ---
    "lstm": Case(lambda: nn.LSTM(5, 6, num_layers=2, batch_first=True), lambda m: m(x(3, 4, 5))[0], batched=False),
    "lstm_both_ways": Case(lambda: nn.LSTM(5, 6, bidirectional=True), lambda m: m(x(4, 3, 5))[0], batched=False),
    "gru": Case(lambda: nn.GRU(5, 6), lambda m: m(x(4, 3, 5))[0], batched=False),
    "lstm_cell": Case(lambda: nn.LSTMCell(5, 6), lambda m: m(x(3, 5), m(x(3, 5)))[1], batched=False),
    "attention": Case(lambda: nn.MultiheadAttention(8, 2, dropout=0.2), lambda m: m(*[x(4, 3, 8)] * 3)[0]),
    "attention_eval": Case(
        lambda: nn.MultiheadAttention(8, 2, batch_first=True).eval(), lambda m: m(*[x(4, 3, 8)] * 3)[0], exact=False
    ),
    "attention_of_two_widths": Case(
        lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=5), lambda m: m(x(4, 3, 8), x(4, 3, 6), x(4, 3, 5))[0]
    ),
    "transformer": Case(lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), of(3, 4, 8), exact=False),
    "transformer_eval": Case(  # `plain` takes PyTorch's fused kernel for inference, which is not there for members
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), of(3, 4, 8), exact=False
    ),
    "gpt2": Case(gpt2, lambda m: m(ids(2, 9, entries=24)).logits),
    # --- embeddings ---
    "tied": Case(tied, lambda m: m["head"](m["embedding"](ids(3, 4)).tanh())),
    "embedding": Case(lambda: nn.Embedding(10, 6), lambda m: m(ids(3, 4))),
    "embedding_with_padding": Case(lambda: nn.Embedding(10, 6, padding_idx=3), lambda m: m(torch.arange(10))),
    "embedding_with_padding_at_the_end": Case(lambda: nn.Embedding(10, 6, padding_idx=-1), lambda m: m(ids(3, 4))),
    "embedding_bag": Case(lambda: nn.EmbeddingBag(10, 6), lambda m: m(ids(3, 4))),
    # --- normalization and parametrizations ---
    "layer_norm": Case(lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8)), of(3, 6)),
    "layer_norm_of_the_weights_shape": Case(  # a torch.Size beside weights
        lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8)),
        lambda m: F.layer_norm(m[0](x(3, 6)), m[1].weight.shape, m[1].weight, m[1].bias),
    ),
    "weights_by_sizes": Case(
        lambda: nn.Linear(6, 8),
        lambda m: x(3, 8) @ m.weight.view(torch.Size([8, 6])) + m.bias[:6].expand(torch.Size([3, 6])),
    ),
    "group_norm": Case(lambda: nn.Sequential(nn.Conv1d(3, 6, 2), nn.GroupNorm(2, 6)), of(3, 3, 5)),
    "instance_norm": Case(
        lambda: nn.Sequential(nn.Conv1d(3, 6, 2), nn.InstanceNorm1d(6, affine=True, track_running_stats=True)),
        of(3, 3, 5),
    ),
    "batch_norm": Case(lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=None)), of(5, 6)),
    "weight_norm": Case(lambda: parametrizations.weight_norm(nn.Linear(6, 8)), of(3, 6)),
    "spectral_norm_eval": Case(lambda: parametrizations.spectral_norm(nn.Linear(6, 8)).eval(), of(3, 6)),
    "spectral_norm": Case(lambda: parametrizations.spectral_norm(nn.Linear(6, 8)), of(3, 6), batched=False),
    "orthogonal": Case(lambda: parametrizations.orthogonal(nn.Linear(6, 6), orthogonal_map="cayley"), of(3, 6)),
    "prelu": Case(lambda: nn.Sequential(nn.Linear(6, 8), nn.PReLU(8)), of(3, 6)),
    # --- parameters in functions of the user's ---
    "weights_of_another_module": Case(mlp, lambda m: F.linear(m(x(3, 6)), m[4].weight.t())),
    "matrix_products": Case(
        weights(a=(6, 7), b=(7, 6), c=(2, 6, 7)),
        lambda m: x(3, 6) @ m.a @ m.b + torch.mm(m.a, m.b)[:3] + torch.matmul(m.c, m.b)[0, :3] + x(3, 7).mm(m.b),
    ),
    "matrix_product_from_the_left": Case(weights(a=(6, 7)), lambda m: m.a @ x(7, 3) + torch.mv(m.a, x(7))[:, None]),
    "vector_times_matrix": Case(weights(a=(6, 7)), lambda m: x(6) @ m.a),
    "addmm": Case(weights(a=(6, 7), b=(7,)), lambda m: torch.addmm(m.b, x(3, 6), m.a)),
    "addmm_with_factors": Case(weights(a=(6, 7), b=(7,)), lambda m: torch.addmm(m.b, x(3, 6), m.a, alpha=2, beta=3)),
    "lists": Case(
        weights(a=(6, 7), b=(6, 7)),
        lambda m: torch.cat([torch.stack([m.a, m.b]), torch.cat((m.b, m.a)).view(2, 6, 7)], dim=1),
    ),
    "einsum_and_bmm": Case(
        weights(a=(6, 7), c=(2, 6, 7)), lambda m: torch.einsum("ij,kil->kjl", m.a, m.c) + torch.bmm(m.c.mT, m.c)
    ),
    "views": Case(
        weights(a=(6, 7)),
        lambda m: torch.cat([m.a.t().flatten(), m.a[:3].flatten(), m.a.view(-1), m.a.T[0], next(iter(m.a)), -m.a[-1]]),
    ),
    "detach_and_clone": Case(weights(a=(6, 7)), lambda m: m.a.detach() @ m.a.detach().T + m.a.clone().mul_(2).sum()),
    "data": Case(weights(a=(6, 7)), lambda m: m.a.data @ m.a.data.T, batched=False),
    "arithmetic": Case(weights(a=(6, 7), b=(7,)), lambda m: (m.a * 2 + m.b - 1 / (m.b**2 + 1)).exp().softmax(1)),
    "vector_of_parameters": Case(mlp, lambda m: nn.utils.parameters_to_vector(m.parameters())),
    "functional_call": Case(mlp, lambda m: torch.func.functional_call(m, {"2.bias": m[0].bias[1:]}, x(3, 6))),
    "sharing_memory": Case(sharing_memory, lambda m: m["b"](m["a"](x(3, 6)).tanh())),
    "checkpointed": Case(mlp, checkpointed(False)),
    "checkpointed_reentrant": Case(mlp, checkpointed(True), batched=False),
    "experts": Case(
        weights(a=(3, 16, 18)), lambda m: torch.stack([F.linear(x(4, 18), m.a[e]) for e in range(3)]) + m.a[:, :, :4].mT
    ),
    # --- what vmap can't do ---
    "data_dependent": Case(mlp, lambda m: m(x(3, 6)) * (2 if m(x(6)).sum() > 0 else 3), batched=False),
    "item": Case(mlp, lambda m: m(x(3, 6)) * m[0].weight.mean().item(), batched=False),
    "numpy": Case(mlp, lambda m: m(x(3, 6)) * float(m[0].weight.numpy().mean()), batched=False),
    "shared_tensor": Case(mlp, lambda m: torch.zeros(3, 2).add_(m(x(3, 6))), batched=False),
    "transform": Case(mlp, lambda m: torch.func.vmap(m)(x(3, 6)), batched=False),
}  # fmt: skip

NOISE: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "gaussian_without_pairs": {"antithetic": False},
    "rademacher": {"noise": "rademacher"},
    "uniform_without_pairs": {"noise": "uniform", "antithetic": False},
    "rank_1": {"rank": 1},
    "rank_4_without_pairs": {"rank": 4, "antithetic": False},
    "rank_2_scaled": {"rank": 2, "sigma_scale": "rms"},
    "sparse": {"sparsity": 0.5},
    "scaled_without_pairs": {"sigma_scale": "rms", "antithetic": False},
}

KINDS_OF_NOISE = ["gaussian", "rank_1", "sparse"]


def population(size: int = 6, **options: Any) -> Population:
    algorithm = EvolutionStrategy(**{"population": size, "sigma": 0.1, "learning_rate": 1.0, **options})
    return algorithm.ask(algorithm.init(seed=3))


def evaluate(
    way: Way | None,
    module: nn.Module,
    members: Population,
    fitness: Callable[[], Any],
    evolve: Any = None,
) -> list[Any]:
    """The fitness of every member, in one way; ``None`` for the plain loop."""
    space = SearchSpace(module, evolve)
    with Isolation(module, CPU) as isolation:
        job = Job(space, laid_over(members, space), fitness, isolation, range(len(members)))
        return (way or Plain()).run(job)


def direction(module: nn.Module, members: Population, fitness: Tensor, evolve: Any = None) -> Tensor:
    """The update that follows from a fitness: each direction's noise times how much better it is."""
    better = fitness.double().view(-1, members.per_direction)
    better = better[:, 0] - (better[:, 1] if members.per_direction == 2 else better.mean())
    space = SearchSpace(module, evolve)
    perturbation = laid_over(members, space).perturbation
    sums = (perturbation.weighted_sum(better.tolist(), p.index, p.tensor).double() for p in space)
    return torch.cat(list(sums))
