"""The searches on classical functions, and their picture."""

import pytest
import torch

from examples.functions.__main__ import main, search
from examples.functions.functions import FUNCTIONS
from lightning_evo.algorithms import get

pytestmark = pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None.:UserWarning")  # Lightning's


def test_searches_at_a_small_size(tmp_path, capsys):
    picture = tmp_path / "searches.png"
    main(
        [
            *("--functions", "sphere", "--algorithms", "cma_es", "particle_swarm", "--generations", "0", "30"),
            *("--population", "8", "--output", str(picture)),
        ]
    )
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["sphere, cma_es", "sphere, particle_swarm"]
    assert all(float(line.split("height ")[1].split()[0]) < 0.1 for line in lines)  # 8 at the start
    assert all(line.endswith("after 31 generations") for line in lines)
    assert last == f"picture: {picture}"
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_the_members_that_are_drawn_are_those_of_ask_and_tell():
    watch, height = search("rosenbrock", "snes", 8, [0, 3], seed=2)
    case, algorithm = FUNCTIONS["rosenbrock"], get("snes")(population=8)
    state = algorithm.init(torch.tensor(case.start, dtype=torch.float64), sigma=case.sigma, seed=2)
    for generation in range(4):
        population = algorithm.ask(state)
        if generation in watch.members:
            torch.testing.assert_close(watch.members[generation], population.vectors())
        torch.testing.assert_close(watch.centers[generation], state.center)
        state = algorithm.tell(state, population, -case.height(population.vectors()))
    assert list(watch.members) == [0, 3]
    assert height == pytest.approx(float(case.height(state.center)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_0_at_their_optimum_and_higher_elsewhere(name):
    case = FUNCTIONS[name]
    optimum = torch.full((3,), case.optimum, dtype=torch.float64)
    assert float(case.height(optimum)) == pytest.approx(0, abs=1e-12)
    elsewhere = optimum + 0.3 * torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (case.height(elsewhere) > 0).all()
    assert case.height(elsewhere).shape == (100,)


def test_generations_that_cannot_be_drawn(capsys):
    with pytest.raises(SystemExit):
        main(["--generations", "0", "1", "2", "3", "4"])
    assert "at most 4 numbers from 0 on" in capsys.readouterr().err
