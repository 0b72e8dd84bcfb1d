#!/usr/bin/env python3
"""Measures what reading a selection of blocks costs and saves on the shipped model, at 32,768 tokens of context:
measure_selection.py ATTENTION_RUNNER OUT.json [--context N]. One run of the program for each row, a quarter of an hour
on a quiet machine. Nothing in the rows depends on how busy it is."""
import argparse
import json
import subprocess
import sys
import tempfile

SELECTIONS = {
    256: ["dense", "top-k=1", "top-k=2", "top-k=4", "top-k=8", "top-k=16", "top-k=32", "top-k=64",
          "certified=0.01", "certified=0.1", "certified=0.5"],
    32: ["dense", "top-k=1", "top-k=4", "top-k=16", "top-k=64", "top-k=256"],
}


def run(runner, context, block_tokens, mode):
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        subprocess.run([runner, "--codec", "lossless", "--context", str(context), "--decode", "64", "--attend", mode,
                        "--block-tokens", str(block_tokens), "--json", out.name],
                       check=True, stdout=subprocess.DEVNULL)
        found = json.load(open(out.name, encoding="utf-8"))
    chosen = found.get("attend", {})
    off = chosen.get("error_against_dense", {})
    return {"block_tokens": block_tokens, "attend": mode, "context_tokens": found["context_tokens"],
            "share_read": chosen.get("share_read", 1.0), "bits_per_byte": found["bits_per_byte"],
            "rel_l2": off.get("rel_l2", 0.0), "max_abs": off.get("max_abs", 0.0),
            "summary_bytes": chosen.get("summary_bytes", 0), "kv_bytes_total": found["kv_bytes_total"]}


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("runner")
    arguments.add_argument("out")
    arguments.add_argument("--context", type=int, default=32768)
    a = arguments.parse_args()
    rows = []
    for block_tokens, modes in SELECTIONS.items():
        for mode in modes:
            rows.append(run(a.runner, a.context, block_tokens, mode))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    with open(a.out, "w", encoding="utf-8") as file:
        file.write("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")


if __name__ == "__main__":
    main()
