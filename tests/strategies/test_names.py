"""Options and strategies under names that people try: the error ends with what to write."""

import importlib

import pytest

from lightning_evo import EvoDDPStrategy, Evolution, EvoStrategy, algorithms
from lightning_evo.strategies.names import about_strategy


@pytest.mark.parametrize(
    ("name", "ours"),
    [("lr", "learning_rate"), ("std", "sigma"), ("popsize", "population"), ("n_pop", "population"),
     ("popluation", "population"), ("vmap", "evaluation"), ("trainable", "evolve"), ("timeout", "member_timeout")],
)  # fmt: skip
def test_an_options_name(name, ours):
    with pytest.raises(TypeError, match=rf"^EvoStrategy\('mezo'\) has no option '{name}'. Did you mean '{ours}'\? Its"):
        EvoStrategy("mezo", **{name: 1})


def test_the_list_of_options_is_complete():
    with pytest.raises(TypeError) as caught:
        EvoStrategy(temperature=None)  # an unknown name is wrong whatever its value
    message = str(caught.value)
    assert "Did you mean" not in message
    listed = message.partition("Its options: ")[2].rstrip(".").split(", ")
    assert all(
        EvoStrategy(**{name: None}) for name in listed if name not in ("algorithm", "minimum_evaluated", "evaluation")
    )
    assert {"update", "evolve", "evaluation", "journal", "seed", "member_timeout", *algorithms.get("mezo").options} <= {
        *listed
    }
    assert not {"accelerator", "checkpoint_io", "precision_plugin"} & {*listed}
    with pytest.raises(TypeError, match="has no option 'shards'. Did you mean 'shard'"):
        EvoDDPStrategy(shards=2)
    with pytest.raises(
        TypeError, match=r"EvoStrategy\('csa_es'\) has no option 'lr'. Its options: population, sigma, "
    ):
        EvoStrategy("csa_es", lr=0.1)
    with pytest.raises(TypeError, match=r"^'openai_es' has no option 'std'. Did you mean 'sigma'\? .*members_per_for"):
        Evolution(std=0.1)


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.parametrize(
    ("name", "last_line"),
    [
        ("evoo", "Did you mean 'evo'?"),
        ("EvoStrategy", "Did you mean 'evo'?"),
        ("evolution", "Did you mean 'evo'?"),
        ("evo-ddp", "Did you mean 'evo_ddp'?"),
        ("ddp_evo", "Did you mean 'evo_ddp'?"),
        ("evo_deepspeed", "Did you mean 'evo_deepspeed_stage_3'?"),
        ("evo_fsdp2", "Did you mean 'evo_fsdp'?"),
        ("eggroll", "'eggroll' is an algorithm of evolution. Use Trainer(strategy=EvoStrategy('eggroll')), with `from "
         "{home} import EvoStrategy`. The name 'evo' alone takes the default algorithm."),
    ],
)  # fmt: skip
def test_a_strategys_name(package, name, last_line):
    trainer = importlib.import_module(package).Trainer
    home = {"lightning.pytorch": "lightning_evo", "pytorch_lightning": "lightning_evo.pytorch_lightning"}[package]
    with pytest.raises(ValueError, match="invalid strategy name") as caught:
        trainer(strategy=name, accelerator="cpu", logger=False)
    assert str(caught.value).splitlines()[-1] == last_line.format(home=home)


@pytest.mark.parametrize("name", ["ddpp", "deepspeed_stage33", "nonsense", "fsdpp"])
def test_what_is_not_ours_keeps_lightnings_error(name):
    import lightning as L

    with pytest.raises(ValueError, match=r"invalid strategy name: .*https://lightning.ai$"):
        L.Trainer(strategy=name, accelerator="cpu", logger=False)


def test_other_errors_of_the_connector_are_lightnings():
    import lightning as L

    with pytest.raises(ValueError, match=r"^You selected an invalid accelerator name"):
        L.Trainer(strategy="evo", accelerator="ecpu", logger=False)


def test_a_misspelt_algorithm_in_a_strategys_place():
    names = ["auto", "ddp", "evo", "evo_ddp"]
    assert "EvoStrategy('sparse_mezo')" in about_strategy("sparse-mezo", names, "lightning.pytorch")
    assert "EvoStrategy('eggroll')" in about_strategy("egroll", names, "lightning.pytorch")
    assert about_strategy("dpp", names, "lightning.pytorch") == ""
