# SPDX-License-Identifier: Apache-2.0
"""Rows of bench/gpu_peers.py: shapes, masks, scores, and their FLOP as the FlashAttention papers count.

Forward: 2 (d + dv) a pair, backward: 2 (3 d + 2 dv), which is 2.5 times as much when d = dv. Causal
rows of the papers' grid count half of all pairs, as the papers do; other masks count kept pairs.
Every mask here keeps one run of keys a query.
"""

import functools
import random
from dataclasses import dataclass

TOKENS, WIDTH = 16384, 2048  # of the grid: tokens in all, heads times head dim
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
BLOCK = 64  # queries and keys of a tile, where tiles are counted

# name -> (text of the mask, first and one past the last key that query i of n keeps)
MASKS = {
    "full": (None, lambda i, n: (0, n)),
    "causal": ("k <= q", lambda i, n: (0, i + 1)),
    "window 128": ("k <= q && q - k < 128", lambda i, n: (max(0, i - 127), i + 1)),
    "window 1024": ("k <= q && q - k < 1024", lambda i, n: (max(0, i - 1023), i + 1)),
    "documents 1024": ("k <= q && q / 1024 == k / 1024", lambda i, n: (i // 1024 * 1024, i + 1)),
    "prefix 2048": ("k < 2048 || k <= q", lambda i, n: (0, min(n, max(2048, i + 1)))),
}
BANDS = {"full", "causal", "window 128", "window 1024"}
SCORES = {"identity": None, "alibi": "score + slope[head] * (k - q)", "softcap": "20 * tanh(score / 20)"}


@dataclass(frozen=True)
class Row:
    kind: str  # grid, model, mask, ragged, deterministic
    batch: int
    heads: int
    kv_heads: int
    length: int
    d: int
    dv: int
    mask: str = "full"
    score: str = "identity"
    lengths: tuple = ()  # ragged: of each sequence; `length` is the longest

    @property
    def name(self):
        heads = f"{self.heads}/{self.kv_heads}" if self.heads != self.kv_heads else f"{self.heads}"
        dim = f"d{self.d}" if self.d == self.dv else f"d{self.d}/{self.dv}"
        shape = f"{len(self.lengths)} sequences" if self.lengths else f"n{self.length}"
        score = "" if self.score == "identity" else f" {self.score}"
        return f"{self.kind} {dim} {shape} h{heads} b{self.batch} {self.mask}{score}"

    @property
    def sequences(self):
        return self.lengths or (self.length,) * self.batch

    def pairs(self):
        """Pairs of one query head, over all sequences."""
        if self.kind == "grid" and self.mask == "causal":
            return sum(n * n for n in self.sequences) / 2
        return sum(kept_pairs(self.mask, n) for n in self.sequences)

    def tile_pairs(self):
        """Pairs in tiles of 64 x 64 that keep a pair: what a kernel cannot skip."""
        return sum(kept_tiles(self.mask, n) for n in self.sequences) * BLOCK * BLOCK

    def flop(self, direction, tiles=False):
        dims = self.d + self.dv if direction == "forward" else 3 * self.d + 2 * self.dv
        return 2.0 * self.heads * (self.tile_pairs() if tiles else self.pairs()) * dims


@functools.lru_cache(None)
def kept_pairs(mask, n):
    run = MASKS[mask][1]
    return sum(end - begin for begin, end in (run(i, n) for i in range(n)))


@functools.lru_cache(None)
def kept_tiles(mask, n):
    run, tiles = MASKS[mask][1], 0
    for first in range(0, n, BLOCK):
        touched = set()
        for i in (first, min(first + BLOCK, n) - 1):  # runs only grow or move between these two
            begin, end = run(i, n)
            touched.update(range(begin // BLOCK, (end - 1) // BLOCK + 1))
        tiles += max(touched) - min(touched) + 1
    return tiles


def lognormal_lengths(count, total, seed=7):
    """`count` lengths of lognormal distribution (sigma 1), at least 16, that sum to `total`."""
    draw = random.Random(seed)
    raw = [draw.lognormvariate(0, 1) for _ in range(count)]
    lengths = [max(16, int(x * total / sum(raw))) for x in raw]
    lengths[lengths.index(max(lengths))] += total - sum(lengths)
    return tuple(lengths)


def equal_dense(row):
    """The dense row of about as many tokens and FLOP: its length weighs sequences by their tokens."""
    total = sum(row.lengths)
    length = max(64, round(sum(n * n for n in row.lengths) / total / 64) * 64)
    return Row("dense", max(1, round(total / length)), row.heads, row.kv_heads, length, row.d, row.dv,
               row.mask)


def all_rows():
    rows = []
    for d in (128, 64, 256):
        for mask in ("causal", "full"):
            for n in LENGTHS:
                rows.append(Row("grid", max(1, TOKENS // n), WIDTH // d, WIDTH // d, n, d, d, mask))
    rows += [
        Row("model", 1, 64, 8, 8192, 128, 128, "causal"),
        Row("model", 1, 64, 8, 8192, 128, 128),
        Row("model", 1, 32, 2, 16384, 256, 256, "causal"),
        Row("model", 1, 128, 128, 8192, 192, 128),
        Row("model", 1, 64, 8, 8192, 64, 64, "window 128"),
    ]
    rows += [Row("mask", 2, 16, 16, 8192, 128, 128, mask, score) for mask, score in (
        ("causal", "alibi"), ("causal", "softcap"), ("window 1024", "identity"),
        ("documents 1024", "identity"), ("prefix 2048", "identity"))]
    lengths = lognormal_lengths(64, 2 * TOKENS)
    rows += [Row("ragged", 64, 16, 16, max(lengths), 128, 128, mask, lengths=lengths)
             for mask in ("full", "causal")]
    rows += [Row("deterministic", max(1, TOKENS // n), WIDTH // d, WIDTH // d, n, d, d, "causal")
             for d in (128, 256) for n in (8192, 16384)]
    return rows


QUICK = {512, 2048, 8192}


def chosen_rows(which="all", dims=None, masks=None, kinds=None):
    """Rows by the options of the command line. quick: three lengths of the grid and the other kinds."""
    rows = [r for r in all_rows() if which == "all" or r.kind != "grid" or r.length in QUICK]
    return [r for r in rows if (not dims or r.d in dims) and (not masks or r.mask in masks) and
            (not kinds or r.kind in kinds)]


def blocks(rows):
    """Runs of rows that share kind, head dim and mask: a GEMM rate is taken before each."""
    out = []
    for row in rows:
        key = (row.kind, row.d, row.dv, row.mask if row.kind == "grid" else "")
        if not out or out[-1][0] != key:
            out.append((key, []))
        out[-1][1].append(row)
    return [rows for _, rows in out]
