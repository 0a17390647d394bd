# SPDX-License-Identifier: Apache-2.0
"""What the commands beside attend promise: JSON shapes, refusals, pages, help."""

import json
import re

import numpy as np
import pytest

from cli_support import ROOT, done, refused, run


def mask_json(*words):
    return json.loads(done("mask", *words, "--json").stdout)


def test_mask_counts(tmp_path):
    got = mask_json("--name", "causal()", "--q-len", 200, "--k-len", 200)
    seconds = got.pop("seconds")
    assert 0 <= seconds < 60
    assert got == {"q_len": 200, "k_len": 200, "block": 64, "empty": 6, "partial": 4, "full": 6,
                   "kept_pairs": 200 * 201 // 2, "rows_without_key": 0}
    same = mask_json("--mask", "k <= q", "--q-len", 200, "--k-len", 200, "--heads", 3)
    assert same["kept_pairs"] == 3 * got["kept_pairs"] and same["full"] == 18
    assert mask_json("--name", "window(5, 0)", "--q-len", 1, "--k-len", 90, "--align", "end")["kept_pairs"] == 6
    assert mask_json("--mask", "k > q", "--q-len", 9, "--k-len", 9)["rows_without_key"] == 1
    doc = np.repeat([3, 1, 2], [100, 80, 70])
    np.save(tmp_path / "doc.npy", doc)
    words = ["--array", f"doc={tmp_path / 'doc.npy'}", "--q-len", 250, "--k-len", 250]
    keep = (doc[:, None] == doc[None]) & (np.arange(250)[None] <= np.arange(250)[:, None])
    by_name = mask_json("--name", "documents(doc) && causal()", *words)
    assert by_name["kept_pairs"] == keep.sum()
    blocks = [keep[i : i + 64, j : j + 64] for i in range(0, 250, 64) for j in range(0, 250, 64)]
    assert by_name["full"] == sum(b.all() for b in blocks)
    assert by_name["empty"] == sum(not b.any() for b in blocks)


def test_mask_reads_columns_and_trees(tmp_path):
    size = ["--q-len", 200, "--k-len", 200]
    j = np.arange(200, dtype=np.int32)
    np.save(tmp_path / "window.npy", (j + 30)[None, :, None])  # rows below j + 30
    got = mask_json("--name", "flashmask(c, causal)", "--array", f"c={tmp_path}/window.npy", *size)
    assert got["kept_pairs"] == mask_json("--name", "window(29, 0)", *size)["kept_pairs"]
    heads = np.stack([np.stack([np.full(200, e), np.zeros(200)], -1) for e in (200, 50)]).astype(np.int32)
    np.save(tmp_path / "heads.npy", heads)
    got = mask_json("--name", "flashmask(c)", "--array", f"c={tmp_path}/heads.npy", "--heads", 2, *size)
    assert got["kept_pairs"] == 200 * 200 + 50 * 200
    np.save(tmp_path / "chain.npy", j - 1)
    got = mask_json("--name", "tree(p)", "--array", f"p={tmp_path}/chain.npy", *size)
    assert got["kept_pairs"] == 200 * 201 // 2
    wrong = ["--array", f"c={tmp_path}/window.npy", *size]
    assert "causal = false" in refused("mask", "--name", "flashmask(c)", *wrong)
    assert "'causal'" in refused("mask", "--name", "flashmask(c, cauzal)", *wrong)
    assert "no array 'd'" in refused("mask", "--name", "flashmask(d)", *wrong)
    assert "does not read c" in refused("mask", "--name", "causal()", *wrong)


def test_the_gallery_is_up_to_date(tmp_path):
    done("mask", "--gallery", tmp_path)
    page = (tmp_path / "guide" / "gallery.md").read_text()
    assert page == (ROOT / "docs" / "guide" / "gallery.md").read_text(), "run make gallery"
    named = set(re.findall(r"pictures/gallery/([\w-]+\.png)", page))
    for folder in (tmp_path / "pictures" / "gallery", ROOT / "docs" / "pictures" / "gallery"):
        pictures = list(folder.iterdir())
        assert {p.name for p in pictures} == named
        assert sum(p.stat().st_size for p in pictures) < 500_000


def test_mask_pictures(tmp_path):
    out = done("mask", "--name", "window(2, 0)", "--q-len", 8, "--k-len", 8, "--png", tmp_path / "m.png").stdout
    rows = out.split("\n")[1:9]
    assert rows[0].startswith("##.") and rows[7] == ". . . . . ######"
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert "window(LEFT, RIGHT)" in done("mask", "--list").stdout


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--name", "windwo(3)", "--q-len", 8, "--k-len", 8], "nearest: window"),
        (["--name", "window(x)", "--q-len", 8, "--k-len", 8], "whole number"),
        (["--name", "causal()", "--q-len", 8], "--k-len"),
        (["--name", "causal()", "--q-len", 8, "--k-len", 9], "--align"),
        (["--q-len", 8, "--k-len", 9], "--mask"),
        (["--name", "causal()", "--q-len", 8, "--k-len", 8, "--png", "m.gif"], ".png"),
    ],
)
def test_mask_refusals(words, expected):
    assert expected in refused("mask", *words)


def test_explain_and_info():
    got = json.loads(done("explain", "--shape", "1,8,2,256,256,64,64", "--mask", "k <= q", "--json").stdout)
    assert {"backend", "kernel", "tiles", "splits", "determinism", "flops", "bytes", "floor_seconds", "workspace",
            "refused"} <= set(got)
    assert got["backend"] == "cpu"
    assert all(set(r) == {"backend", "reason", "limit", "got"} for r in got["refused"])
    assert "--shape" in refused("explain", "--shape", "1,2,3")
    info = json.loads(done("info", "--json").stdout)
    assert set(info) == {"version", "commit", "compiler", "cpu", "isa", "threads", "gpus", "nvrtc"}
    assert "scalar" in info["isa"] and info["threads"] >= 1


def test_bench_rows():
    out = done("bench", "cpu", "--filter", "^decode f32 d64 .* causal$", "--seconds", "0.01", "--json").stdout
    row = json.loads(out)
    assert {"name", "backend", "direction", "dtype", "batch", "heads", "kv_heads", "q_len", "k_len", "d", "dv",
            "mask", "score", "threads", "seconds", "flops", "gflops", "peak_gflops", "of_peak",
            "machine"} <= set(row)
    pairs = row["batch"] * row["heads"] * row["q_len"] * row["k_len"]
    assert row["flops"] == 2 * pairs * (row["d"] + row["dv"])
    assert row["gflops"] == pytest.approx(row["flops"] / row["seconds"] * 1e-9)
    assert row["of_peak"] == pytest.approx(row["gflops"] / row["peak_gflops"])
    assert "--list" in refused("bench", "--filter", "no such row")


def test_check_takes_a_few_cases_of_the_grid():
    few = done("check", "--some", 7, "--list").stdout.splitlines()
    every = done("check", "--list").stdout.splitlines()
    assert len(set(few)) == 7 and set(few) < set(every)
    assert "exclude each other" in refused("check", "--some", 7, "--all")


def test_check_runs_one_case():
    names = done("check", "--filter", "^forward.f32.d8", "--list").stdout.split("\n")
    name = next(n for n in names if "isa=" not in n or "isa=scalar" in n)  # others may be skipped here
    result = json.loads(done("check", name, "--json").stdout)
    assert {"name", "backend", "kernel", "passed", "skipped", "reason", "max_abs", "limit", "relative_l1", "gain",
            "bias"} <= set(result)
    assert result["name"] == name and result["passed"]
    refused("check", "sideways.f32")


def test_demo_writes_a_page_that_needs_nothing(tmp_path):
    result = done("demo", "--heads", 2, "--tokens", 100, "--dim", 8, "--json", "--report", tmp_path / "r.html")
    rows = [json.loads(line) for line in result.stdout.strip().split("\n")]
    forms = {r["form"] for r in rows}
    assert {"MHA", "GQA", "MQA", "causal", "window", "documents", "ALiBi", "softcap", "ragged", "paged", "dropout",
            "backward", "diff", "fastformer", "chunked", "sparse"} <= forms
    assert all(r["passed"] for r in rows) and len({r["input"] for r in rows}) == 2
    page = (tmp_path / "r.html").read_text()
    assert page.count("data:image/png;base64,") >= 3 and "<svg" in page
    assert not re.search(r'(src|href)="(?!data:)', page) and str(ROOT) not in page


@pytest.mark.parametrize(
    "command",
    ["demo", "attend", "check", "bench", "mask", "explain", "info", "train", "translate", "convert"],
)
def test_help_shows_examples(command):
    assert "examples:" in done(command, "--help").stdout
    message = refused(command, "--jsno")
    assert "--json" in message
