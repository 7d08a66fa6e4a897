"""Small models of the kinds that members as rows must carry, with random weights."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from lightning_evo.algorithms import EvolutionStrategy
from lightning_evo.evaluation.batches import Repeat, SharedBatch
from lightning_evo.evaluation.check import judge
from lightning_evo.evaluation.fitness import Fitness, as_record, as_records, token_log_probability
from lightning_evo.evaluation.job import BatchOfRows, Job, Refusal
from lightning_evo.evaluation.ways.plain import Plain
from lightning_evo.evaluation.ways.rows import Rows
from lightning_evo.generation.laying import laid_over
from lightning_evo.isolation import Isolation
from lightning_evo.spaces.search_space import SearchSpace

VOCABULARY = 40
SIZES = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {
    **SIZES, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 96,
}  # fmt: skip


def made(kind, config, seed=0):
    torch.manual_seed(seed)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # so that tokens are chosen by more than rounding
    return model


def gpt2(**options):
    from transformers import GPT2Config, GPT2LMHeadModel

    return made(GPT2LMHeadModel, GPT2Config(**SIZES, n_embd=32, n_layer=2, n_head=4, n_positions=96, **options))


def llama(**options):
    from transformers import LlamaConfig, LlamaForCausalLM

    return made(LlamaForCausalLM, LlamaConfig(**{**DECODER, **options}))


def qwen3(**options):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return made(Qwen3ForCausalLM, Qwen3Config(**DECODER, head_dim=8, **options))


def opt(**options):
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return made(
        OPTForCausalLM, OPTConfig(**SIZES, **sizes, max_position_embeddings=96, word_embed_proj_dim=32, **options)
    )


def bert(**options):
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return made(BertForMaskedLM, BertConfig(**SIZES, **sizes, max_position_embeddings=96, **options))


def t5(**options):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4}
    vocabulary = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    return made(T5ForConditionalGeneration, T5Config(**vocabulary, **sizes, **options))


def gemma2(**options):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return made(Gemma2ForCausalLM, Gemma2Config(**DECODER, head_dim=8, sliding_window=4, **options))


def bloom(**options):
    from transformers import BloomConfig, BloomForCausalLM

    return made(BloomForCausalLM, BloomConfig(**SIZES, hidden_size=32, n_layer=2, n_head=4, **options))


def gpt_neox(**options):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {name: value for name, value in DECODER.items() if name != "num_key_value_heads"}
    return made(GPTNeoXForCausalLM, GPTNeoXConfig(**sizes, **options))


def mamba(**options):
    from transformers import MambaConfig, MambaForCausalLM

    return made(MambaForCausalLM, MambaConfig(**SIZES, hidden_size=32, num_hidden_layers=2, state_size=8, **options))


class Encoder(nn.Module):
    """Convolutions, a class token, positions, attention of its own, and a norm of channels."""

    def __init__(self, width=24):
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.patches = nn.Conv2d(16, width, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width))
        self.scale = nn.Parameter(torch.rand(width) + 0.5)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.classify = nn.Linear(width, 5)

    def forward(self, x):
        x = self.depthwise(F.gelu(self.norm(self.conv1(x))))
        x = self.patches(x).flatten(2).transpose(1, 2)  # [samples, patches, width]
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = self.norm2(x + self.scale * self.out(mixed))
        return self.classify(x[:, 0])


DECODERS = {"gpt2": gpt2, "llama": llama, "qwen3": qwen3, "opt": opt}
MODELS = {**DECODERS, "bert": bert}
FURTHER = {"gemma2": gemma2, "bloom": bloom, "gpt_neox": gpt_neox, "mamba": mamba}


def tokens(samples, length, *, padded=True):
    """Token ids and their mask, with uneven prompts, padded on the left."""
    generator = torch.Generator().manual_seed(samples + 100 * length)
    ids = torch.randint(3, VOCABULARY, (samples, length), generator=generator)
    mask = torch.ones_like(ids)
    for sample in range(samples if padded else 0):
        mask[sample, : sample % max(1, length // 2)] = 0
    return {"input_ids": ids.where(mask.bool(), 0), "attention_mask": mask}


def log_probability(model):
    """A fitness: how likely each text is."""
    return lambda batch: token_log_probability(model(**batch).logits, batch["input_ids"], batch["attention_mask"])


def generated(model, **options):
    """A fitness: a number that tells generated texts apart, whose tokens are kept in its ``texts``."""
    options = {"max_new_tokens": 6, "do_sample": False, **options}

    def fitness(batch):
        new = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
        fitness.texts += new.tolist()
        return (new * torch.arange(1, new.shape[1] + 1)).sum(1).float()  # padding is 0

    fitness.texts = []
    return fitness


def job_of(model, fitness, batch, *, evolve=None, population=4, sigma=0.1, rank=1, as_fitness=True, **options):
    """A job of members, and the isolation to enter.

    ``fitness`` gives a value for each row, or anything if it isn't to be taken ``as_fitness``.
    """
    algorithm = EvolutionStrategy(population=population, sigma=sigma, learning_rate=1.0, rank=rank, **options)
    members, space, shared = algorithm.ask(algorithm.init(seed=3)), SearchSpace(model, evolve), SharedBatch(batch)
    isolation = Isolation(model, torch.device("cpu"))

    def each_sample(value):
        return Fitness(value, missing=value != value) if isinstance(value, torch.Tensor) and value.dim() else value

    def alone():
        value = fitness(shared.for_member())
        return as_record(each_sample(value)) if as_fitness else value

    def rows(count):
        value = fitness(Repeat()(shared.for_member(), count))
        return as_records(each_sample(value), count) if as_fitness else list(value.unflatten(0, (count, -1)))

    job = Job(space, laid_over(members, space), alone, isolation, range(population))
    samples = Repeat().samples(batch)
    return replace(job, rows=BatchOfRows(samples, rows) if samples else None), isolation


def in_rows(model, fitness, batch, *, together=4, **options):
    """What ``fitness`` gives for each row of each member, by the plain loop and by rows: ``[members, samples, ...]``.

    Args:
        model: Any.
        fitness: Gives a tensor with one entry for each row of the batch that it is given.
        batch: Of one member.
        together: Members that share a forward.
        options: Of :func:`job_of`.
    """
    job, isolation = job_of(model, fitness, batch, as_fitness=False, **options)
    with isolation:
        return torch.stack(Plain().run(job)), torch.stack(Rows(together).run(job))


def assert_rows_equal(model, fitness, batch, *, rounding=2e-6, **options):
    """Rows give what the plain loop gives, for each sample, to rounding."""
    expected, found = in_rows(model, fitness, batch, **options)
    assert expected.dtype == found.dtype
    assert expected.shape == found.shape
    assert (expected != expected[:1]).any(), "members do not differ"
    expected, found = expected.double(), found.double()
    torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding * float(expected.abs().max()))


def verdict(model, fitness, batch, **options):
    """Why members can't be rows of one batch, by the first generation's check; empty if they can."""
    job, isolation = job_of(model, fitness, batch, **options)
    with isolation:
        try:
            return judge(Rows(4), job).mismatch or ""
        except Refusal as refusal:
            return str(refusal)
