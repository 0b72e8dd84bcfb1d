#!/usr/bin/env python3
"""Draws docs/codecs.svg from the JSON of bench/kv_loss: plot_codecs.py KV_LOSS.json OUT.svg (needs matplotlib)."""
import plotting


def main(source, target):
    results = plotting.load(source)
    figure, axes = plotting.subplots(figsize=(7.2, 4.2))
    for r in results:
        ours = r["codec"].startswith("ecsq")
        colour = "#c0392b" if ours and "without" not in r["codec"] else "#7b6fa0" if ours else "#1f4e79"
        axes.plot(r["ratio"], 100 * r["loss"], "o", color=colour, markersize=4)
        axes.annotate(r["codec"], (r["ratio"], 100 * r["loss"]), textcoords="offset points", xytext=(4, 5),
                      fontsize=8, ha="right" if "without" in r["codec"] else "left")
    axes.set_xlabel("times smaller than fp16, everything counted")
    axes.set_ylabel("loss in bits per byte, %")
    axes.set_xlim(0.5, 10.5)
    plotting.plain(axes)
    plotting.save(figure, target)


if __name__ == "__main__":
    plotting.run(main, "plot_codecs.py KV_LOSS.json OUT.svg")
