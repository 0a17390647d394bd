#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""undivided beside PyTorch's scaled_dot_product_attention on one core, in turns in one process.

Time is CPU time of the process, so a busy neighbour does not count; the median of the turns. Errors
are relative L2 distances from float64 on the same inputs, first head. Where the processor has AMX,
PyTorch uses it for bf16: a second process repeats those rows with AVX-512 as the limit of oneDNN
and MKL. Rows go to bench/results/torch-cpu-<processor>.json.
"""

import argparse
import ctypes
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

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "MKL_ENABLE_INSTRUCTIONS": "AVX512_E3",
               "ATEN_CPU_CAPABILITY": "avx512"}
HEADS = 4
DTYPES = {"f32": (torch.float32, 2), "f16": (torch.float16, 3), "bf16": (torch.bfloat16, 4)}
SHAPES = [(512, False), (2048, False), (4096, True)]
# (direction, dtype): PyTorch's time over ours must be at least this.
BARS = {("forward", "f32"): 1.2, ("backward", "f32"): 1.2, ("forward", "bf16"): 2.1,
        ("backward", "bf16"): 1.5, ("forward", "f16"): 1.6, ("backward", "f16"): 10}

i32, i64, size = ctypes.c_int32, ctypes.c_int64, ctypes.c_size_t


def struct(name, *fields):
    made = type(name, (ctypes.Structure,), {"_fields_": [("struct_size", size), *fields]})
    return lambda **values: made(struct_size=ctypes.sizeof(made), **values)


def pointers(*names):
    return [(name, ctypes.c_void_p) for name in names]


View = struct("View", ("data", ctypes.c_void_p), ("dtype", i32), ("cuda", i32), ("device", i32),
              ("rank", i32), ("shape", i64 * 4), ("stride", i64 * 4))
Rows = struct("Rows", *pointers("data", "offsets", "lengths"), ("max_length", i64))
Kv = struct("Kv", ("kind", i32), *pointers("k", "v", "offsets", "lengths", "page_table", "prefix_table"),
            ("max_length", i64))
Options = struct("Options", ("mask", ctypes.c_char_p), ("score", ctypes.c_char_p), *pointers("arrays"),
                 ("array_count", size), *pointers("params"), ("param_count", size), ("align", i32),
                 *pointers("q_origin", "k_origin"), ("scale", ctypes.c_double), *pointers("sink"),
                 ("dropout", ctypes.c_double), ("seed", ctypes.c_uint64),
                 *[(name, i32) for name in ("determinism", "out_dtype", "partial", "max_logit",
                                            "key_mass", "backend", "compile_never", "threads")],
                 *pointers("stream", "mask_plan"))
Outputs = struct("Outputs", *pointers("o", "lse", "max_logit", "key_mass"))
Gradients = struct("Gradients", *pointers("q", "k", "v", "sink", "captured"), ("captured_count", size),
                   *pointers("dlse"))


class Library:
    def __init__(self, path):
        self.door = ctypes.CDLL(str(path))
        self.door.undivided_last_error.restype = ctypes.c_char_p
        for name in ("commit", "compiler"):
            getattr(self.door, f"undivided_bench_{name}").restype = ctypes.c_char_p
        for name in ("fma_peak", "bf16_peak"):
            getattr(self.door, f"undivided_bench_{name}").restype = ctypes.c_double

    def call(self, name, *arguments):
        if getattr(self.door, f"undivided_{name}")(*map(ctypes.byref, arguments)):
            raise RuntimeError(self.door.undivided_last_error().decode())

    def text(self, name):
        return getattr(self.door, f"undivided_bench_{name}")().decode()

    def number(self, name):
        return getattr(self.door, f"undivided_bench_{name}")()


class Ours:
    """The calls of one problem, with every struct kept alive."""

    def __init__(self, library, q, k, v, dout, causal):
        self.library, self.keep = library, [q, k, v, dout]
        self.o, self.dq, self.dk, self.dv = (torch.empty_like(x) for x in (q, q, k, v))
        lse = torch.empty(q.shape[:3], dtype=torch.float32)
        q, k, v, dout, o, self.lse, dq, dk, dv = map(
            self.view, (q, k, v, dout, self.o, lse, self.dq, self.dk, self.dv))
        self.rows, self.drows = Rows(data=self.at(q)), Rows(data=self.at(dout))
        self.kv = Kv(k=self.at(k), v=self.at(v))
        self.options = Options(mask=b"k <= q" if causal else None, align=1, backend=2, threads=1)
        self.outputs = Outputs(o=self.at(o), lse=self.at(self.lse))
        self.gradients = Gradients(q=self.at(dq), k=self.at(dk), v=self.at(dv))
        self.o_view = o

    def at(self, value):
        self.keep.append(value)
        return ctypes.addressof(value)

    def view(self, tensor):
        self.keep.append(tensor)
        code = next(c for d, c in DTYPES.values() if d == tensor.dtype)
        return View(data=tensor.data_ptr(), dtype=code, rank=tensor.dim(), shape=(i64 * 4)(*tensor.shape))

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
