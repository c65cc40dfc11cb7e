"""What the picture of a run shows, read off the figure's own objects, and the file that is written."""

import ast
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from hf_dbmtl import plots
from hf_dbmtl.plots import COLORS, logged_tasks, plot_training


def history(values, quantity="loss", every=10):
    """A log with one record per value: `values` is {task: numbers}."""
    length = max(map(len, values.values()))
    records = [
        {f"{quantity}/{task}": row[i] for task, row in values.items() if i < len(row)} | {"step": (i + 1) * every}
        for i in range(length)
    ]
    return [*records, {"eval_loss": 1.0, "step": length * every}, {"train_runtime": 3.0, "step": length * every}]


def full_history(tasks, length, seed=0):
    generator = np.random.default_rng(seed)
    return [
        {f"{q}/{task}": float(generator.uniform(0.5, 2.0)) for q in ("loss", "weight", "grad_norm") for task in tasks}
        | {"loss": 1.0, "grad_norm": 1.0, "learning_rate": 1e-4, "step": step}
        for step in range(1, length + 1)
    ]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Lays the figure out and gives it, without the time that the pixels take."""
    figures = []

    def draw(*args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(
                Figure, "savefig", lambda figure, *_, **__: (figure.draw_without_rendering(), figures.append(figure))
            )
            plot_training(args[0], tmp_path / "drawn.png", *args[1:], **kwargs)
        return figures[-1]

    return draw


def legend_names(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def thick_lines(axes):
    return [line for line in axes.lines if line.get_linewidth() > 1]


def test_the_file_is_a_png_and_its_folder_is_made(tmp_path):
    path = plot_training(full_history(["a", "b"], 12), tmp_path / "deep" / "down" / "run.png", title="A run")
    assert path == tmp_path / "deep" / "down" / "run.png"
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 2.5 * image.height > 1000
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20


def test_one_panel_per_quantity_one_colour_per_task_one_legend(drawn):
    figure = drawn(full_history(["b", "a", "c"], 30), title="Three")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Loss", "Weight", "Gradient norm"]
    for axes in figure.axes:
        assert [to_hex(line.get_color()).upper() for line in thick_lines(axes)] == list(COLORS[:3])
    assert len(figure.legends) == 1 and not any(axes.get_legend() for axes in figure.axes)
    assert legend_names(figure) == ["b", "a", "c"]  # as in the log, not sorted
    assert figure.get_suptitle() == "Three"


def test_tasks_select_and_order(drawn):
    figure = drawn(full_history(["a", "b", "c"], 5), tasks=["c", "a"])
    assert legend_names(figure) == ["c", "a"]
    assert all(len(axes.lines) == 2 for axes in figure.axes)


def test_what_was_not_logged_gets_no_panel(drawn):
    figure = drawn(history({"a": [2.0, 1.0], "b": [1.0]}))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Loss"]
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[10, 20], [10]]
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [[2.0, 1.0], [1.0]]


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ({"a": [2.0, 1.0], "b": [0.3, 0.5]}, "linear"),
        ({"a": [2.0, 1.0], "b": [0.03, 0.05]}, "log"),
        ({"a": [2.0, 0.0], "b": [0.03, 0.05]}, "symlog"),
        ({"a": [2.0, -1.0], "b": [0.03, 0.05]}, "linear"),
        ({"a": [0.0, 0.0], "b": [0.0, 0.0]}, "linear"),
    ],
)
def test_logarithmic_where_values_span_decades(drawn, values, scale):
    axes = drawn(history(values)).axes[0]
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert all(low <= value <= high for row in values.values() for value in row)


def test_logarithmic_labels_are_plain_numbers(drawn):
    figure = drawn(history({"a": [1000.0, 0.01]}))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert {"0.1", "1", "10", "100"} <= set(labels)


def test_smoothing_is_the_centred_mean_beside_the_records_and_stated(drawn):
    values = np.random.default_rng(0).uniform(1.0, 2.0, 200)
    figure = drawn(history({"a": list(values)}))
    thin, thick = figure.axes[0].lines
    assert np.array_equal(thin.get_ydata(), values)
    window = 9
    by_hand = [values[max(0, i - 4) : i + 5].mean() for i in range(200)]
    shifted = [values[max(0, i - 8) : i + 1].mean() for i in range(200)]  # a trailing mean lags behind
    assert thick.get_ydata() == pytest.approx(by_hand)
    assert thick.get_ydata() != pytest.approx(shifted)
    assert f"moving mean over {window} records" in figure.legends[0].get_title().get_text()


def test_smoothing_is_geometric_on_a_logarithmic_axis(drawn):
    values = 10 ** np.random.default_rng(0).uniform(-2.0, 2.0, 100)
    thick = drawn(history({"a": list(values)})).axes[0].lines[1].get_ydata()
    assert thick[50] == pytest.approx(np.exp(np.log(values[48:53]).mean()))
    assert thick[50] != pytest.approx(values[48:53].mean())


def test_few_records_are_drawn_as_they_are(drawn):
    figure = drawn(history({"a": [1.0, 1.5] * 29}))
    assert len(figure.axes[0].lines) == 1 and figure.legends[0].get_title().get_text() == ""
    assert figure.axes[0].lines[0].get_marker() == "None"
    assert drawn(history({"a": [1.0, 1.5] * 5})).axes[0].lines[0].get_marker() == "o"


def test_values_that_are_not_finite_are_left_out(drawn):
    broken = history({"a": [2.0, float("nan"), 1.0, float("inf")], "b": [float("nan")], "c": [None, 1.0]})
    figure = drawn(broken)
    assert list(figure.axes[0].lines[0].get_xdata()) == [10, 30]
    assert logged_tasks(broken) == legend_names(figure) == ["a", "c"]


def test_equal_curves_share_the_line(drawn):
    equal = drawn(history({task: [1.0] * 8 for task in "abc"}, "weight")).axes[0].lines
    offsets = [line._unscaled_dash_pattern[0] for line in equal]
    assert len(set(offsets)) == 3
    apart = drawn(history({"a": [1.0] * 8, "b": [1.0] * 7 + [1.1], "c": [1.0] * 8}, "weight")).axes[0].lines
    assert [line.get_linestyle() for line in apart] == ["-"] * 3


def test_more_tasks_than_colours_get_dashes(drawn):
    tasks = [f"t{i}" for i in range(len(COLORS) + 2)]
    lines = drawn(history({task: [1.0 + i, 2.0] for i, task in enumerate(tasks)})).axes[0].lines
    looks = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(looks) == len(tasks)
    assert lines[0].get_color() == lines[len(COLORS)].get_color()


def test_several_runs_are_rows_on_shared_axes(drawn):
    runs = {
        "ew": history({"a": [1.0, 2.0], "b": [3.0, 4.0]}),
        "db_mtl": history({"b": [1.0, 8.0]}) + history({"b": [1.0, 1.5]}, "weight"),
    }
    figure = drawn(runs)
    grid = np.array(figure.axes).reshape(2, 2)
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["ew", "db_mtl"]
    assert grid[0, 0].get_ylim() == grid[1, 0].get_ylim() != grid[0, 1].get_ylim()
    assert [text.get_text() for text in grid[0, 1].texts] == ["not logged"]
    assert grid[1, 0].lines[0].get_color() == grid[0, 0].lines[1].get_color() != grid[0, 0].lines[0].get_color()
    assert legend_names(figure) == ["a", "b"]


def test_hostile_names_are_drawn_as_they_are(drawn):
    names = ["$x_1$", "_hidden", "$unclosed", "a" * 60, "tab\tand\nline"]
    figure = drawn(history({name: [1.0 + i, 2.0] for i, name in enumerate(names)}), title="50 % of $")
    shown = legend_names(figure)
    assert not any(text.get_parse_math() for text in [*figure.legends[0].get_texts(), figure._suptitle])
    assert shown[:3] == names[:3] and shown[4] == "tab and line"
    assert len(shown[3]) == 40 and "…" in shown[3]


def test_long_names_stay_inside_the_picture(drawn):
    figure = drawn(history({f"a-long-name-for-one-of-the-tasks-{i}": [1.0 + i, 2.0] for i in range(8)}))
    box = figure.legends[0].get_window_extent()
    assert figure.axes[0].get_window_extent().height > 200  # pixels: a legend of eight rows does not squeeze the panel
    assert 0 <= box.x0 and box.x1 <= figure.bbox.x1 and 0 <= box.y0
    assert box.y1 <= min(axes.get_tightbbox().y0 for axes in figure.axes) + 1  # below the panels, not over them


def test_the_users_settings_neither_matter_nor_change(tmp_path):
    log = full_history(["a", "b"], 70)
    plain = plot_training(log, tmp_path / "plain.png").read_bytes()
    with matplotlib.rc_context({"axes.facecolor": "black", "lines.linewidth": 9, "font.size": 30, "savefig.dpi": 10}):
        before = dict(matplotlib.rcParams)
        assert plot_training(log, tmp_path / "odd.png").read_bytes() == plain
        assert dict(matplotlib.rcParams) == before
    assert plot_training(log, tmp_path / "title.png", title="other").read_bytes() != plain
    tree = ast.parse(Path(plots.__file__).read_text())
    imported = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert imported and not [line for line in imported if "pyplot" in line]


@pytest.mark.parametrize(
    ("log", "tasks", "message"),
    [
        ([], None, r"'loss/<task>' of any task .* those of \[\]"),
        ([{"loss": 1.0, "eval_a_f1": 0.5, "step": 1}], None, "of any task"),
        (history({"a": [1.0]}), ["a", "typo"], r"tasks \['a', 'typo'\] to plot it; it holds those of \['a'\]"),
        (history({"a": [float("nan")]}), None, "of any task"),
        ({}, None, "of any task"),
    ],
)
def test_nothing_to_draw_is_an_error_and_no_file(tmp_path, log, tasks, message):
    with pytest.raises(ValueError, match=message):
        plot_training(log, tmp_path / "none.png", tasks=tasks)
    assert not list(tmp_path.iterdir())
