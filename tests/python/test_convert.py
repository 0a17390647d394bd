# SPDX-License-Identifier: Apache-2.0
"""What `undivided convert` promises on the command line: files whole or none, JSON, refusals."""

import json
import struct

import numpy as np
import pytest
from cli_support import done, refused


def save(path, tensors):
    header, data = {}, b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array, np.float32).tobytes()
        header[name] = {"dtype": "F32", "shape": list(array.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def load(path):
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(raw[8 + size :][slice(*e["data_offsets"])], np.float32).reshape(e["shape"])
        for name, e in header.items()
    }


@pytest.fixture
def llama(tmp_path):
    """A folder with 4 heads of 3 features and 2 layers."""
    random, folder = np.random.default_rng(1), tmp_path / "llama"
    folder.mkdir()
    tensors = {"model.norm.weight": random.standard_normal(10)}
    for layer in range(2):
        for part, shape in (("q", (12, 10)), ("k", (12, 10)), ("v", (12, 10)), ("o", (10, 12))):
            name = f"model.layers.{layer}.self_attn.{part}_proj.weight"
            tensors[name] = random.standard_normal(shape)
    save(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text('{"model_type": "llama", "num_attention_heads": 4}')
    return folder


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_folder_becomes_a_folder_with_means(llama, tmp_path):
    out = tmp_path / "gqa"
    shown = json.loads(done("convert", llama, out, "--kv-heads", 2, "--json").stdout)
    assert (shown["layout"], shown["converted"], shown["kv_heads_before"], shown["kv_heads"]) == (
        "llama", 2, 4, 2)
    assert shown["parameters_before"] - shown["parameters"] == 2 * 2 * 6 * 10
    before, after = load(llama / "model.safetensors"), load(out / "model.safetensors")
    name = "model.layers.1.self_attn.{}_proj.weight"
    for part in "kv":
        mean = before[name.format(part)].reshape(2, 2, 3, 10).mean(1).reshape(6, 10)
        np.testing.assert_allclose(after[name.format(part)], mean, rtol=1e-6)
    for same in (name.format("q"), name.format("o"), "model.norm.weight"):
        np.testing.assert_array_equal(after[same], before[same])
    assert json.loads((out / "config.json").read_text()) == {
        "model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}


def test_first_and_back(llama, tmp_path):
    done("convert", llama, tmp_path / "one", "--kv-heads", 1, "--method", "first")
    text = done("convert", tmp_path / "one", tmp_path / "four", "--kv-heads", 4).stdout
    assert "1 -> 4 KV heads" in text
    name = "model.layers.0.self_attn.k_proj.weight"
    first = load(llama / "model.safetensors")[name][:3]
    np.testing.assert_array_equal(load(tmp_path / "four" / "model.safetensors")[name], np.tile(first, (4, 1)))


def test_layers_and_seed(llama, tmp_path):
    for out in ("a", "b"):
        done("convert", llama, tmp_path / out, "--kv-heads", 2, "--layers", "1", "--method", "random",
             "--seed", 7)
    a, b = ((tmp_path / out / "model.safetensors").read_bytes() for out in "ab")
    assert a == b
    after = load(tmp_path / "a" / "model.safetensors")
    assert after["model.layers.0.self_attn.k_proj.weight"].shape == (12, 10)
    assert after["model.layers.1.self_attn.k_proj.weight"].shape == (6, 10)


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "give --kv-heads N, or --to"),
        (["--kv-heads", 2, "--to", "unilm"], "one of them decides"),
        (["--kv-heads", 3], "4 query heads cannot share 3 KV heads; allowed: 1, 2, 4"),
        (["--kv-heads", 4], "all have 4 KV heads already"),
        (["--kv-heads", 0], "kv_heads is 0"),
        (["--kv-heads", 2, "--method", "median"], "median"),
        (["--kv-heads", 2, "--seed", 3], "--seed belongs to --method random"),
        (["--kv-heads", 2, "--layers", "0-x"], "--layers is '0-x'"),
        (["--kv-heads", 2, "--layers", "2"], "no layer 2"),
        (["--kv-heads", 2, "--which", "cross"], "none that was asked for"),
        (["--kv-heads", 2, "--which", "selv"], "self"),
        (["--kv-heads", 2, "--layout", "gpt2"], "layout gpt2"),
        (["--kv-heads", 2, "--heads", 5], "do not divide into 5 heads"),
        (["--to", "unilm"], "no lambda_q1"),
        (["--to", "hf"], "hf"),
        (["--to", "unilm", "--method", "mean"], "--method belongs to --kv-heads"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(llama, tmp_path, flags, words):
    assert words in refused("convert", llama, tmp_path / "out", *flags)
    assert names(tmp_path) == ["llama"]


def test_broken_files(llama, tmp_path):
    weights = llama / "model.safetensors"
    assert "is the input" in refused("convert", weights, weights, "--kv-heads", 2)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    assert "truncated" in refused("convert", llama, tmp_path / "out", "--kv-heads", 2)
    weights.write_bytes(whole)
    (llama / "config.json").write_text("{")
    assert "JSON" in refused("convert", llama, tmp_path / "out", "--kv-heads", 2)
    assert "none.safetensors" in refused(
        "convert", tmp_path / "none.safetensors", tmp_path / "x.safetensors", "--kv-heads", 2)
    assert names(tmp_path) == ["llama"]
    assert weights.read_bytes() == whole


def test_a_differential_transformer_goes_there_and_back(tmp_path):
    random = np.random.default_rng(2)
    tensors = {f"layers.0.attn.{n}": random.standard_normal(s) for n, s in {
        "q_proj.weight": (16, 16), "k_proj.weight": (8, 16), "v_proj.weight": (8, 16), "o_proj.weight": (16, 16),
        "lambda_q1": 4, "lambda_k1": 4, "lambda_q2": 4, "lambda_k2": 4}.items()}
    save(tmp_path / "hf.safetensors", tensors)
    done("convert", tmp_path / "hf.safetensors", tmp_path / "unilm.safetensors", "--to", "unilm")
    unilm = load(tmp_path / "unilm.safetensors")
    assert set(unilm) - set(tensors) == {"layers.0.attn.out_proj.weight", "layers.0.attn.subln.weight"}
    done("convert", tmp_path / "unilm.safetensors", tmp_path / "back.safetensors", "--to", "diffllama")
    back = load(tmp_path / "back.safetensors")
    assert set(back) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(back[name], value.astype(np.float32))
    assert "already" in refused("convert", tmp_path / "hf.safetensors", tmp_path / "x.safetensors", "--to", "diffllama")
