# SPDX-License-Identifier: Apache-2.0
"""One picture per head dim from the results of bench/gpu_peers.py: rate over length, a line a contender."""

import html
import math
from pathlib import Path

PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, GAP_X, GAP_Y = 330, 200, 56, 52, 40, 54
COLOURS = {"undivided": "#1b6ca8", "cudnn": "#c7522a", "fa4": "#3a7d44", "gemm": "#888888"}
NAMES = {"undivided": "undivided", "cudnn": "cuDNN (PyTorch)", "fa4": "FlashAttention-4",
         "gemm": "bf16 GEMM 8192, same minute"}


def nice_step(top):
    ten = 10 ** math.floor(math.log10(top / 4))
    return next(m * ten for m in (1, 2, 2.5, 5, 10) if m * ten >= top / 4)


def text(x, y, words, size=12, anchor="middle", colour="#222"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">'
            f"{html.escape(words)}</text>")


def panel(x0, y0, title, lines):
    """lines: contender -> [(length, TFLOP/s)]."""
    lengths = sorted({n for points in lines.values() for n, _ in points})
    top = 1.1 * max(rate for points in lines.values() for _, rate in points)

    def at(n, rate):
        part = lengths.index(n) / max(1, len(lengths) - 1)
        return x0 + part * PANEL_WIDTH, y0 + PANEL_HEIGHT * (1 - rate / top)

    out = [text(x0 + PANEL_WIDTH / 2, y0 - 8, title, 13)]
    step = nice_step(top)
    for i in range(int(top / step) + 1):
        y = at(lengths[0], i * step)[1]
        out.append(f'<line x1="{x0}" x2="{x0 + PANEL_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e4e4"/>')
        out.append(text(x0 - 6, y + 4, f"{i * step:g}", anchor="end"))
    for n in lengths:
        out.append(text(at(n, 0)[0], y0 + PANEL_HEIGHT + 16, f"{n // 1024}k" if n >= 1024 else str(n)))
    for contender, points in lines.items():
        colour, places = COLOURS[contender], [at(*p) for p in sorted(points)]
        dashes = ' stroke-dasharray="5 4"' if contender == "gemm" else ""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
        if contender != "gemm":
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    return out


def svg_of(result, d):
    """The picture of one head dim, or None if no row of the grid has it."""
    rows = [r for r in result["rows"] if r["kind"] == "grid" and r["d"] == d and r["rates"]]
    if not rows:
        return None
    width, height = 2 * PANEL_WIDTH + LEFT + GAP_X + 24, 2 * PANEL_HEIGHT + TOP + GAP_Y + 70
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
           f'height="{height}" font-family="sans-serif">',
           f'<rect width="{width}" height="{height}" fill="white"/>',
           text(LEFT, 20, f"Head dim {d}, bf16, 16k tokens: TFLOP/s over length, {result['card']}", 15,
                "start")]
    shown = set()
    for column, mask in enumerate(("full", "causal")):
        for line, direction in enumerate(("forward", "backward")):
            lines = {}
            for row in rows:
                if row["mask"] != mask or row["direction"] != direction:
                    continue
                rates = dict(row["rates"], gemm=row["gemm_tflops"])
                for contender in COLOURS:
                    if rates.get(contender):
                        lines.setdefault(contender, []).append((row["length"], rates[contender]))
            if lines:
                shown |= lines.keys()
                out += panel(LEFT + column * (PANEL_WIDTH + GAP_X), TOP + line * (PANEL_HEIGHT + GAP_Y),
                             f"{direction}, {mask}", lines)
    x = LEFT
    for contender in COLOURS:
        if contender in shown:
            out.append(text(x, height - 14, NAMES[contender], 13, "start", COLOURS[contender]))
            x += 9 * len(NAMES[contender]) + 12
    return "\n".join(out + ["</svg>\n"])


def draw(result, folder):
    """Writes gpu_d<dim>.svg for every head dim of the grid; the paths."""
    paths = []
    for d in sorted({r["d"] for r in result["rows"]}):
        picture = svg_of(result, d)
        if picture:
            path = Path(folder) / f"gpu_d{d}.svg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(picture)
            paths.append(path)
    return paths
