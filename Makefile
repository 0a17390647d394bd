# SPDX-License-Identifier: Apache-2.0
# The usual commands; CMake presets and tools/ do the work.
.PHONY: demo test bench papers train-gates build lint format fuzz clean bootstrap

demo: build
	@bash -c 'source tools/environment && build/release/undivided demo'

test: bootstrap
	@tools/run_tests

bench: build
	@bash -c 'source tools/environment && build/release/undivided bench'

# Claims of papers, with tables and pictures in docs/: some minutes on one core.
papers: bootstrap
	@tools/build release bench_papers
	@build/release/bench/bench_papers docs

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
