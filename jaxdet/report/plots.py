"""Charts as SVG that stands inside a page and follows its colours, light or dark."""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

# Placeholders for matplotlib, which `_for_page` replaces by the CSS variables of page.css.
INK, MUTED, LINE, FIRST, SECOND, FAINT = (f"#0a0b{i:02d}" for i in range(10, 16))
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", FIRST: "first", SECOND: "second",
              FAINT: "faint"}  # fmt: skip
_STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "font.family": "DejaVu Sans",
    "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": LINE, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "xtick.color": LINE, "ytick.color": LINE, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "xtick.major.size": 3, "ytick.major.size": 3, "lines.linewidth": 1.6,
    "lines.solid_capstyle": "butt", "legend.frameon": False, "legend.labelcolor": INK,
    "legend.handlelength": 1.2, "axes.grid": True, "grid.color": LINE, "grid.linewidth": 0.5,
}  # fmt: skip


class Chart:
    """A figure while it is drawn: `axes`, and afterwards `svg`."""

    def __init__(self, figure):
        self.axes = figure.subplots()
        self.svg = Markup()


@contextmanager
def chart(name: str, width: float = 4.2, height: float = 2.8) -> Iterator[Chart]:
    """A context in which to draw on `axes`; `svg` is set at its end.

    Args:
        name: for screen readers; unique in the page.
        width, height: in inches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # Letters that the font lacks are drawn by the reader's browser.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure = Figure((width, height), layout="constrained")
        drawn = Chart(figure)
        yield drawn
        file = io.StringIO()
        # Without a date, so that the same run gives the same page.
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    drawn.svg = _for_page(file.getvalue(), name, width)


def _for_page(svg: str, name: str, width: float) -> Markup:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"(font: [\d.]+px|font-family:) [^;\"]*", r"\1 var(--font)", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    label = Markup.escape(name)
    # Never larger than this, so that all charts have letters of one size.
    first = f'<svg role="img" aria-label="{label}" style="max-width:{width * 100:.0f}px"'
    return Markup(svg.replace("<svg", first, 1))


def curve(
    name: str,
    x: Float[np.ndarray, "points"],
    y: Float[np.ndarray, "points"],
    labels: tuple[str, str],
    diagonal: bool = False,
) -> Markup:
    """A curve in the unit square, such as a ROC curve."""
    with chart(name, 3.6, 3.2) as drawn:
        axes = drawn.axes
        if diagonal:
            axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--")
        axes.plot(x, y, color=FIRST)
        _unit_square(axes, *labels)
    return drawn.svg


def small_precision_recall(name: str, recall, precision) -> Markup:
    """A small precision-recall curve for a grid of many: filled, with labels only at the ends."""
    with chart(name, 1.9, 1.5) as drawn:
        axes = drawn.axes
        x = np.concatenate([[0], np.repeat(recall, 2)[:-1], recall[-1:]]) if len(recall) else []
        y = np.concatenate([np.repeat(precision, 2), [0]]) if len(recall) else []
        axes.fill_between(x, y, color=FIRST, alpha=0.18, linewidth=0)
        axes.plot(x, y, color=FIRST, linewidth=1.3)
        axes.set(xlim=(0, 1), ylim=(0, 1.03), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        axes.set_xticklabels(["0", "", "1"])
        axes.set_yticklabels(["0", "", "1"])
    return drawn.svg


def froc(name: str, pooled, of_classes: Sequence) -> Markup:
    """FROC curves (`curves.Froc`): all findings pooled in strong colour, the classes behind."""
    with chart(name, 5.2, 3.2) as drawn:
        axes = drawn.axes
        least = 1 / 128  # a logarithmic scale has no 0
        for points, style in (
            *[(points, {"color": FAINT, "linewidth": 0.8}) for points in of_classes],
            (pooled, {"color": FIRST, "linewidth": 2}),
        ):
            axes.step(
                np.maximum(points.false_positives, least), points.recall, where="post", **style
            )
        axes.set(
            xscale="log", xlim=(least, 10), ylim=(0, 1.0),
            xlabel="false positives per image", ylabel="recall",
        )  # fmt: skip
        axes.set_xticks([1 / 64, 1 / 16, 1 / 4, 1, 4], ["1/64", "1/16", "1/4", "1", "4"])
        axes.minorticks_off()
    return drawn.svg


def separation(name: str, normal, abnormal) -> Markup:
    """Histograms of the scores of normal and of abnormal images, each normalised to sum 1."""
    with chart(name, 4.2, 3.2) as drawn:
        axes = drawn.axes
        everything = np.concatenate([normal, abnormal])
        bins = np.linspace(min(0, everything.min()), max(1, everything.max()), 31)
        for values, color, label in ((normal, MUTED, "normal"), (abnormal, FIRST, "with findings")):
            share = np.full(len(values), 1 / max(len(values), 1))
            axes.hist(values, bins, weights=share, color=color, alpha=0.3, linewidth=0)
            axes.hist(values, bins, weights=share, color=color, histtype="step", label=label)
        axes.set(xlim=(bins[0], bins[-1]), xlabel="score of any finding", ylabel="share of images")
        axes.legend(loc="upper center")
    return drawn.svg


def calibration(name: str, bins, what: str) -> Markup:
    """A reliability diagram of `curves.Calibration`; larger points hold more detections."""
    with chart(name, 3.6, 3.2) as drawn:
        axes = drawn.axes
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--")
        some = bins.count > 0
        x, y, (low, high) = bins.score[some], bins.precision[some], bins.interval[:, some]
        size = 12 + 80 * bins.count[some] / bins.count.max()
        axes.vlines(x, low, high, color=FIRST, linewidth=1, alpha=0.6)
        axes.scatter(x, y, s=size, color=FIRST, linewidth=0, clip_on=False, zorder=3)
        _unit_square(axes, "score", what)
    return drawn.svg


def lines(name: str, series: dict[str, tuple[Sequence, Sequence]], ylabel: str) -> Markup:
    """Up to two series of values over training steps."""
    with chart(name, 3.8, 2.4) as drawn:
        axes = drawn.axes
        for (label, (x, y)), color in zip(series.items(), (FIRST, SECOND), strict=False):
            few = {"marker": "o", "markersize": 3.5, "clip_on": False} if len(x) < 15 else {}
            axes.plot(x, y, color=color, label=label, **few)
        axes.set(xlabel="step", ylabel=ylabel)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        if len(series) > 1:
            axes.legend()
    return drawn.svg


def histogram(name: str, values, xlabel: str, ylabel: str, bins=30, log: bool = False) -> Markup:
    """A histogram."""
    with chart(name, 3.8, 2.4) as drawn:
        axes = drawn.axes
        axes.hist(values, bins, color=FIRST, linewidth=0, rwidth=0.92)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if log:
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            ticks = [x for decade in range(-3, 5) for x in 10.0**decade * np.array([1, 2, 5])
                     if low <= x <= high]  # fmt: skip
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
            axes.minorticks_off()
        axes.grid(axis="x", visible=False)
    return drawn.svg


def scatter(name: str, x, y, xlabel: str, ylabel: str) -> Markup:
    """A scatter plot; points that coincide are drawn larger."""
    (x, y), count = np.unique(np.stack([x, y]), axis=1, return_counts=True)
    with chart(name, 3.8, 2.4) as drawn:
        axes = drawn.axes
        size = 5 + 150 * count / count.max()
        axes.scatter(x, y, s=size, color=FIRST, alpha=0.5, linewidth=0)
        axes.set(xlabel=xlabel, ylabel=ylabel)
    return drawn.svg


def _unit_square(axes, xlabel: str, ylabel: str) -> None:
    ticks = [0, 0.25, 0.5, 0.75, 1]
    axes.set(xlim=(0, 1), ylim=(0, 1.0), xlabel=xlabel, ylabel=ylabel, xticks=ticks, yticks=ticks)
    axes.set_xticklabels(["0", "", "0.5", "", "1"])
    axes.set_yticklabels(["0", "", "0.5", "", "1"])
    axes.set_aspect("equal")
