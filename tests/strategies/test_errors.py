"""Bad input gets a clear error: what was wrong, what was expected, what to do."""

import itertools

import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_evo import EvolutionStrategy, EvoStrategy
from tests.strategies.models import ConvNet, trainer

# pytest.warns shows other warnings again, as if they came from here, where pyproject.toml does not ignore this one.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"population": 7}, ValueError, r"population=7 is odd.*Use 8, or antithetic=False"),
        ({"population": 1, "antithetic": False}, ValueError, "population must be a whole number >= 2"),
        ({"population": 0}, ValueError, "population must be a whole number"),
        ({"sigma": 0.0}, ValueError, "sigma must be a number > 0, got 0.0"),
        ({"sigma": -1.0}, ValueError, "sigma must be a number > 0"),
        ({"sigma": float("nan")}, ValueError, "sigma must be a number > 0"),
        ({"algorithm": "openai-es"}, ValueError, "Unknown algorithm 'openai-es'. Did you mean 'openai_es'?"),
        ({"popluation": 8}, TypeError, "no option 'popluation'. Did you mean 'population'?"),
        ({"shaping": "zscore"}, ValueError, "Unknown shaping 'zscore'. Did you mean 'z_score'?"),
        ({"noise": "normal"}, ValueError, "Unknown noise 'normal'"),
        ({"scaling": "sigmoid"}, ValueError, "Unknown scaling 'sigmoid'. Did you mean 'sigma'?"),
        ({"top_k": 4}, ValueError, "shaping='top_k' and top_k .* go together"),
        ({"update": "inplace"}, ValueError, "Unknown update 'inplace'. Did you mean 'in_place'"),
        ({"seed": 1.5}, TypeError, "seed must be a whole number"),
        ({"journal": "no"}, ValueError, "journal must be True or False, got 'no'"),
        ({"evolve": "("}, ValueError, r"evolve='\(' is not a regular expression"),
        ({"evolve": 3}, TypeError, "evolve takes regular expressions, a callable or None; got int"),
        ({"algorithm": torch.optim.SGD}, TypeError, "algorithm must be a name"),
    ],
    ids=str,
)
def test_options(arguments, error, message):
    with pytest.raises(error, match=message):
        EvoStrategy(**arguments)


@pytest.mark.parametrize(("given", "used"), [(1, 2), (3, 2), (5, 4)])
def test_members_per_forward_in_pairs(given, used):
    message = f"members_per_forward={given} is odd, but antithetic members come in pairs: {used} of them"
    with pytest.warns(UserWarning, match=message):
        strategy = EvoStrategy(population=8, members_per_forward=given)
    fit(BoringModel(), strategy)
    assert strategy.evolution.evaluation.summary == f"evaluation: batched, {used} members per forward"
    EvoStrategy("es_at_scale", members_per_forward=3)  # has no pairs; a warning would be an error


@pytest.mark.parametrize(
    ("shaping", "message"),
    [
        (lambda fitness: fitness, "^shaping must be a function of .fitness, per_direction., got .*too many positional"),
        (lambda a, b, c: a, "^shaping must be a function of .*missing a required argument: 'c'"),
        ("zz_score", "Did you mean 'z_score'"),
        (torch.nn.ReLU, "^shaping must be a function of"),
        (3, "shaping"),
    ],
)
def test_a_shaping_that_can_not_be_called(shaping, message):
    with pytest.raises(ValueError, match=message):
        EvoStrategy(shaping=shaping)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "None"), ([1.0, 2.0], r"\[1.0, 2.0\]"), (torch.zeros(3), r"\[0.0, 0.0, 0.0\]"), ("ranks", "'ranks'")],
    ids=str,
)
def test_what_a_shaping_must_not_return(value, shown):
    def shaping(fitness, per_direction):
        return value

    message = f"The shaping must give one finite weight for each of the 4 members; it gave {shown}."
    with pytest.raises(ValueError, match=message):
        fit(ConvNet(), EvoStrategy(population=4, shaping=shaping))


def test_options_of_an_algorithm_object():
    algorithm = EvolutionStrategy(population=4, sigma=0.1, learning_rate=0.1)
    assert EvoStrategy(algorithm).evolution.algorithm is algorithm
    with pytest.raises(ValueError, match="give them to the algorithm object instead: population"):
        EvoStrategy(algorithm, population=8)


def test_two_members_and_z_score():
    with pytest.warns(UserWarning, match=r"the z-score is always \+1 and -1"):
        EvoStrategy("ea4llm", population=2)


def fit(module, strategy=None, **options):
    trainer(strategy or EvoStrategy(population=4), max_steps=1, **options).fit(module)


def test_evolve_that_matches_nothing():
    with pytest.raises(ValueError, match=r"evolve='net.4' matches no parameter.*net.5.weight"):
        fit(ConvNet(), EvoStrategy(evolve="net.4"))


def test_more_than_one_device():
    with pytest.raises(ValueError, match=r"strategy='evo' runs on one device, but 2 were chosen"):
        trainer("evo", devices=2)


class Fitness(ConvNet):
    """Its fitness_step returns whatever it is given."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def fitness_step(self, batch, batch_idx):
        return self.value


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("good", TypeError, "returned str .*higher is better"),
        (None, TypeError, "returned NoneType"),
        ([1.0, "good"], TypeError, "returned a list with str .* at position 1"),
        (torch.zeros(3, 2), ValueError, r"shape \[3, 2\]. Return one number, or one per sample"),
        (torch.zeros(0), ValueError, "empty tensor"),
        (torch.zeros(2, dtype=torch.complex64), TypeError, "complex"),
    ],
    ids=str,
)
def test_fitness(value, error, message):
    with pytest.raises(error, match=message):
        fit(Fitness(value))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"logits": torch.zeros(2)}, TypeError, "without the key 'loss'"),
        (torch.zeros(3), ValueError, r"loss of shape \[3\]"),
        ("loss", TypeError, "`training_step` returned str"),
    ],
    ids=str,
)
def test_loss(value, error, message):
    class Model(ConvNet):
        def training_step(self, batch, batch_idx):
            return value

    with pytest.raises(error, match=message):
        fit(Model())


@pytest.mark.parametrize("update", ["optimizer", "in_place"])
def test_lbfgs(update):
    with pytest.raises(ValueError, match="LBFGS calls its closure several times"):
        fit(ConvNet(optimizer=torch.optim.LBFGS), EvoStrategy(update=update))


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
def test_dataloader_iter():
    class Model(ConvNet):
        def training_step(self, dataloader_iter):
            return super().training_step(next(dataloader_iter)[0], 0)

    with pytest.raises(ValueError, match="every member would take another batch"):
        fit(Model())


@pytest.mark.filterwarnings("ignore:.*will run with no optimizer")
def test_no_optimizer_to_update():
    class Model(ConvNet):
        def configure_optimizers(self):
            return None

    with pytest.raises(ValueError, match="`configure_optimizers` returned none. Return one, or use update='in_place'"):
        fit(Model())


def test_learning_rate_that_would_do_nothing():
    with pytest.raises(ValueError, match="whose learning rate counts"):
        fit(ConvNet(), EvoStrategy(update="in_place", learning_rate=0.1))


def test_overridden_backward_is_announced():
    class Model(ConvNet):
        def backward(self, loss):
            raise AssertionError("must not be called")

    with pytest.warns(UserWarning, match="Model.backward is not called"):
        fit(Model())


def test_an_error_in_training_step_leaves_the_center():
    class Model(ConvNet):
        def training_step(self, batch, batch_idx):
            if len(self.losses) == 0 and not torch.equal(self.net[5].weight, self.start):
                raise RuntimeError("from the user's code")
            return super().training_step(batch, batch_idx)

    module = Model()
    module.start = module.net[5].weight.detach().clone()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    with pytest.raises(RuntimeError, match="from the user's code"):
        fit(module)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_failed_and_tied_members():
    class Model(ConvNet):
        def fitness_step(self, batch, batch_idx):
            return self.verdict(self.net[5].weight[0, 0])

    def run(verdict, evaluation="auto"):
        module = Model(optimizer=torch.optim.SGD)
        module.verdict = verdict
        before = [parameter.detach().clone() for parameter in module.parameters()]
        fit(module, EvoStrategy(population=4, evaluation=evaluation))
        return any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))

    with pytest.warns(UserWarning, match="fitness of every member is NaN or infinite. Nothing is changed"):
        assert run(lambda w: w * torch.nan) is False
    with pytest.warns(UserWarning, match="members that should be compared have the same fitness"):
        assert run(lambda w: w * 0) is False

    calls = itertools.count()
    with pytest.warns(UserWarning, match="of 4 members is NaN or infinite; NaN is left out, infinite ranks worst"):
        assert run(lambda w: torch.tensor(torch.inf) if next(calls) == 0 else w, "plain") is True


def test_nothing_learnt_means_nothing_changed_even_with_momentum():
    """Adam would go on moving on its momentum if it were handed a gradient of zero."""

    class Model(ConvNet):
        def fitness_step(self, batch, batch_idx):
            return torch.tensor(1.0) if self.trainer.global_step >= 2 else -self.net[5].weight.square().mean()

        def on_train_batch_end(self, *args):
            self.history.append(self.net[5].weight.detach().clone())

    module = Model()
    module.history = []
    with pytest.warns(UserWarning, match="members that should be compared have the same fitness"):
        trainer(EvoStrategy(population=4), max_steps=4).fit(module)
    assert not torch.equal(module.history[0], module.history[1])
    assert torch.equal(module.history[1], module.history[2])
    assert torch.equal(module.history[2], module.history[3])


def test_sparse_adam():
    with pytest.raises(ValueError, match="SparseAdam takes sparse gradients only"):
        fit(ConvNet(optimizer=torch.optim.SparseAdam))


def test_complex_parameters_are_announced():
    module = ConvNet()
    module.spectrum = torch.nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    with pytest.warns(UserWarning, match="Complex parameters don't evolve and stay as they are: spectrum"):
        fit(module)


def test_manual_optimization_is_announced():
    from lightning.pytorch.demos.boring_classes import ManualOptimBoringModel

    with pytest.warns(UserWarning, match="uses manual optimization.*nothing evolves"):
        fit(ManualOptimBoringModel())
