#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""undivided beside cuDNN (through PyTorch), FlashAttention-4 and FlexAttention on one GPU, row by row.

Every contender reads the same tensors of PyTorch on the same stream. Before a row is timed, O and the
gradients of the first and the last head are compared with float32 attention; who is wrong is not timed.
Then the contenders take turns: several bursts of calls each, between CUDA events; the median counts.
Backward of the peers is torch.autograd.grad. A contender that is not installed, or refuses a row,
leaves its column empty and says why. Only figures of one run may be compared.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import gpu_chart
from gpu_report import line_of, summary
from gpu_rows import blocks, chosen_rows

ROOT = Path(__file__).resolve().parent.parent


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def query_card():
    """Name, driver and clocks of the card, or what can be had."""
    fields = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
    try:
        line = subprocess.run(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", "0"],
                              capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields.split(","), (part.strip() for part in line.split(","))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", choices=("quick", "all"), default="quick", help="quick: three lengths of the grid")
    parser.add_argument("--kinds", help="grid,model,mask,ragged,deterministic (default all)")
    parser.add_argument("--dims", help="head dims, for example 64,128")
    parser.add_argument("--masks", help="names of masks, for example causal")
    parser.add_argument("--causal", choices=("yes", "no"), help="causal rows of the grid only, or full ones")
    parser.add_argument("--filter", default="", help="regular expression on the names of rows")
    parser.add_argument("--direction", default="forward,backward", help="forward,backward (or fwd,bwd)")
    parser.add_argument("--seconds", type=float, default=1e9, help="no new row is begun after so many")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contender (default 5)")
    parser.add_argument("--layout", choices=("bshd", "bhsd"), default="bshd", help="memory of the tensors")
    parser.add_argument("--flex", action="store_true", help="FlexAttention on mask rows (it compiles 7 s a row)")
    parser.add_argument("--without", default="", help="contenders to leave out, for example fa4")
    parser.add_argument("--library", default=ROOT / "build/release/bench/libbench_library.so")
    parser.add_argument("--out", help="JSON file of results")
    parser.add_argument("--pictures", help="folder for one SVG a head dim")
    parser.add_argument("--draw", metavar="JSON", help="draws pictures of earlier results and stops")
    parser.add_argument("--list", action="store_true", help="prints the names of the rows and stops")
    options = parser.parse_args()
    if options.draw:
        for path in gpu_chart.draw(json.loads(Path(options.draw).read_text()), options.pictures or "."):
            print(path)
        return 0
    words = {"fwd": "forward", "bwd": "backward"}
    directions = [words.get(w, w) for w in options.direction.split(",")]
    if set(directions) - {"forward", "backward"}:
        parser.error(f"--direction is '{options.direction}'; forward, backward or both are expected")
    split = lambda text: text.split(",") if text else None  # noqa: E731
    masks = split(options.masks) or {"yes": ["causal"], "no": ["full"], None: None}[options.causal]
    rows = chosen_rows(options.rows, [int(d) for d in split(options.dims) or []], masks, split(options.kinds))
    rows = [row for row in rows if re.search(options.filter, row.name)]
    if not rows:
        parser.error("no row matches; --list --rows all shows them")
    if options.list:
        for row in rows:
            print(row.name)
        return 0

    from gpu_contenders import Bench  # needs torch and a GPU

    started = time.monotonic()
    bench = Bench(options.library, options.layout, set(options.without.split(",")), options.flex)
    results, left_out = [], []
    document = {**bench.about(), "layout": options.layout, "rounds": options.rounds, "absent": bench.absent,
                "card_before": query_card()}

    def save():
        document.update(rows=results, left_out=left_out, summary=summary(results), card_after=query_card())
        if options.out:
            Path(options.out).write_text(json.dumps(document, indent=1) + "\n")

    document["host"] = bench.host()
    say(json.dumps(document["host"]))
    for block in blocks(rows):
        gemm = bench.gemm()
        for row in block:
            if time.monotonic() - started > options.seconds:
                left_out.append(row.name)
                continue
            try:
                found = bench.measure(row, directions, options.rounds, gemm)
            except Exception as why:  # a row must not cost the others
                left_out.append(f"{row.name}: {why}")
                say(f"{row.name}: {why}")
                continue
            for result in found:
                results.append(result)
                print(line_of(result), flush=True)
                for who, why in result["refused"].items():
                    say(f"   {who}: {why}")
        save()
    save()
    for key, value in document["summary"].items():
        print(f"{key}: {value['rows']} rows, geometric mean {value['geometric_mean']:.3f} of the better peer, "
              f"lowest {value['lowest']:.3f}")
    if options.pictures:
        gpu_chart.draw(document, options.pictures)
    return 0 if results else 1


if __name__ == "__main__":
    sys.exit(main())
