"""Which tensors evolve, under which names and numbers."""

import re

import pytest
import torch
from torch import nn

from lightning_evo import Evolution
from lightning_evo.spaces.search_space import SearchSpace


def model():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def found(space):
    return [(parameter.name, parameter.index) for parameter in space]


ALL = [("0.weight", 0), ("0.bias", 1), ("1.weight", 2), ("1.bias", 3), ("2.weight", 4), ("2.bias", 5)]


@pytest.mark.parametrize(
    ("evolve", "indices"),
    [
        (None, [0, 1, 2, 3, 4, 5]),
        ("", [0, 1, 2, 3, 4, 5]),
        ("bias", [1, 3, 5]),
        (r"^2\.", [4, 5]),
        (r"\.weight$", [0, 2, 4]),
        (["bias$", r"0\.weight"], [0, 1, 3, 5]),  # in the module's order, whatever the patterns'
        (["2", "2.bias"], [4, 5]),
        (("0", "1"), [0, 1, 2, 3]),
        (lambda name, parameter: parameter.numel() == 3, [1, 2, 3, 4]),
        (lambda name, parameter: name.startswith("2"), [4, 5]),
    ],
)
def test_choices(evolve, indices):
    module = model()
    space = SearchSpace(module, evolve)
    assert found(space) == [ALL[i] for i in indices]
    named = dict(module.named_parameters())
    assert all(parameter.tensor is named[parameter.name] for parameter in space)
    assert space.numel == sum(parameter.tensor.numel() for parameter in space)
    assert len(space) == len(indices)
    assert space[-1] == list(space)[-1]
    assert list(space[:2]) == list(space)[:2]


def test_frozen_and_integer_parameters_are_left_alone_and_the_others_keep_their_numbers():
    module = model()
    module[0].weight.requires_grad = False
    module[1].register_parameter("codes", nn.Parameter(torch.zeros(4, dtype=torch.int8), requires_grad=False))
    expected = [("0.bias", 1), ("1.weight", 2), ("1.bias", 3), ("2.weight", 5), ("2.bias", 6)]
    assert found(SearchSpace(module)) == expected
    assert found(SearchSpace(module, "weight|codes")) == [("1.weight", 2), ("2.weight", 5)]
    asked = []
    SearchSpace(module, lambda name, parameter: asked.append(name) or True)
    assert asked == [name for name, _ in expected]


def test_only_parameters_among_those_given():
    module = model()
    assert found(SearchSpace(module, among=[module[2].bias, module[0].bias])) == [("0.bias", 1), ("2.bias", 5)]
    assert found(SearchSpace(module, "2", among=iter(module[2].parameters()))) == [("2.weight", 4), ("2.bias", 5)]
    with pytest.raises(ValueError, match=r"evolve='weight' matches no parameter that can evolve.*Names: 2\.bias\."):
        SearchSpace(module, "weight", among=[module[2].bias])
    with pytest.raises(ValueError, match="No parameter can evolve: of the module's 6 parameters none"):
        SearchSpace(module, among=[nn.Parameter(torch.zeros(1))])


class Tied(nn.Module):
    def __init__(self, share):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.body = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = share(self.embedding.weight)


TIES = {"same_object": lambda weight: weight, "same_memory": lambda weight: nn.Parameter(weight.data)}


@pytest.mark.parametrize("share", TIES)
@pytest.mark.parametrize(
    "evolve", ["embedding", "head", None, ["head", "embedding"], lambda name, _: name == "head.weight"]
)
def test_tied_weights_are_found_under_any_name_and_evolve_once(share, evolve):
    module = Tied(TIES[share])
    space = SearchSpace(module, evolve)
    assert found(space)[0] == ("embedding.weight", 0)
    assert len(space) == (3 if evolve is None else 1)
    assert found(SearchSpace(module, "body")) == [("body.weight", 1), ("body.bias", 2)]
    assert space.numel == 15 + (12 if evolve is None else 0)


@pytest.mark.parametrize("share", TIES)
def test_tied_weights_evolve_if_any_of_their_parameters_may(share):
    module = Tied(TIES[share])
    assert found(SearchSpace(module, among=[module.head.weight])) == [("embedding.weight", 0)]
    if share == "same_memory":
        module.embedding.weight.requires_grad = False
        space = SearchSpace(module, "head")
        assert space.numel == 15
        assert space[0].tensor is module.head.weight


def test_different_weights_stay_separate():
    module = nn.ParameterList([torch.zeros(0), torch.zeros(0), torch.zeros(2), torch.zeros(2)])
    storage = torch.zeros(4)
    module.append(nn.Parameter(storage[:2]))
    module.append(nn.Parameter(storage[2:]))
    assert [index for _, index in found(SearchSpace(module))] == [0, 1, 2, 3, 4, 5]


OVERLAPS = {
    "transposed": lambda weight: weight.data.t(),
    "transposed_square": lambda weight: weight.data[:, :2].t(),
    "flat": lambda weight: weight.data.view(-1),
    "part": lambda weight: weight.data[1:2],
    "crossing": lambda weight: weight.data.view(-1)[2:5],
}


@pytest.mark.parametrize("kind", OVERLAPS)
def test_other_views_of_the_same_memory_can_not_both_evolve(kind):
    module = nn.ParameterDict({"a": torch.randn(2, 3), "c": torch.randn(4)})
    module["b"] = nn.Parameter(OVERLAPS[kind](module["a"]))
    with pytest.raises(ValueError, match=r"The parameters 'a' and 'b' are different views of the same memory.*evolve"):
        SearchSpace(module)
    assert [parameter.name for parameter in SearchSpace(module, ["a", "c"])] == ["a", "c"]
    module["b"].requires_grad_(False)
    assert [parameter.name for parameter in SearchSpace(module)] == ["a", "c"]


def test_parameters_that_interleave_are_separate():
    """Columns of one matrix: each reaches over the other, and has no element of it."""
    memory = torch.randn(4, 3)
    module = nn.ParameterList([nn.Parameter(memory[:, i]) for i in range(3)])
    assert len(SearchSpace(module)) == 3
    module.append(nn.Parameter(memory[2:]))
    with pytest.raises(ValueError, match="The parameters '0' and '3'"):
        SearchSpace(module)


def test_dtypes_that_share_bytes():
    memory = torch.randn(4)
    module = nn.ParameterList([nn.Parameter(memory), nn.Parameter(memory.view(torch.float16)[1:3])])
    with pytest.raises(ValueError, match="The parameters '0' and '1'"):
        SearchSpace(module)


@pytest.mark.parametrize("evolve", ["embedding", "head"])
@pytest.mark.parametrize("update", ["apply", "add_to_gradients"])
def test_one_of_two_transposed_views_moves_the_other_with_it(evolve, update):
    """As if there were one parameter: the plain loop perturbs the memory, and the update moves it once."""
    torch.manual_seed(0)
    embedding, head = nn.Linear(3, 5, bias=False), nn.Linear(5, 3, bias=False)
    head.weight = nn.Parameter(embedding.weight.data.t())
    module = nn.ModuleDict({"embedding": embedding, "head": head})
    x, seen = torch.randn(4, 3), []

    def fitness(x):
        seen.append(torch.equal(head.weight, embedding.weight.t()))
        return -(head(embedding(x)) - x).square().mean()

    evolution = Evolution("openai_es", population=4, evolve=evolve, seed=0)
    evolution.setup(module)
    before = embedding.weight.detach().clone()
    evolution.evaluate(fitness, x)
    assert torch.equal(embedding.weight, before)
    assert evolution.evaluation.summary.startswith("evaluation: plain")
    assert all(seen[-4:])  # the tries before them read a member and the center
    if update == "apply":
        evolution.conclude().apply()
    else:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        evolution.conclude().add_to_gradients()
        optimizer.step()
    assert not torch.equal(embedding.weight, before)
    assert torch.equal(head.weight, embedding.weight.t())


def names_in(error):
    return re.search(r"Names: (.*)\.$", str(error.value)).group(1)


@pytest.mark.parametrize(
    ("evolve", "hint"),
    [
        ("0.wieght", r"evolve='0.wieght' matches no parameter that can evolve\. Did you mean '0.weight'\? Names: "),
        ("zzz", r"evolve='zzz' matches no parameter that can evolve\. Names: "),
        (["bias", "zzz"], r"evolve='zzz' matches no"),  # each pattern must match something
        (lambda name, parameter: False, r"evolve=<function .* matches no"),
    ],
)
def test_nothing_matches(evolve, hint):
    with pytest.raises(ValueError, match=hint) as error:
        SearchSpace(model(), evolve)
    assert names_in(error) == "0.weight, 0.bias, 1.weight, 1.bias, 2.weight, 2.bias"


def test_long_lists_of_names_are_cut():
    module = nn.Sequential(*(nn.Linear(1, 1) for _ in range(15)))
    with pytest.raises(ValueError, match="matches no") as error:
        SearchSpace(module, "zzz")
    assert names_in(error).startswith("0.weight, 0.bias, 1.weight")
    assert names_in(error).endswith("9.bias, … (10 more)")


def test_frozen_names_are_said_to_be_frozen():
    module = model()
    module[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"matches only frozen parameters; set requires_grad=True"):
        SearchSpace(module, r"^0\.")
    module.requires_grad_(False)
    with pytest.raises(ValueError, match="of the module's 6 parameters none is floating point with requires_grad=True"):
        SearchSpace(module)


@pytest.mark.parametrize(
    ("evolve", "kind", "message"),
    [
        ("(", ValueError, r"evolve='\(' is not a regular expression: missing \)"),
        (["bias", 3], TypeError, "regular expressions, a callable or None; got int in the list"),
        (3, TypeError, "regular expressions, a callable or None; got int"),
        (torch.tensor(3), TypeError, "regular expressions, a callable or None; got Tensor"),
        ({"bias": 1}, TypeError, "regular expressions, a callable or None; got dict"),
        ([], ValueError, r"evolve=\[\] matches no parameter\. Leave it out to evolve all"),
        (len, ValueError, r"evolve must be a function of \(name, parameter\), got <built-in function len>"),
        (lambda name: True, ValueError, r"evolve must be a function of \(name, parameter\)"),
    ],
)
def test_what_is_no_choice(evolve, kind, message):
    with pytest.raises(kind, match=message):
        SearchSpace(model(), evolve)


def test_lazy_modules_must_have_their_shape():
    module = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"Parameter '1.weight' has no shape yet \(a lazy module\).*one forward pass"):
        SearchSpace(module)
    assert found(SearchSpace(module, "^0")) == [("0.weight", 0), ("0.bias", 1)]
    module(torch.zeros(1, 2))
    assert found(SearchSpace(module, "^1")) == [("1.weight", 2), ("1.bias", 3)]


def test_types_that_are_too_short_to_evolve():
    module = torch.nn.Linear(3, 2)
    module.scale = torch.nn.Parameter(torch.ones(4).to(torch.float8_e4m3fn))
    with pytest.raises(ValueError, match=r"'scale' is of torch.float8_e4m3fn, which can't evolve.*requires_grad=False"):
        SearchSpace(module)
    assert len(SearchSpace(module, evolve=["weight", "bias"])) == 2
