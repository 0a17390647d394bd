# SPDX-License-Identifier: Apache-2.0
"""What bench/gpu_peers.py measures and how it counts, without a GPU: rows, FLOP, the form of results,
pictures; and, where PyTorch and the bench library are, that a wrong result is not timed."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
import gpu_chart  # noqa: E402
import gpu_report  # noqa: E402
import gpu_rows  # noqa: E402
from gpu_rows import Row  # noqa: E402

LIBRARY = ROOT / "build/release/bench/libbench_library.so"


def test_the_grid_is_that_of_the_papers():
    grid = [r for r in gpu_rows.all_rows() if r.kind == "grid"]
    assert len(grid) == 36 == len(set(grid))
    assert {(r.d, r.length, r.mask) for r in grid} == {
        (d, n, m) for d in (64, 128, 256) for n in gpu_rows.LENGTHS for m in ("full", "causal")}
    assert all(r.batch * r.length == 16384 and r.heads * r.d == 2048 for r in grid)
    names = [r.name for r in gpu_rows.all_rows()]
    assert len(names) == len(set(names))


def test_flop_are_counted_as_the_papers_do():
    full = Row("grid", 2, 16, 16, 8192, 128, 128)
    assert full.flop("forward") == 4 * 2 * 16 * 8192**2 * 128
    assert full.flop("backward") == 2.5 * full.flop("forward")
    causal = Row("grid", 2, 16, 16, 8192, 128, 128, "causal")
    assert causal.flop("forward") == full.flop("forward") / 2
    assert Row("model", 1, 128, 128, 64, 192, 128).flop("forward") == 128 * 64**2 * 2 * (192 + 128)


@pytest.mark.parametrize("mask", sorted(gpu_rows.MASKS))
@pytest.mark.parametrize("n", [64, 1000, 3072])
def test_kept_pairs_and_tiles_are_those_of_the_mask(mask, n):
    keeps = {"full": lambda q, k: True, "causal": lambda q, k: k <= q,
             "window 128": lambda q, k: k <= q and q - k < 128,
             "window 1024": lambda q, k: k <= q and q - k < 1024,
             "documents 1024": lambda q, k: k <= q and q // 1024 == k // 1024,
             "prefix 2048": lambda q, k: k < 2048 or k <= q}[mask]
    run = gpu_rows.MASKS[mask][1]
    for q in range(0, n, 37):
        begin, end = run(q, n)
        assert [k for k in range(n) if keeps(q, k)] == list(range(begin, end))
    tiles = {(q // 64, k // 64) for q in range(n) for k in (*range(*run(q, n), 64), run(q, n)[1] - 1)}
    assert gpu_rows.kept_tiles(mask, n) == len(tiles)
    assert gpu_rows.kept_pairs(mask, n) <= gpu_rows.kept_tiles(mask, n) * 64 * 64


def test_ragged_lengths_fill_the_tokens_and_their_dense_row_costs_the_same():
    ragged = next(r for r in gpu_rows.all_rows() if r.kind == "ragged")
    assert len(ragged.lengths) == 64 and sum(ragged.lengths) == 32768 and min(ragged.lengths) >= 16
    dense = gpu_rows.equal_dense(ragged)
    assert 0.8 < dense.flop("forward") / ragged.flop("forward") < 1.25


def test_options_choose_rows():
    chosen = gpu_rows.chosen_rows("quick", [64], ["causal"], ["grid"])
    assert [r.length for r in chosen] == [512, 2048, 8192]
    assert len(gpu_rows.chosen_rows("all")) == len(gpu_rows.all_rows())
    for block in gpu_rows.blocks(gpu_rows.all_rows()):
        assert len({(r.kind, r.d) for r in block}) == 1
    assert sum(map(len, gpu_rows.blocks(gpu_rows.all_rows()))) == len(gpu_rows.all_rows())


def test_contenders_take_turns_and_the_median_counts():
    order = []
    seconds = {"a": 1e-3, "b": 2e-3}

    def timer(function, calls):
        order.append(function)
        return calls * seconds[function]

    found = gpu_report.in_turns({"a": "a", "b": "b"}, timer, rounds=3)
    assert found == pytest.approx(seconds)
    assert order[-6:] == ["a", "b", "b", "a", "a", "b"]


def result_of(row, direction, ours, peer):
    flop = row.flop(direction) * 1e-12
    return gpu_report.report(row, direction, {"undivided": flop / ours, "cudnn": flop / peer},
                             {"undivided": 2e-3, "cudnn": 2e-3}, {"fa4": "not installed"}, 700.0)


def test_results_have_rates_ratios_and_a_summary():
    rows = [r for r in gpu_rows.all_rows() if r.kind == "grid"]
    results = [result_of(r, "forward", 600 if r.mask == "full" else 500, 500) for r in rows]
    assert results[0]["of_best_peer"] == pytest.approx(1.0)
    assert results[-1]["rates"]["undivided"] == pytest.approx(600)
    found = gpu_report.summary(results)["grid forward"]
    assert found["rows"] == 36 and found["lowest"] == pytest.approx(1.0)
    assert found["geometric_mean"] == pytest.approx(1.2**0.5)
    assert json.loads(json.dumps(results)) == results


def test_a_mask_is_measured_by_the_tiles_that_it_keeps():
    row = next(r for r in gpu_rows.all_rows() if r.mask == "window 1024")
    pairs, dense = row.flop("forward"), Row("dense", 2, 16, 16, 8192, 128, 128).flop("forward")
    result = gpu_report.report(row, "forward", {"undivided": pairs / 4e14, "dense": dense / 5e14}, {}, {},
                               700.0, {"dense": dense})
    assert result["of_dense"] == pytest.approx(0.8)
    assert 0.8 < result["of_dense_by_tiles"] < 0.9


def test_a_picture_for_each_head_dim(tmp_path):
    rows = [r for r in gpu_rows.all_rows() if r.kind == "grid"]
    results = [result_of(r, d, 600, 500) for r in rows for d in ("forward", "backward")]
    paths = gpu_chart.draw({"card": "a card <1>", "rows": results}, tmp_path)
    assert [p.name for p in paths] == ["gpu_d64.svg", "gpu_d128.svg", "gpu_d256.svg"]
    for path in paths:
        root = xml.parse(path).getroot()
        lines = root.findall("{http://www.w3.org/2000/svg}polyline")
        assert len(lines) == 4 * 3  # four panels of undivided, cuDNN and the GEMM
        for line in lines:
            assert all(0 <= float(x) <= 800 for x in re.findall(r"[\d.]+", line.get("points")))


def test_the_list_needs_no_gpu():
    program = [sys.executable, str(ROOT / "bench/gpu_peers.py")]
    listed = subprocess.run([*program, "--list", "--rows", "all"], capture_output=True, text=True, check=True)
    assert listed.stdout.splitlines() == [r.name for r in gpu_rows.all_rows()]
    wrong = subprocess.run([*program, "--filter", "no such row"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "no row matches" in wrong.stderr


@pytest.fixture(scope="module")
def contenders():
    pytest.importorskip("torch", reason="no PyTorch")
    if not LIBRARY.exists():
        pytest.skip("no bench_library: tools/build release bench_library makes it")
    import gpu_contenders
    return gpu_contenders


@pytest.mark.parametrize("mask, score", [
    ("full", "identity"), ("causal", "alibi"), ("causal", "softcap"), ("window 128", "identity"),
    ("documents 1024", "identity"), ("prefix 2048", "identity"), ("ragged", "identity")])
def test_results_are_compared_with_float32_before_they_are_timed(contenders, mask, score):
    lengths = (300, 64, 129) if mask == "ragged" else ()
    n, mask = (300, "causal") if lengths else (1100 if "0" in mask else 200, mask)
    row = Row("mask", 3 if lengths else 2, 4, 2, n, 32, 32, mask, score, lengths)
    data = contenders.Data(row, "bshd", "cpu")
    made = {"undivided": contenders.Ours(contenders.door.Library(LIBRARY), data)}
    bench = contenders.Bench.__new__(contenders.Bench)
    errors, refused = bench.errors(data, made, ["forward", "backward"])
    assert refused == {"forward": {}, "backward": {}}
    assert 0 < errors["forward"]["undivided"] < 1e-2 and 0 < errors["backward"]["undivided"] < 2e-2
    right = made["undivided"].forward
    made["undivided"].forward = lambda: right() * 1.02
    errors, refused = bench.errors(data, made, ["forward", "backward"])
    assert "undivided" not in errors["forward"] and "undivided" in errors["backward"]
    assert refused["forward"]["undivided"].startswith("wrong: forward")


@pytest.mark.parametrize("kind", ["mask", "ragged", "deterministic"])
def test_a_row_is_measured_in_both_directions(contenders, monkeypatch, kind):
    lengths = (200, 64, 129) if kind == "ragged" else ()
    row = Row(kind, 3 if lengths else 2, 2, 2, 200, 32, 32, "causal", "identity", lengths)
    data = contenders.Data
    monkeypatch.setattr(contenders, "Data", lambda row, layout: data(row, layout, "cpu"))
    bench = contenders.Bench.__new__(contenders.Bench)
    bench.library, bench.layout, bench.with_flex = contenders.door.Library(LIBRARY), "bhsd", False
    bench.without, bench.timer = {"cudnn"}, lambda function, calls: function() is None or calls * 1e-3
    results = bench.measure(row, ["forward", "backward"], 2, 700.0)
    assert [r["direction"] for r in results] == ["forward", "backward"]
    beside = {"mask": "dense", "ragged": "dense", "deterministic": "reproducible"}[kind]
    for result in results:
        assert result["rates"].keys() == {"undivided", beside} and result["kernel"]
        assert result["refused"]["fa4"].startswith("not installed")
        assert {"mask": "of_dense_by_tiles", "ragged": "of_dense",
                "deterministic": "reproducible_of_fast"}[kind] in result
    assert json.loads(json.dumps(results)) == results
