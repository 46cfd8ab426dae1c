"""The picture of the memory bench: training memory as bars, decode state by context as lines."""

import io
from typing import Any

import numpy as np

from slmjax.models import sizes
from slmjax.models.architecture import Architecture
from slmjax.readable import count
from slmjax.record.figures import LIGHT

LONGEST = 1 << 16  # of the lines


def draw(rows: list[dict[str, Any]], variants: dict[str, Architecture]) -> str:
    """An SVG: the training memory of each variant at the longest context where all were measured, and its decode state of one row.

    Lines are the closed forms (sizes.cache_bytes), dots what was measured.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    shortest = min(1024, *(row["context"] for row in rows))
    contexts = np.geomspace(shortest, LONGEST, 33).round()
    colors = dict(zip(variants, (*(LIGHT[f"c{i}"] for i in range(8)), LIGHT["ink"])))
    fits = [
        n
        for n in {row["context"] for row in rows}
        if all(row.get("train GiB") for row in rows if row["context"] == n)
    ]
    with rc_context({"font.size": 9.5, "svg.hashsalt": "slmjax"}):
        figure = Figure(figsize=(9.6, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
        if fits:
            shown = [row for row in rows if row["context"] == max(fits)][::-1]
            bars = left.barh(
                [row["variant"] for row in shown],
                [row["train GiB"] for row in shown],
                color=[colors[r["variant"]] for r in shown],
            )
            left.bar_label(
                bars,
                [
                    f"{row['train GiB']:.3g}{'' if row['remat'] == 'none' else ' (' + row['remat'] + ')'}"
                    for row in shown
                ],
                padding=3,
            )
            left.margins(x=0.18)
        left.set_title(
            f"Training memory, GiB{f', rows of {count(max(fits))}' if fits else ''}", loc="left"
        )
        labels: list[tuple[float, str]] = []
        for name, arch in variants.items():
            state = np.array([sizes.cache_bytes(arch, int(n)) for n in contexts]) / 1e6
            right.plot(contexts, state, color=colors[name], lw=1.7, label=name)
            dots = [
                (row["context"], row["state MB"])
                for row in rows
                if row["variant"] == name and row.get("state MB")
            ]
            right.plot(*zip(*dots), color=colors[name], ls="", marker="o", ms=4) if dots else None
            together = next(
                (k for k, (at, _) in enumerate(labels) if abs(np.log(at / state[-1])) < 0.15), None
            )
            if together is None:
                labels.append((state[-1], name))
            else:
                labels[together] = (labels[together][0], f"{labels[together][1]}, {name}")
        for at, text in labels:
            color = colors[text] if text in colors else LIGHT["ink"]
            right.annotate(
                text,
                (LONGEST, at),
                (4, 0),
                textcoords="offset points",
                color=color,
                va="center",
                fontsize=8.5,
            )
        right.set_xscale("log", base=2)
        right.set_yscale("log")
        right.xaxis.set_major_locator(
            FixedLocator([1 << n for n in range(6, 17, 2) if 1 << n >= shortest])
        )
        right.xaxis.set_minor_locator(NullLocator())
        right.xaxis.set_major_formatter(
            FuncFormatter(lambda at, _: f"{at / 1024:.0f}k" if at >= 1024 else f"{at:.0f}")
        )
        right.yaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:g}"))
        right.set_title("Decode state of one row, MB, by context", loc="left")
        left.xaxis.set_major_locator(NullLocator())
        left.spines["bottom"].set_visible(False)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(colors=LIGHT["muted"], length=0)
        right.grid(color=LIGHT["grid"], lw=0.8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
