# SPDX-License-Identifier: Apache-2.0
"""The command line tool as tests call it.

UNDIVIDED_CLI names the program; without it the builds of this tree are looked at.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data" / "minilm_layer3.safetensors"


def find_program():
    named = os.environ.get("UNDIVIDED_CLI")
    places = [Path(named)] if named else [ROOT / "build" / p / "undivided" for p in ("release", "dev")]
    for place in places:
        if place.exists():
            return str(place)
    pytest.fail("the program is not built; build it or set UNDIVIDED_CLI")


def run(*words, **options):
    return subprocess.run(
        [find_program(), *map(str, words)], capture_output=True, text=True, timeout=120, **options
    )


def done(*words, **options):
    result = run(*words, **options)
    assert result.returncode == 0, result.stderr
    return result


def refused(*words, code=2, **options):
    """The message of a failure: one line, no trace."""
    result = run(*words, **options)
    assert result.returncode == code, (result.returncode, result.stdout, result.stderr)
    lines = result.stderr.strip().split("\n")
    assert len(lines) == 1 and lines[0].startswith("undivided: "), result.stderr
    return lines[0]


def softmax_attention(q, k, v, keep, scale=None):
    """Float64, [heads, tokens, dim]; keep is [q, k]."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    group = q.shape[0] // k.shape[0]
    k, v = np.repeat(k, group, 0), np.repeat(v, group, 0)
    s = np.einsum("hqd,hkd->hqk", q, k) * (scale or q.shape[-1] ** -0.5)
    s = np.where(keep, s, -np.inf)
    m = s.max(-1, keepdims=True)
    m = np.where(np.isfinite(m), m, 0)
    p = np.exp(s - m)
    total = p.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        o = np.where(total > 0, p / total, 0) @ v
        lse = np.log(total[..., 0]) + m[..., 0]
    return o, lse


@pytest.fixture
def qkv(tmp_path):
    random = np.random.default_rng(5)
    q = random.standard_normal((4, 70, 16)).astype(np.float32)
    k = random.standard_normal((2, 90, 16)).astype(np.float32)
    v = random.standard_normal((2, 90, 24)).astype(np.float32)
    for name, x in (("q", q), ("k", k), ("v", v)):
        np.save(tmp_path / f"{name}.npy", x)
    return tmp_path, q, k, v


def flags(folder):
    return ["attend", "--q", folder / "q.npy", "--k", folder / "k.npy", "--v", folder / "v.npy"]
