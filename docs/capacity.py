#!/usr/bin/env python3
"""What a token of qwen2.5-14b takes in each tier, and how many fit: capacity.py BENCH.json KV_LOSS.json

BENCH.json has the rows of bench/capacity (what the library itself writes and reserves), KV_LOSS.json those of
bench/kv_loss (what codecs make of a real model's KV). Prints two tables for docs/performance.md.
"""
import json
import sys

LAYERS, BLOCK_TOKENS, GRANULE, HEADER = 48, 64, 4096, 128
FP16 = LAYERS * 8 * 128 * 2 * 2  # bytes a token: heads, dim, K and V, two bytes
BLOCK = FP16 // LAYERS * BLOCK_TOKENS
TABLE = 1 / 32  # of a store's capacity: superblock and headers (medium/nvme.hpp)
CODECS = ["identity", "fp8", "q8_0", "q4_0", "zstd", "q4_0, zstd", "ecsq 0.8, 0.7", "ecsq 1.2, 1.0"]
FIXED = {"identity", "fp8", "q8_0", "q4_0"}
SIZES = [("hot, 10 GiB of VRAM or RAM", 10 << 30, "identity"), ("warm, 64 GiB of RAM", 64 << 30, "q8_0"),
         ("cool, 1 TiB of NVMe", 1 << 40, "q4_0, zstd"), ("the same", 1 << 40, "ecsq 1.2, 1.0")]


def per_token(codec, ratio, gaussian):
    """Bytes a token with the granule, where a block is `ratio` times smaller than fp16."""
    if codec in FIXED:  # every block is as large as any
        return gaussian
    return (BLOCK / ratio + GRANULE / 2) * LAYERS / BLOCK_TOKENS  # sizes vary: half a granule on average


def main(bench, losses):
    with open(bench, encoding="utf-8") as file:
        rows = {row["case"]: row for row in json.load(file) if row["bench"] == "capacity"}
    with open(losses, encoding="utf-8") as file:
        ratios = {row["codec"]: row["ratio"] for row in json.load(file)}
    real = {c: per_token(c, ratios[c], rows[c]["value"]) for c in CODECS}
    print("| codec | Gaussian: the codec's own bytes | with the granule | times smaller | the shipped model's KV:"
          " with the granule | times smaller |")
    print("| --- | --- | --- | --- | --- | --- |")
    for c in CODECS:
        row = rows[c]
        print(f"| {c} | {row['limit']:,.0f} | {row['value']:,.0f} | {FP16 / row['value']:.2f} | {real[c]:,.0f} |"
              f" {FP16 / real[c]:.2f} |")
    record = rows["record in RAM"]["value"]
    print("\n| tier | codec | tokens, model's KV | Gaussian | if the codec's bytes were all | their records in RAM |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, size, codec in SIZES:
        bound = rows[codec]["limit"] if codec in FIXED else FP16 / ratios[codec]
        tokens = size / real[codec]
        print(f"| {name} | {codec} | {tokens:,.0f} | {size / rows[codec]['value']:,.0f} | {size / bound:,.0f} |"
              f" {tokens * record / 2**30:.2f} GiB |")
    header = HEADER * LAYERS / BLOCK_TOKENS
    print(f"\nkept: a header of {header:.0f} bytes a token lies in the store's table, {TABLE:.1%} of its capacity")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("capacity.py BENCH.json KV_LOSS.json")
    main(sys.argv[1], sys.argv[2])
