"""Plot results of bench.stopping: throughput against the share of episodes that lost the best run.

    python -m bench.stopping_plot random.json improving.json --out docs/img/stopping_frontier.png

Each file holds the object that `python -m bench.stopping --json` prints last; it becomes one panel, named by its file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ACT_AT = "0.30"  # the oracle that is drawn


def plot(results: dict[str, dict[str, Any]], out: Path) -> None:
    """Draw one panel per result. ValueError without a result."""
    if not results:
        raise ValueError("nothing to plot; name at least one JSON file of bench.stopping")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(5.5 * len(results), 4.2), sharey=True, squeeze=False)
    for axis, (name, result) in zip(axes[0], results.items(), strict=True):
        points = sorted((throughput, 100 * lost) for _, throughput, lost, _ in result["frontier"])
        axis.plot(*zip(*points, strict=True), "o-", color="C0", label="ours, over α")
        for k, (rule, got) in enumerate(result["rules"].items()):
            mark = "*" if rule == "ours" else "s"
            axis.plot(got["throughput"], 100 * got["best_lost"], mark, color=f"C{k}", markersize=9, label=rule)
        axis.axvline(result["oracle"][ACT_AT], color="grey", linestyle=":", label="oracle that acts at 30 %")
        axis.set(title=name, xlabel="throughput, runs per full run's time", xlim=(0.9, None))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("episodes that lost the best run, %")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.stopping_plot", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("results", type=Path, nargs="+", help="JSON files of bench.stopping")
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    options = parser.parse_args(argv)
    plot({path.stem: json.loads(path.read_text(encoding="utf-8")) for path in options.results}, options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
