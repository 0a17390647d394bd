#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time to class the blocks of a mask: create_block_mask of PyTorch beside `undivided mask`, one core.

usage: mask_torch.py UNDIVIDED OUT.json [commit]

Both get the same masks and arrays. PyTorch's function runs uncompiled on the CPU, as its documentation
has it; one head, one batch, blocks of 128. Ours makes runs in both orders and bit tiles at 64. At 131,072
tokens PyTorch's dense mask alone is 16 GiB of booleans, so only ours runs; the row says so.
"""

import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention.flex_attention import create_block_mask

MEMORY_LIMIT_GIB = 8


def documents(n):
    rng = np.random.default_rng(1)
    ids = np.zeros(n, np.int32)
    at = doc = 0
    while at < n:
        length = int(rng.integers(1, 3000))
        ids[at : at + length] = doc
        at, doc = at + length, doc + 1
    return ids


def masks(n):
    doc = documents(n)
    t = torch.from_numpy(doc)
    return [
        ("causal", "k <= q", {}, lambda b, h, q, k: k <= q),
        ("window", "abs(q - k) <= 512", {}, lambda b, h, q, k: (q - k).abs() <= 512),
        ("sink and window", "k <= q && (q - k <= 256 || k < 4)", {},
         lambda b, h, q, k: (k <= q) & ((q - k <= 256) | (k < 4))),
        ("causal documents", "k <= q && doc[q] == doc[k]", {"doc": doc},
         lambda b, h, q, k: (k <= q) & (t[q] == t[k])),
        ("NATTEN, width 128",
         f"abs(clamp(q / 128, 6, {n // 128 - 7}) - k / 128) <= 6 && "
         "abs(clamp(q % 128, 6, 121) - k % 128) <= 6", {},
         lambda b, h, q, k: (((q // 128).clamp(6, n // 128 - 7) - k // 128).abs() <= 6)
         & (((q % 128).clamp(6, 121) - k % 128).abs() <= 6)),
    ]


def torch_seconds(mod, n):
    best = float("inf")
    for _ in range(3 if n <= 8192 else 1):
        start = time.perf_counter()
        made = create_block_mask(mod, None, None, n, n, device="cpu")
        best = min(best, time.perf_counter() - start)
    return best, made


def our_seconds(tool, text, arrays, n, folder):
    command = [tool, "mask", "--mask", text, "--q-len", str(n), "--k-len", str(n), "--threads", "1", "--json"]
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
        command += ["--array", f"{name}={folder / name}.npy"]
    runs = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(5)]
    return min(r["seconds"] for r in runs), runs[0]


def main():
    tool, out = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for n in (8192, 16384, 131072):
            for name, text, arrays, mod in masks(n):
                ours, counts = our_seconds(tool, text, arrays, n, Path(folder))
                row = {"tokens": n, "mask": name, "undivided_ms": 1e3 * ours}
                if n * n > MEMORY_LIMIT_GIB << 30:
                    row["torch"] = f"not run: its dense mask is {n * n / 2**30:.0f} GiB of booleans"
                else:
                    theirs, made = torch_seconds(mod, n)
                    kept = int(made.kv_num_blocks.sum() + made.full_kv_num_blocks.sum())
                    row |= {"torch_ms": 1e3 * theirs, "times": theirs / ours, "torch_blocks": kept,
                            "undivided_blocks_of_64": counts["partial"] + counts["full"]}
                rows.append(row)
                print(json.dumps(row), flush=True)
    processor = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
                     platform.processor())
    out.write_text(json.dumps({
        "what": "milliseconds to class the blocks of a mask, one core: create_block_mask of PyTorch and undivided mask",
        "processor": processor, "torch": torch.__version__, "commit": sys.argv[3] if len(sys.argv) > 3 else "unknown",
        "torch_peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "bar": "times >= 50 at 8192",
        "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
