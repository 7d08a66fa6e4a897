"""What a picture shows: a line for each run, a band for seeds, a panel for each metric."""

from pathlib import Path

import pytest

from lightning_evo.curves.groups import grouped
from lightning_evo.curves.picture import draw_groups, draw_run
from lightning_evo.curves.runs import Run

pytest.importorskip("matplotlib", reason="matplotlib is not installed")


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the picture that is drawn, as matplotlib has them."""
    from matplotlib.figure import Figure

    figures = []
    savefig = Figure.savefig

    def saved(self, *args, **kwargs):
        figures.append(self.axes + [self.legends])
        return savefig(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", saved)
    return figures


def runs():
    for lr in (0.1, 0.2):
        for seed in range(3 if lr == 0.1 else 1):
            curve = [(step, step * lr + seed) for step in range(4)]
            yield Run(Path("logs"), {"val_acc": curve, "val_loss": curve[:1]}, {"lr": lr, "seed": seed})


def test_groups(drawn, tmp_path):
    draw_groups(grouped(list(runs())), ["val_acc", "val_loss"], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    *panels, legends = drawn.pop()
    assert [axes.get_ylabel() for axes in panels] == ["val_acc", "val_loss"]
    lines = [(line.get_label(), list(line.get_ydata())) for line in panels[0].lines]
    assert [values for label, values in lines if label.startswith("_")] == [
        pytest.approx([step * 0.1 + seed for step in range(4)]) for seed in range(3)
    ]
    assert dict(lines)["lr=0.1 (3 runs)"] == pytest.approx([1.0, 1.1, 1.2, 1.3])  # the median
    assert dict(lines)["lr=0.2"] == pytest.approx([0.0, 0.2, 0.4, 0.6])
    (band,) = panels[0].collections
    (path,) = band.get_paths()
    assert path.vertices[:, 1].min() == pytest.approx(0.0)
    assert path.vertices[:, 1].max() == pytest.approx(2.3)
    assert [text.get_text() for text in legends[0].get_texts()] == ["lr=0.1 (3 runs)", "lr=0.2"]


@pytest.mark.parametrize(("fitness", "axes"), [([(1, 0.25), (2, 0.5)], 1), ([(1, -3.0)], 2), ([], 1)])
def test_one_run_has_one_scale_where_both_are_shares(drawn, tmp_path, fitness, axes):
    draw_run(fitness, [(2, 0.75)], "val_acc", tmp_path / "a.svg")
    *panels, _ = drawn.pop()
    assert len(panels) == axes
    assert list(panels[-1].lines[-1].get_ydata()) == [0.75]


def test_what_matplotlib_can_not_draw(tmp_path):
    with pytest.raises(ValueError, match="matplotlib draws no .xyz files"):
        draw_run([(1, 0.5)], [], None, tmp_path / "a.xyz")
    assert list(tmp_path.iterdir()) == []
