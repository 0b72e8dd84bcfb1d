#!/usr/bin/env python3
"""Draws docs/codecs.svg from the JSON of bench/kv_loss: plot_codecs.py KV_LOSS.json OUT.svg (needs matplotlib)."""
import json
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


def main(source, target):
    with open(source, encoding="utf-8") as file:
        results = json.load(file)
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "terrace", "font.size": 10})
    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    for r in results:
        ours = r["codec"].startswith("ecsq")
        colour = "#c0392b" if ours and "without" not in r["codec"] else "#7b6fa0" if ours else "#1f4e79"
        axes.plot(r["ratio"], 100 * r["loss"], "o", color=colour, markersize=4)
        axes.annotate(r["codec"], (r["ratio"], 100 * r["loss"]), textcoords="offset points", xytext=(4, 5),
                      fontsize=8, ha="right" if "without" in r["codec"] else "left")
    axes.set_xlabel("times smaller than fp16, everything counted")
    axes.set_ylabel("loss in bits per byte, %")
    axes.set_xlim(0.5, 10.5)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("plot_codecs.py KV_LOSS.json OUT.svg")
    main(sys.argv[1], sys.argv[2])
