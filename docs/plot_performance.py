#!/usr/bin/env python3
"""Draws what bench/run has measured: plot_performance.py OUTDIR/bench.json OUT.svg (needs matplotlib).

A panel for each of these whose rows are there: decode steps by the share of the KV in fast memory, beside the formula of
README.md; decode at equal memory; codecs beside memcpy; the disk through tiered_cache beside the raw loop.
"""
import math
import sys

import plotting

OURS, LIMIT, GREY = "#c0392b", "#7b6fa0", "#aaaaaa"


def bars(axes, labels, pairs, names):
    """Two bars for each label: what was measured, and its limit."""
    for i, (value, limit) in enumerate(pairs):
        axes.barh(i - 0.2, value, 0.38, color=OURS, label=names[0] if i == 0 else None)
        axes.barh(i + 0.2, limit, 0.38, color=GREY, label=names[1] if i == 0 else None)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8)


def hot_fractions(axes, rows):
    steps = {r["case"].split(",")[0]: r for r in rows if r["case"].endswith("a step")}
    shares = {r["case"].split(",")[0]: r["value"] for r in rows if r["case"].endswith("from disk")}
    points = sorted((shares[hot], step["value"], step["limit"], hot) for hot, step in steps.items())
    axes.plot([p[0] for p in points], [p[2] for p in points], "_", color=LIMIT, markersize=16, markeredgewidth=2,
              label="max(1, f R), R of the same run")
    axes.plot([p[0] for p in points], [p[1] for p in points], "o", color=OURS, label="measured")
    for share, step, _, hot in points:
        axes.annotate(hot, (share, step), textcoords="offset points", xytext=(5, -9), fontsize=7)
    axes.set_xlabel("f: share of the KV that a step brings from disk")
    axes.set_ylabel("time of a step / compute alone")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)


def equal_memory(axes, rows):
    rates = {}
    for r in rows:
        if r["unit"] == "tokens/s":
            rates[r["case"]] = (r["value"], OURS)
            rates[r["limit_name"]] = (r["limit"], LIMIT if r["limit_name"] == "the floor" else GREY)
    ordered = sorted(rates.items(), key=lambda item: -item[1][0])
    axes.barh(range(len(ordered)), [rate for _, (rate, _) in ordered], color=[c for _, (_, c) in ordered])
    axes.set_yticks(range(len(ordered)), [name for name, _ in ordered], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("tokens/s, the same bytes of memory")


def codecs(axes, rows):
    rows = [r for r in rows if "memcpy" in r["limit_name"]]
    bars(axes, [r["case"] for r in rows], [(r["value"], r["limit"]) for r in rows], ("codec", "memcpy"))
    axes.set_xlabel("GB/s of raw bytes, one thread")


def disk_through_cache(axes, rows):
    rows = [r for r in rows if r["limit_name"] == "raw io_uring" and r["unit"] == "GB/s"]
    bars(axes, [r["case"] for r in rows], [(r["value"], r["limit"]) for r in rows], ("tiered_cache", "raw io_uring"))
    axes.set_xlabel("GB/s")


PANELS = {"hot_fractions": hot_fractions, "equal_memory": equal_memory, "codec": codecs,
          "disk_through_cache": disk_through_cache}


def main(source, target):
    rows = plotting.load(source)
    there = [name for name in PANELS if any(r["bench"] == name for r in rows)]
    if not there:
        sys.exit(f"plot_performance: {source} has no rows of {', '.join(PANELS)}")
    lines = math.ceil(len(there) / 2)
    figure, all_axes = plotting.subplots(lines, min(len(there), 2), figsize=(10.4, 4.0 * lines), squeeze=False)
    for axes in list(all_axes.flat)[len(there):]:
        axes.remove()
    for name, axes in zip(there, all_axes.flat):
        PANELS[name](axes, [r for r in rows if r["bench"] == name])
        plotting.plain(axes)
        axes.set_axisbelow(True)
    plotting.save(figure, target)


if __name__ == "__main__":
    plotting.run(main, "plot_performance.py BENCH.json OUT.svg")
