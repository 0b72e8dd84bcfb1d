#!/usr/bin/env python3
"""Draws docs/sparse_selection.svg from what docs/measure_selection.py wrote: plot_selection.py SELECTION.json OUT.svg
(needs matplotlib)."""
import plotting

COLOURS = {256: "#1f4e79", 64: "#2e8b57", 32: "#c0392b"}


def label_of(row):
    return row["attend"].replace("top-k=", "")


def draw(axes, rows, value):
    for tokens in sorted({row["block_tokens"] for row in rows}, reverse=True):
        points = sorted((100 * row["share_read"], value(row), label_of(row)) for row in rows
                        if row["block_tokens"] == tokens and row["attend"].startswith("top-k"))
        axes.plot([p[0] for p in points], [p[1] for p in points], "-o", color=COLOURS.get(tokens, "#7b6fa0"),
                  label=f"blocks of {tokens} tokens", linewidth=1.4, markersize=3.5)
        for share, y, name in points:
            axes.annotate(name, (share, y), textcoords="offset points", xytext=(4, 4), fontsize=7,
                          color=COLOURS.get(tokens, "#7b6fa0"))
    axes.set_xscale("log")
    axes.set_xlabel("share of the blocks that is read, %")
    plotting.plain(axes)


def main(source, target):
    rows = plotting.load(source)
    dense = next(row for row in rows if row["attend"] == "dense")
    figure, (error, bits) = plotting.subplots(1, 2, figsize=(9.6, 4.0))
    draw(error, rows, lambda row: row["rel_l2"])
    error.set_ylabel("error against dense attention, relative")
    error.set_ylim(bottom=0)
    error.legend(frameon=False, title="the numbers are N of top-k=N", title_fontsize=8)
    draw(bits, rows, lambda row: 100 * (row["bits_per_byte"] / dense["bits_per_byte"] - 1))
    bits.axhline(0, color="#888888", linestyle="--", linewidth=1)
    bits.annotate("dense", (0.02, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                  xytext=(0, 3), fontsize=8, color="#666666")
    bits.set_ylabel("bits per byte against dense attention, %")
    bits.set_ylim(-11, 1)
    plotting.save(figure, target)


if __name__ == "__main__":
    plotting.run(main, "plot_selection.py SELECTION.json OUT.svg")
