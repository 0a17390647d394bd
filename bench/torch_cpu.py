#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""undivided beside PyTorch's scaled_dot_product_attention on one core, in turns in one process.

Time is CPU time of the process, so a busy neighbour does not count; the median of the turns. Errors
are relative L2 distances from float64 on the same inputs, first head. Where the processor has AMX,
PyTorch uses it for bf16: a second process repeats those rows with AVX-512 as the limit of oneDNN
and MKL. Rows go to bench/results/torch-cpu-<processor>.json.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from door import BF16, CPU, F16, F32, START, Gradients, Held, Kv, Library, Options, Outputs, Rows

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "MKL_ENABLE_INSTRUCTIONS": "AVX512_E3",
               "ATEN_CPU_CAPABILITY": "avx512"}
HEADS = 4
DTYPES = {"f32": (torch.float32, F32), "f16": (torch.float16, F16), "bf16": (torch.bfloat16, BF16)}
SHAPES = [(512, False), (2048, False), (4096, True)]
# (direction, dtype): PyTorch's time over ours must be at least this.
BARS = {("forward", "f32"): 1.2, ("backward", "f32"): 1.2, ("forward", "bf16"): 2.1,
        ("backward", "bf16"): 1.5, ("forward", "f16"): 1.6, ("backward", "f16"): 10}

class Ours:
    """The calls of one problem."""

    def __init__(self, library, q, k, v, dout, causal):
        self.library = library
        self.held = held = Held(dict(DTYPES.values()))
        self.o, self.dq, self.dk, self.dv = (torch.empty_like(x) for x in (q, q, k, v))
        lse = torch.empty(q.shape[:3], dtype=torch.float32)
        self.rows, self.drows = Rows(data=held.put(q)), Rows(data=held.put(dout))
        self.kv = Kv(k=held.put(k), v=held.put(v))
        self.options = Options(mask=b"k <= q" if causal else None, align=START, backend=CPU, threads=1)
        self.o_view, self.lse = held.view(self.o), held.view(lse)
        self.outputs = Outputs(o=held.at(self.o_view), lse=held.at(self.lse))
        self.gradients = Gradients(q=held.put(self.dq), k=held.put(self.dk), v=held.put(self.dv))

    def forward(self):
        self.library.call("attention", self.outputs, self.rows, self.kv, self.options)

    def backward(self):
        self.library.call("attention_backward", self.gradients, self.drows, self.rows, self.kv,
                          self.o_view, self.lse, self.options)


def in_turns(one, other, budget):
    """Median CPU seconds of two functions, called in turns."""
    times = ([], [])
    one(), other()
    begin = time.process_time()
    while len(times[0]) < 2 or (time.process_time() - begin < budget and len(times[0]) < 500):
        for function, list_ in zip((one, other), times):
            before = time.process_time()
            function()
            list_.append(time.process_time() - before)
    return tuple(map(statistics.median, times))


def distance(got, wanted):
    got, wanted = got.detach(), wanted.detach().double()
    return float((got.double() - wanted).norm() / wanted.norm())


def rows_of_problem(library, dtype, d, n, causal, budget):
    torch.manual_seed(1)
    q, k, v, dout = (torch.randn(1, HEADS, n, d).to(DTYPES[dtype][0]) for _ in range(4))
    ours = Ours(library, q, k, v, dout, causal)
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = F.scaled_dot_product_attention(*inputs, is_causal=causal)

        def torch_forward():
            with torch.no_grad():
                F.scaled_dot_product_attention(q, k, v, is_causal=causal)

        def torch_backward():
            return torch.autograd.grad(out, inputs, dout, retain_graph=True)

        forward = in_turns(ours.forward, torch_forward, budget)
        backward = in_turns(ours.backward, torch_backward, budget)
        theirs = torch_backward()
    exact = [x[:, :1].double().requires_grad_() for x in (q, k, v)]
    with sdpa_kernel(SDPBackend.MATH):
        wanted = F.scaled_dot_product_attention(*exact, is_causal=causal)
        gradients = torch.autograd.grad(wanted, exact, dout[:, :1].double())
    pairs = HEADS * (n * (n + 1) // 2 if causal else n * n)
    errors = {
        "forward": (distance(ours.o[:, :1], wanted), distance(out[:, :1], wanted)),
        "backward": tuple(max(distance(a[:, :1], b) for a, b in zip(set_, gradients))
                          for set_ in ((ours.dq, ours.dk, ours.dv), theirs)),
    }
    for direction, (mine, other), flops in (("forward", forward, 4), ("backward", backward, 10)):
        rate = flops * pairs * d * 1e-9
        yield {"name": f"{direction} {dtype} d{d} n{n} {'causal' if causal else 'full'}",
               "gflops": rate / mine, "torch_gflops": rate / other, "ratio": other / mine,
               "bar": BARS[direction, dtype], "error": errors[direction][0],
               "torch_error": errors[direction][1]}


def processor():
    return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()).group(1)


def measure(arguments):
    torch.set_num_threads(1)
    library = Library(arguments.library)
    for dtype in DTYPES:
        for d in (64, 128):
            for n, causal in SHAPES:
                if not re.search(arguments.filter, f"{dtype} d{d} n{n} {'causal' if causal else 'full'}"):
                    continue
                peak = library.number("fma_peak")
                for row in rows_of_problem(library, dtype, d, n, causal, arguments.seconds):
                    row["fma_peak_gflops"] = peak
                    yield row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--filter", default="", help="regular expression, for example 'bf16 d128 n2048'")
    parser.add_argument("--seconds", type=float, default=0.6, help="time spent on a row (default 0.6)")
    parser.add_argument("--library", default=ROOT / "build/release/bench/libbench_library.so")
    parser.add_argument("--out", help="file of results; '-' for none")
    parser.add_argument("--lines", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.lines:  # the second process
        for row in measure(arguments):
            print(json.dumps(row), flush=True)
        return
    library, rows = Library(arguments.library), []
    amx = "amx_bf16" in Path("/proc/cpuinfo").read_text()
    print(f"{'row':32}{'GFLOP/s':>9}{'torch':>8}{'ratio':>7}{'bar':>6}   errors: ours, torch")

    def show(row):
        print(f"{row['name']:32}{row['gflops']:9.1f}{row['torch_gflops']:8.1f}{row['ratio']:7.2f}"
              f"{row['bar']:6.1f}   {row['error']:.1e} {row['torch_error']:.1e}"
              f"{'' if row['ratio'] >= row['bar'] else '  missed'}", flush=True)

    for row in measure(arguments):
        show(row)
        rows.append(row)
    if amx and any("bf16" in row["name"] for row in rows):
        print("bf16 again, PyTorch without AMX:")
        limited = subprocess.run(
            [sys.executable, __file__, "--lines", "--filter", f"^(?=.*{arguments.filter})bf16",
             "--seconds", str(arguments.seconds), "--library", str(arguments.library)],
            env={**os.environ, **WITHOUT_AMX}, check=True, capture_output=True, text=True).stdout
        for line in limited.splitlines():
            row = json.loads(line)
            show(row)
            first = next(r for r in rows if r["name"] == row["name"])
            first["torch_gflops_without_amx"] = row["torch_gflops"]
            first["ratio_without_amx"] = row["ratio"]
    result = {"machine": processor(), "system": platform.platform(), "torch": torch.__version__,
              "commit": library.text("commit"), "compiler": library.text("compiler"), "threads": 1,
              "heads": HEADS, "torch_uses_amx": amx, "bf16_peak_gflops": library.number("bf16_peak"),
              "rows": rows}
    if arguments.out != "-":
        name = re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")
        path = Path(arguments.out or ROOT / "bench" / "results" / f"torch-cpu-{name}.json")
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
