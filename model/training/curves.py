"""The curves of a run as a picture."""

import csv
from pathlib import Path

from matplotlib.figure import Figure


def plot_curves(log: Path, picture: Path) -> None:
    """Losses, and ROC-AUC a tag on held-out clips, against the step, from a run's log.csv."""
    with log.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    steps = [int(row["step"]) for row in rows]
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ("loss", "distillation"):
        losses = [float(row[name]) for row in rows]
        if any(losses):  # without teachers nothing is distilled
            left.plot(steps, losses, marker=".", label=name)
    for name in (column for column in rows[0] if column.startswith("auc_")):
        right.plot(
            steps,
            [float(row[name]) for row in rows],
            marker=".",
            label=name.removeprefix("auc_").replace("$", r"\$"),
        )
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    right.set(xlabel="step", ylabel="ROC-AUC, held-out clips", ylim=(None, 1.02))
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=100)
