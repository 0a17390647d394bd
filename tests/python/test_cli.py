# SPDX-License-Identifier: Apache-2.0
"""What `undivided attend` promises: results, refusals, exit codes, whole files or none."""

import json
import os
import signal
import struct
import subprocess
import time

import numpy as np
import pytest

from cli_support import DATA, done, find_program, flags, qkv, refused, run, softmax_attention


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
def test_attend_matches_numpy(qkv, backend):
    folder, q, k, v = qkv
    o, lse = folder / "o.npy", folder / "l.npy"
    done(*flags(folder), "--mask", "k <= q && q - k < 30", "--align", "end", "--backend", backend,
         "--out", o, "--lse", lse)
    i, j = np.arange(70)[:, None] + 20, np.arange(90)[None]
    want, want_lse = softmax_attention(q, k, v, (j <= i) & (i - j < 30))
    got = np.load(o)
    assert got.dtype == np.float32 and got.shape == (4, 70, 24)
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert np.load(lse).shape == (4, 70)
    np.testing.assert_allclose(np.load(lse), want_lse, rtol=1e-5, atol=1e-5)


def test_rows_without_a_key_are_zero(qkv):
    folder, *_ = qkv
    o, lse = folder / "o.npy", folder / "l.npy"
    done(*flags(folder), "--mask", "k < q - 10", "--align", "start", "--out", o, "--lse", lse)
    assert np.all(np.load(o)[:, :11] == 0) and np.all(np.isneginf(np.load(lse)[:, :11]))
    assert np.all(np.load(o)[:, 11] != 0)


def test_captured_arrays_parameters_and_int64(qkv):
    folder, q, k, v = qkv
    doc = np.arange(90) // 13
    np.save(folder / "doc.npy", doc)  # int64
    done(*flags(folder), "--mask", "param w: i32 = 3; doc[q] == doc[k] && k - q <= w", "--param", "w=5",
         "--array", f"doc={folder / 'doc.npy'}", "--align", "start", "--out", folder / "o.npy")
    i, j = np.arange(70)[:, None], np.arange(90)[None]
    want, _ = softmax_attention(q, k, v, (doc[:70, None] == doc[None]) & (j - i <= 5))
    np.testing.assert_allclose(np.load(folder / "o.npy"), want, atol=2e-5)


def test_gradients_are_those_of_finite_differences(qkv):
    folder, q, k, v = qkv
    np.save(folder / "do.npy", np.ones((4, 70, 24), np.float32) * 0.1)
    slope = np.linspace(0.01, 0.1, 4).astype(np.float32)
    np.save(folder / "m.npy", slope)
    score = ["--score", "score + m[head] * (k - q)", "--array", f"m={folder / 'm.npy'}", "--align", "start"]
    out = {name: folder / f"{name}.npy" for name in ("dq", "dk", "dv", "dm")}
    done(*flags(folder), *score, "--out", folder / "o.npy", "--dout", folder / "do.npy", "--dq", out["dq"],
         "--dk", out["dk"], "--dv", out["dv"], "--d-array", f"m={out['dm']}")
    shapes = {"dq": q.shape, "dk": k.shape, "dv": v.shape, "dm": slope.shape}
    for name, shape in shapes.items():
        got = np.load(out[name])
        assert got.shape == shape and got.dtype == np.float32
    distance = np.arange(90)[None] - np.arange(70)[:, None]

    def loss(q, k, v, m):
        group = 2
        s = np.einsum("hqd,hkd->hqk", q, np.repeat(k, group, 0)) / 4 + m[:, None, None] * distance
        p = np.exp(s - s.max(-1, keepdims=True))
        return 0.1 * (p / p.sum(-1, keepdims=True) @ np.repeat(v, group, 0)).sum()

    values = [x.astype(np.float64) for x in (q, k, v, slope)]
    random = np.random.default_rng(1)
    for place, name in enumerate(("dq", "dk", "dv", "dm")):
        direction = random.standard_normal(values[place].shape)
        ends = []
        for sign in (1, -1):
            moved = list(values)
            moved[place] = values[place] + sign * 1e-5 * direction
            ends.append(loss(*moved))
        slope_along = (ends[0] - ends[1]) / 2e-5
        got = float((np.load(out[name]).astype(np.float64) * direction).sum())
        assert abs(got - slope_along) <= 1e-3 * max(1, abs(slope_along)), name


def test_ragged_and_paged_equal_dense(tmp_path):
    random = np.random.default_rng(8)
    lengths = [7, 40, 0, 33]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(offsets[-1])
    q, k, v = (random.standard_normal((total, 2, 8)).astype(np.float32) for _ in range(3))
    for name, x in (("q", q), ("k", k), ("v", v), ("at", offsets)):
        np.save(tmp_path / f"{name}.npy", x)
    done(*flags(tmp_path), "--q-offsets", tmp_path / "at.npy", "--k-offsets", tmp_path / "at.npy",
         "--mask", "k <= q", "--out", tmp_path / "o.npy", "--lse", tmp_path / "l.npy")
    got = np.load(tmp_path / "o.npy")
    assert got.shape == q.shape and np.load(tmp_path / "l.npy").shape == (2, total)
    # The same keys in pages of 16 that lie backwards.
    pages = [-(-n // 16) for n in lengths]
    pool_k, pool_v = (np.full((sum(pages), 2, 16, 8), np.nan, np.float32) for _ in range(2))
    table = np.full((4, max(pages)), -7, np.int32)
    free = sum(pages)
    for b, n in enumerate(lengths):
        here = slice(offsets[b], offsets[b + 1])
        for i in range(pages[b]):
            free -= 1
            table[b, i] = free
            for pool, x in ((pool_k, k), (pool_v, v)):
                part = x[here][i * 16 : (i + 1) * 16].transpose(1, 0, 2)
                pool[free, :, : part.shape[1]] = part
    for name, x in (("pk", pool_k), ("pv", pool_v), ("table", table), ("n", np.array(lengths, np.int32))):
        np.save(tmp_path / f"{name}.npy", x)
    done("attend", "--q", tmp_path / "q.npy", "--q-offsets", tmp_path / "at.npy", "--k", tmp_path / "pk.npy",
         "--v", tmp_path / "pv.npy", "--page-table", tmp_path / "table.npy", "--lengths", tmp_path / "n.npy",
         "--mask", "k <= q", "--out", tmp_path / "p.npy")
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), got, atol=1e-6)
    assert "--page-table and --lengths are needed" in refused(
        "attend", "--q", tmp_path / "q.npy", "--q-offsets", tmp_path / "at.npy", "--k", tmp_path / "pk.npy",
        "--v", tmp_path / "pv.npy", "--prefix-table", tmp_path / "n.npy", "--out", tmp_path / "x.npy")
    for b, n in enumerate(lengths):
        x = [a[offsets[b] : offsets[b + 1]].transpose(1, 0, 2) for a in (q, k, v)]
        if n:
            want, _ = softmax_attention(*x, np.tril(np.ones((n, n), bool)))
            np.testing.assert_allclose(got[offsets[b] : offsets[b + 1]].transpose(1, 0, 2), want, atol=2e-5)


def test_a_shared_prefix_is_the_same_pages_in_every_row_of_the_table(tmp_path):
    rng = np.random.default_rng(5)
    q, k, v = (rng.standard_normal(shape, np.float32) for shape in ((2, 4, 3, 8), (7, 2, 16, 8), (7, 2, 16, 8)))
    whole = np.array([[6, 2, 0, 3], [6, 2, 5, 1]], np.int32)
    arrays = {"q": q, "k": k, "v": v, "whole": whole, "prefix": whole[0, :2], "rest": whole[:, 2:].copy(),
              "n": np.array([60, 41], np.int32)}
    for name, x in arrays.items():
        np.save(tmp_path / f"{name}.npy", x)
    common = ["attend", *(x for name in ("q", "k", "v") for x in (f"--{name}", tmp_path / f"{name}.npy")),
              "--lengths", tmp_path / "n.npy", "--mask", "k <= q", "--align", "end"]
    done(*common, "--page-table", tmp_path / "whole.npy", "--out", tmp_path / "a.npy")
    done(*common, "--page-table", tmp_path / "rest.npy", "--prefix-table", tmp_path / "prefix.npy", "--out",
         tmp_path / "b.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


def test_real_input_from_safetensors(tmp_path):
    name = lambda x: f"{DATA}:{x}"  # noqa: E731
    done("attend", "--q", name("q"), "--k", name("k"), "--v", name("v"), "--out", tmp_path / "o.npy")
    raw = DATA.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    begin, end = json.loads(raw[8 : 8 + size])["o"]["data_offsets"]
    want = np.frombuffer(raw[8 + size + begin : 8 + size + end], np.float32).reshape(1, 12, 327, 32)
    np.testing.assert_allclose(np.load(tmp_path / "o.npy"), want, atol=1e-5 * np.abs(want).max())


def test_element_types_of_inputs_and_outputs(qkv):
    folder, q, *_ = qkv
    done(*flags(folder), "--out", folder / "o.npy")
    exact = np.load(folder / "o.npy")
    done(*flags(folder), "--dtype", "f16", "--out-dtype", "f16", "--out", folder / "h.npy")
    assert np.load(folder / "h.npy").dtype == np.float16
    np.testing.assert_allclose(np.load(folder / "h.npy"), exact, atol=1e-2)
    done(*flags(folder), "--dtype", "bf16", "--out-dtype", "bf16", "--out", f"{folder}/b.safetensors:o")
    raw = (folder / "b.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    assert json.loads(raw[8 : 8 + size])["o"]["dtype"] == "BF16"
    np.save(folder / "q.npy", q.astype(np.float64))
    assert "f64" in refused(*flags(folder), "--out", folder / "x.npy")
    assert ".npy has no bf16" in refused(*flags(folder), "--dtype", "bf16", "--out-dtype", "bf16", "--out",
                                         folder / "x.npy")


def test_dropout_repeats_by_seed(qkv):
    folder, *_ = qkv
    one, two, three = (folder / f"{n}.npy" for n in "123")
    for seed, out, backend in ((4, one, "cpu"), (4, two, "reference"), (5, three, "cpu")):
        done(*flags(folder), "--dropout", "0.3", "--seed", seed, "--align", "start", "--out", out,
             "--backend", backend)
    np.testing.assert_allclose(np.load(one), np.load(two), atol=2e-5)
    assert np.abs(np.load(one) - np.load(three)).max() > 0.01


def test_inside_says_what_decides_single_pairs(tmp_path):
    rng = np.random.default_rng(5)
    q, k, v = (rng.standard_normal((2, 200, 16), dtype=np.float32) for _ in range(3))
    end = rng.integers(0, 200, 200).astype(np.int32)
    for name, value in dict(q=q, k=k, v=v, end=end).items():
        np.save(tmp_path / f"{name}.npy", value)
    keep = np.arange(200)[:, None] < end[None, :]
    where = ("--mask", "q < end[k]", "--array", f"end={tmp_path / 'end.npy'}")
    want, _ = softmax_attention(q, k, v, keep)
    kernels = {}
    for inside in ("automatic", "bits", "program"):
        done(*flags(tmp_path), *where, "--inside", inside, "--out", tmp_path / "o.npy")
        np.testing.assert_allclose(np.load(tmp_path / "o.npy"), want, atol=2e-5)
        explain = ["explain", *flags(tmp_path)[1:], *where, "--inside", inside, "--json"]
        kernels[inside] = json.loads(done(*explain).stdout)["kernel"]
    assert ".plan.inside." in kernels["program"] and kernels["program"] == kernels["automatic"]
    assert ".plan." in kernels["bits"] and ".inside." not in kernels["bits"]
    message = refused(*flags(tmp_path), *where, "--inside", "program,", "--out", tmp_path / "o.npy")
    assert "--inside is 'program,'; allowed: automatic, bits, program; nearest: program" in message


def test_scores_of_int8_and_the_mean_of_k(qkv):
    folder, _, k, _ = qkv
    k = k + np.where(np.arange(16) % 4, 0, 20).astype(np.float32)
    np.save(folder / "k.npy", k)
    done(*flags(folder), "--out", folder / "exact.npy")
    exact = np.load(folder / "exact.npy")

    def error(*words):
        done(*flags(folder), "--precision", *words, "--out", folder / "o.npy")
        return np.abs(np.load(folder / "o.npy") - exact).mean() / np.abs(exact).mean()

    smooth, plain = error("i8/bf16", "--k-mean", "keys"), error("i8/f32")
    assert 1e-5 < smooth < 0.02 and plain > 3 * smooth
    np.save(folder / "mean.npy", k.mean(1))
    assert error("i8/bf16", "--k-mean", folder / "mean.npy") < 1.5 * smooth
    where = ("--out", folder / "x.npy")
    assert "i8/bf16" in refused(*flags(folder), "--precision", "int8", *where)
    assert "precision qk i8" in refused(*flags(folder), "--k-mean", "keys", *where)
    assert "float64" in refused(*flags(folder), "--precision", "i8/f32", "--backend", "reference", *where)
    np.save(folder / "do.npy", exact)
    assert "no backward" in refused(*flags(folder), "--precision", "i8/f32", "--dout", folder / "do.npy",
                                    "--dq", folder / "dq.npy", *where)


# --- refusals -----------------------------------------------------------------------------------
BAD = {
    "missing file": (["--k", "nowhere.npy"], "nowhere.npy"),
    "no equals sign": (["--array", "doc"], "NAME=VALUE"),
    "parse error": (["--mask", "k <= "], "column 6"),
    "unbound array": (["--mask", "doc[q] == doc[k]"], "doc"),
    "unread array": (["--mask", "k <= q", "--array", "doc=q.npy"], "doc"),
    "unread parameter": (["--mask", "k <= q", "--param", "w=3"], "w"),
    "index out of range": (["--mask", "doc[q] == doc[k]", "--array", "doc=short.npy"], "doc"),
    "wrong mask type": (["--mask", "k + q"], "bool"),
    "align missing": (["--mask", "k <= q", "--align", ""], "align"),
    "bad align": (["--align", "ends"], "nearest: end"),
    "bad backend": (["--backend", "gpu"], "cuda"),
    "bad dropout": (["--dropout", "1.5"], "dropout"),
    "bad dtype": (["--dtype", "f8"], "f16"),
    "gradient without dout": (["--dq", "dq.npy"], "--dout"),
    "dout without gradient": (["--dout", "q.npy"], "--dq"),
    "unknown flag": (["--maks", "k <= q"], "--mask"),
    "bare mask": (["k <= q"], "nearest: --mask 'k <= q'"),
    "no such folder": (["--lse", "no/such/l.npy"], "no/such/l.npy"),
    "bad output name": (["--lse", "l.txt"], ".npy"),
    "same output twice": (["--lse", "o.npy"], "o.npy"),
    "truncated file": (["--v", "cut.npy"], "cut.npy"),
    "lying header": (["--v", "lie.npy"], "lie.npy"),
    "text for a number": (["--scale", "big"], "--scale"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(qkv, case):
    folder, *_ = qkv
    np.save(folder / "short.npy", np.arange(8, dtype=np.int32))
    raw = (folder / "v.npy").read_bytes()
    (folder / "cut.npy").write_bytes(raw[:-100])
    (folder / "lie.npy").write_bytes(raw.replace(b"(2, 90, 24), ", b"(2, 90, 9999999999999), ".ljust(13)[:13]))
    before = sorted(os.listdir(folder))
    extra, expected = BAD[case]
    words = ["attend", "--q", "q.npy", "--k", "k.npy", "--v", "v.npy", "--out", "o.npy"]
    if "--align" not in extra and case != "align missing":
        extra = [*extra, "--align", "start"]
    if case == "align missing":
        extra = extra[:2]
    for flag in ("--k", "--v"):
        if flag in extra:
            at = words.index(flag)
            del words[at : at + 2]
    message = refused(*words, *extra, cwd=folder)
    assert expected in message, message
    assert sorted(os.listdir(folder)) == before
    with_json = run(*words, *extra, "--json", cwd=folder)
    assert with_json.returncode == 2
    error = json.loads(with_json.stdout)["error"]
    assert set(error) == {"code", "stage", "message"} and expected in error["message"]


def test_no_gpu_is_said(qkv):
    folder, *_ = qkv
    message = refused(*flags(folder), "--backend", "cuda", "--out", folder / "o.npy",
                      env={**os.environ, "UNDIVIDED_CUDA": "none"})
    assert "cuda" in message.lower() and not (folder / "o.npy").exists()


def test_old_outputs_survive_a_failure(qkv):
    folder, *_ = qkv
    (folder / "o.npy").write_text("precious")
    refused(*flags(folder), "--mask", "k <", "--out", folder / "o.npy")
    assert (folder / "o.npy").read_text() == "precious"


def test_a_full_disk_exits_3_and_leaves_nothing(qkv):
    folder, *_ = qkv
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    (folder / "full.npy").symlink_to("/dev/full")
    refused(*flags(folder), "--out", folder / "o.npy", "--lse", folder / "full.npy", code=3)
    assert not (folder / "o.npy").exists()


def test_an_interrupt_exits_130_and_leaves_nothing(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((8, 6000, 64), np.float32))
    x = tmp_path / "x.npy"
    process = subprocess.Popen([find_program(), "attend", "--q", x, "--k", x, "--v", x, "--backend",
                                "reference", "--out", tmp_path / "o.npy"], stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 20
    while len(os.listdir(tmp_path)) < 2 and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert os.listdir(tmp_path) == ["x.npy"]
    process.stderr.close()
