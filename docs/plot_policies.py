#!/usr/bin/env python3
"""Draws docs/policies.svg from the JSON of trace_replay: plot_policies.py REPLAY.json OUT.svg (needs matplotlib)."""
import plotting

STYLES = {
    "belady": ("#888888", "--", "Belady (the optimum)"),
    "prefix_aware": ("#c0392b", "-", "prefix_aware"),
    "lru": ("#1f4e79", "-", "lru"),
    "s3_fifo": ("#2e8b57", "-", "s3_fifo"),
    "two_queue": ("#b8860b", "-", "two_queue"),
    "fifo": ("#7b6fa0", "-", "fifo"),
    "sieve": ("#5f9ea0", "-", "sieve"),
}


def main(source, target):
    results = plotting.load(source)
    figure, axes = plotting.subplots(figsize=(7.2, 4.2))
    for policy, (colour, line, label) in STYLES.items():
        points = sorted((r["capacity"], r["hit_ratio"]) for r in results if r["policy"] == policy)
        axes.plot(*zip(*points), line, color=colour, label=label, linewidth=1.6, marker="o", markersize=3)
    axes.set_xscale("log")
    axes.set_xlabel("blocks of 512 tokens in the tier")
    axes.set_ylabel("share of accesses that hit")
    axes.set_ylim(0, 0.4)
    plotting.plain(axes)
    axes.legend(frameon=False, loc="lower right")
    plotting.save(figure, target)


if __name__ == "__main__":
    plotting.run(main, "plot_policies.py REPLAY.json OUT.svg")
