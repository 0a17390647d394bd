#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Paged keys beside dense ones on a GPU, in turns: causal prefills, and decodes beside PyTorch.

Pages lie in random order. Time is the median of turns by CUDA events, in microseconds. "read" sums
as many bytes as K and V have.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F

from door import BF16, CUDA, END, F32, I32, INVARIANT, FAST, Held, Kv, Library, Options, Outputs, Rows

ROOT = Path(__file__).resolve().parent.parent
CODES = {torch.bfloat16: BF16, torch.float32: F32, torch.int32: I32}
PREFILLS = [(2, 8192), (8, 2048)]  # sequences, tokens
DECODES = [(64, 8192, 1), (16, 16384, 1), (1, 65536, 1), (64, 4096, 4), (16, 8192, 16)]  # and queries


def normal(*shape):
    return torch.randn(*shape, device="cuda").bfloat16()


def attention(library, q, determinism=FAST, **kv):
    """The call, and where its O goes."""
    held, o = Held(CODES), torch.empty_like(q)
    tensors = {name: held.put(x) for name, x in kv.items() if isinstance(x, torch.Tensor)}
    numbers = {name: x for name, x in kv.items() if not isinstance(x, torch.Tensor)}
    made = [Outputs(o=held.put(o)), Rows(data=held.put(q)), Kv(**tensors, **numbers),
            Options(mask=b"k <= q", align=END, backend=CUDA, determinism=determinism,
                    stream=torch.cuda.current_stream().cuda_stream)]
    call = library.ready("attention", *made)
    call.keep = held, made
    return call, o


def in_pages(k, v, size):
    batch, heads, tokens, _ = k.shape
    each = tokens // size
    order = torch.randperm(batch * each, device="cuda")

    def put(x):
        pages = x.view(batch, heads, each, size, -1).transpose(1, 2).reshape(-1, heads, size, x.shape[-1])
        pool = torch.empty_like(pages)
        pool[order] = pages
        return pool
    lengths = torch.full((batch,), tokens, dtype=torch.int32, device="cuda")
    return dict(kind=2, k=put(k), v=put(v), page_table=order.view(batch, each).to(torch.int32),
                lengths=lengths, max_length=tokens)


def timed(calls, rounds):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def time(call, count):
        begin.record()
        for _ in range(count):
            call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / count * 1e3
    counts = {}
    for name, call in calls.items():
        time(call, 2)
        counts[name] = max(1, int(4000 / time(call, 1)))
    turns = {name: [] for name in calls}
    for i in range(rounds):
        for name in list(calls)[:: 1 if i % 2 else -1]:
            turns[name].append(time(calls[name], counts[name]))
    return {name: statistics.median(t) for name, t in turns.items()}


def measure(library, d, batch, tokens, queries, heads, kv_heads, sizes, rounds):
    q, k, v = normal(batch, heads, queries, d), *(normal(batch, kv_heads, tokens, d) for _ in range(2))
    made = {"dense": attention(library, q, k=k, v=v)}
    made |= {f"pages of {size}": attention(library, q, **in_pages(k, v, size)) for size in sizes}
    decode = queries < tokens
    if decode:
        made["invariant"] = attention(library, q, INVARIANT, k=k, v=v)
    calls = {name: call for name, (call, _) in made.items()}
    if queries == 1:
        calls["torch"] = lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    if decode:  # as many bytes as K and V
        buffer = torch.empty(k.numel(), device="cuda")
        calls["read"] = buffer.sum
    microseconds = timed(calls, rounds)
    dense = made["dense"][1]
    row = {"kind": "decode" if decode else "prefill", "d": d, "batch": batch, "tokens": tokens,
           "queries": queries, "heads": heads, "kv_heads": kv_heads, "microseconds": microseconds,
           "largest_difference": max((o - dense).abs().max().item() for _, o in made.values())}
    if decode:
        row["terabytes_a_second"] = 4e-6 * k.numel() / microseconds["dense"]
    else:
        row["teraflops"] = 2e-6 * batch * heads * d * tokens**2 / microseconds["dense"]
    print(row["kind"], f"d{d} {batch} x {tokens}, {queries} queries, {heads}/{kv_heads}:",
          *(f"{name} {t:.0f} ({microseconds['dense'] / t:.3f})" for name, t in microseconds.items()), flush=True)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--library", default=str(ROOT / "build/release/bench/libbench_library.so"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.manual_seed(1)
    library, rows = Library(options.library), []
    for d in (64, 128, 256):
        for batch, tokens in PREFILLS:
            heads = 2048 // d
            rows.append(measure(library, d, batch, tokens, tokens, heads, heads // 4, (16, 64, 256), options.rounds))
    for d in (64, 128, 256):
        for batch, tokens, queries in DECODES:
            rows.append(measure(library, d, batch, tokens, queries, 32, 4, (16, 64, 256), options.rounds))
            torch.cuda.empty_cache()
    if options.out:
        about = {"card": torch.cuda.get_device_name(), "torch": torch.__version__,
                 "commit": library.text("commit"), "compiler": library.text("compiler")}
        Path(options.out).write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
