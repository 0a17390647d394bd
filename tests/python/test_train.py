# SPDX-License-Identifier: Apache-2.0
"""What `undivided train` and `undivided translate` promise: a model, a curve, a map, the same bits after a kill."""

import json
import signal
import struct
import subprocess
import time
import zlib

import numpy as np
import pytest
from cli_support import done, find_program, refused, run

SMALL = ["--batch", 8, "--unseen", 4, "--snapshots", 2, "--threads", 1]


def pixels(path):
    """An 8-bit RGB PNG as [height, width, 3]."""
    raw = path.read_bytes()
    assert raw.startswith(b"\x89PNG\r\n\x1a\n")
    at, data = 8, b""
    while at < len(raw):
        (size,), kind = struct.unpack(">I", raw[at : at + 4]), raw[at + 4 : at + 8]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", raw[at + 8 : at + 18])
            assert (depth, colour) == (8, 2)
        if kind == b"IDAT":
            data += raw[at + 8 : at + 8 + size]
        at += 12 + size
    lines = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + 3 * width)
    out = np.zeros((height, 3 * width), np.uint8)
    for y, line in enumerate(lines):
        up, kind = (out[y - 1] if y else np.zeros(3 * width, np.uint8)), line[0]
        assert kind <= 4
        for x, value in enumerate(line[1:].astype(int)):
            left = int(out[y, x - 3]) if x >= 3 else 0
            corner = int(up[x - 3]) if x >= 3 else 0
            p = left + int(up[x]) - corner
            paeth = min((abs(p - c), i, c) for i, c in enumerate((left, int(up[x]), corner)))[2]
            out[y, x] = (value + (0, left, int(up[x]), (left + int(up[x])) // 2, paeth)[kind]) % 256
    return out.reshape(height, width, 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    model = folder / "reverse.safetensors"
    result = done("train", "reverse", "--steps", 20, *SMALL, "--gate", 0, "--out", model)
    return model, result


def test_training_shows_a_bar_and_a_loss_and_leaves_a_model_and_a_curve(trained):
    model, result = trained
    bars = [line for line in result.stderr.split("\n") if line.startswith("[")]
    assert len(bars) == 10 and bars[-1].startswith("[" + 30 * "#" + "] 20/20  loss ")
    assert "." in bars[0] and "CPU-s" in bars[0]
    assert "reverse: 20 steps, loss " in result.stdout and "exact on 4 unseen" in result.stdout
    assert sorted(p.name for p in model.parent.iterdir()) == ["reverse.png", "reverse.safetensors"]
    assert len(np.unique(pixels(model.parent / "reverse.png").reshape(-1, 3), axis=0)) > 2


def test_a_missed_gate_is_exit_code_1_with_the_row(tmp_path):
    model = tmp_path / "m.safetensors"
    result = run("train", "dates", "--steps", 2, *SMALL, "--out", model, "--json")
    assert result.returncode == 1
    row = json.loads(result.stdout)
    assert (row["task"], row["steps"], row["passed"], row["unseen"]) == ("dates", 2, False, 4)
    assert row["cpu_seconds"] > 0 and row["loss"] > 0 and 0 <= row["exact"] < 1
    assert model.exists() and row["picture"] == str(tmp_path / "m.png")


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(tmp_path):
    flags = ["train", "numbers", "--steps", 16, *SMALL, "--every", 1, "--gate", 0, "--dropout", 0.1]
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    done(*flags, "--out", whole)
    words = [find_program(), *map(str, flags), "--out", str(cut)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint, until = tmp_path / "cut.checkpoint.safetensors", time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not cut.exists()
    again = done(*flags, "--out", cut)
    assert "going on from step " in again.stderr
    assert cut.read_bytes() == whole.read_bytes()
    assert not checkpoint.exists()


def test_a_line_is_answered_and_its_cross_attention_drawn(trained, tmp_path):
    model, _ = trained
    lines = done("translate", model, input="3141592653\n\n2718281828\n").stdout.split("\n")
    assert len(lines) == 3 and lines[2] == ""
    shown = json.loads(done("translate", model, "--text", "3141592653", "--json").stdout)
    assert shown["source"] == "3141592653" and shown["answer"] == lines[0]
    assert shown["score"] < 0
    drawn = tmp_path / "map.png"
    done("translate", model, "--text", "3141592653", "--map", drawn)
    # Cells of 18 pixels behind an edge of 28, paler than 245 by a weight's share of 225: each row of
    # the answer spreads one unit of attention over the source.
    picture = pixels(drawn)
    height, width = ((n - 34) // 18 for n in picture.shape[:2])
    assert picture.shape[:2] == (34 + 18 * height, 34 + 18 * width)
    assert width >= 10 and height >= len(lines[0])
    weights = (245.0 - picture[28 : 28 + 18 * height : 18, 28 : 28 + 18 * width : 18, 0]) / 225
    assert np.abs(weights.sum(1) - 1).max() < 0.05
    assert weights.std() > 0


def test_a_converted_model_answers(trained, tmp_path):
    model, _ = trained
    out = tmp_path / "mqa.safetensors"
    done("convert", model, out, "--kv-heads", 1)
    assert len(done("translate", out, "--text", "12").stdout.split("\n")) == 2
    # Expanding to all heads again is exact for a model whose groups are already equal.
    wide = tmp_path / "wide.safetensors"
    done("convert", out, wide, "--kv-heads", 4)
    one, four = (json.loads(done("translate", m, "--text", "12", "--json").stdout) for m in (out, wide))
    assert one["answer"] == four["answer"] and abs(one["score"] - four["score"]) < 1e-4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "copying"], "TASK is 'copying'"),
        (["train", "reverse", "--every", 0], "--every and --unseen are at least 1"),
        (["train", "reverse", "--out", "model.bin"], "NAME.safetensors is expected"),
        (["train", "reverse", "--heads", 3], "3 heads"),
        (["translate", "none.safetensors", "--text", "1"], "none.safetensors"),
    ],
)
def test_what_cannot_be_done_is_refused(words, says, tmp_path):
    assert says in refused(*words, cwd=tmp_path)


def test_a_map_is_of_one_line(trained, tmp_path):
    model, _ = trained
    says = refused("translate", model, "--map", tmp_path / "m.png", input="12\n34\n")
    assert "--map draws one line" in says and not (tmp_path / "m.png").exists()
    assert "does not know the character 'a'" in refused("translate", model, "--text", "abc")
