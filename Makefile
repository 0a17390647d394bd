# SPDX-License-Identifier: Apache-2.0
# The usual commands; CMake presets and tools/ do the work.
.PHONY: demo test bench bench-gpu-peers bench-mask-torch bench-torch gallery papers gqa-uptraining train-gates build lint format fuzz clean bootstrap

demo: build
	@bash -c 'source tools/environment && build/release/undivided demo'

test: bootstrap
	@tools/run_tests

bench: build
	@bash -c 'source tools/environment && build/release/undivided bench'

# Beside PyTorch's create_block_mask; its wheel goes into a folder of its own.
bench-mask-torch: build
	@test -x build/torch/bin/python || python3 -m venv build/torch
	@build/torch/bin/pip install -q torch numpy
	@build/torch/bin/python bench/mask_torch.py build/release/undivided bench/results/mask_torch.json $$(git describe --always --dirty)

gallery: build
	@build/release/undivided mask --gallery docs

bench-torch: bootstrap
	@tools/build release bench_library
	@[ -x build/torch/bin/python ] || python3 -m venv build/torch
	@build/torch/bin/python -m pip install -q --disable-pip-version-check numpy torch
	@build/torch/bin/python bench/torch_cpu.py

# On a machine with a GPU, and a python3 that has PyTorch (and flash-attn-4, if it shall take part).
bench-gpu-peers: bootstrap
	@tools/build release bench_library
	@bash -c 'source tools/environment && python3 bench/gpu_peers.py --rows all --flex --out build/gpu_peers.json --pictures build/pictures'

# Claims of papers, with tables and pictures in docs/: some minutes on one core.
papers: bootstrap gqa-uptraining
	@tools/build release bench_papers
	@build/release/bench/bench_papers docs

gqa-uptraining: bootstrap
	@tools/build release bench_gqa_uptraining
	@bash -c 'source tools/environment && build/release/bench/bench_gqa_uptraining bench/results/gqa_uptraining.json docs/pictures/gqa_uptraining.svg $(or $(SEEDS),1)'

train-gates: build
	@tools/train_gates

build: bootstrap
	@tools/build release undivided_cli

bootstrap:
	@tools/bootstrap

lint: bootstrap
	@tools/lint

format: bootstrap
	@git ls-files '*.cpp' '*.hpp' '*.h' '*.c' '*.cuh' | xargs clang-format-19 -i

fuzz: bootstrap
	@tools/fuzz

clean:
	rm -rf build
