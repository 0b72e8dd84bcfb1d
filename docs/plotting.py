"""What the plots of docs/ have in common (needs matplotlib)."""
import json
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


def load(source):
    with open(source, encoding="utf-8") as file:
        return json.load(file)


def subplots(*rows_and_columns, **options):
    """matplotlib's, such that the same numbers make the same file."""
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "terrace", "font.size": 10})
    return plt.subplots(*rows_and_columns, **options)


def plain(axes):
    """A light grid, and no frame above and to the right."""
    axes.grid(True, color="#dddddd", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save(figure, target):
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def run(main, usage):
    """Calls main(source, target) with what the command line says."""
    if len(sys.argv) != 3:
        sys.exit(usage)
    main(sys.argv[1], sys.argv[2])
