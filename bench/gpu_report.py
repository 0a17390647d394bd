# SPDX-License-Identifier: Apache-2.0
"""How bench/gpu_peers.py times contenders, and the form of its results."""

import math
import statistics


def in_turns(functions, timer, rounds=5, target=4e-3, most=20):
    """Median seconds of a call of each function. `timer(function, calls)` gives the seconds of a burst."""
    calls = {}
    for name, function in functions.items():
        timer(function, 1)  # compiles and warms
        calls[name] = max(2, min(most, math.ceil(target / max(1e-7, timer(function, 2) / 2))))
    times = {name: [] for name in functions}
    for turn in range(rounds):
        order = list(functions)
        for name in order[turn % len(order):] + order[:turn % len(order)]:
            times[name].append(timer(functions[name], calls[name]) / calls[name])
    return {name: statistics.median(t) for name, t in times.items()}


def report(row, direction, seconds, errors, refused, gemm, flops=None):
    """One object of the results; `seconds`, `errors`, `refused` by contender."""
    flops = flops or {}
    rates = {name: flops.get(name, row.flop(direction)) / s * 1e-12 for name, s in seconds.items()}
    peers = [rates[p] for p in ("cudnn", "fa4") if p in rates]
    ours = rates.get("undivided")
    out = {"name": row.name, "kind": row.kind, "direction": direction, "dtype": "bf16",
           "batch": row.batch, "heads": row.heads, "kv_heads": row.kv_heads, "length": row.length,
           "d": row.d, "dv": row.dv, "mask": row.mask, "score": row.score,
           "flop": row.flop(direction), "seconds": seconds, "rates": rates, "errors": errors,
           "refused": refused, "gemm_tflops": gemm}
    if ours and peers and row.kind != "deterministic":
        out["of_best_peer"] = ours / max(peers)
    if ours and "dense" in rates:
        out["of_dense"] = ours / rates["dense"]
        if row.kind == "mask":
            out["of_dense_by_tiles"] = out["of_dense"] * row.flop(direction, tiles=True) / row.flop(direction)
    if ours and "flex" in rates:
        out["of_flex"] = ours / rates["flex"]
    if ours and "reproducible" in rates:
        out["reproducible_of_fast"] = rates["reproducible"] / ours
    return out


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def summary(rows):
    """Geometric means and the lowest row of each kind and direction, over the better peer."""
    out = {}
    for row in rows:
        if "of_best_peer" in row:
            out.setdefault(f"{row['kind']} {row['direction']}", []).append(row["of_best_peer"])
    return {key: {"rows": len(r), "geometric_mean": geometric_mean(r), "lowest": min(r)}
            for key, r in out.items()}


def line_of(result):
    rates = "".join(f"{name} {rate:.0f}  " for name, rate in result["rates"].items())
    ratios = "".join(f"  {key} {result[key]:.3f}" for key in
                     ("of_best_peer", "of_dense", "of_dense_by_tiles", "of_flex", "reproducible_of_fast")
                     if key in result)
    return f"{result['direction']:8} {result['name']:52} {rates}{ratios}"
