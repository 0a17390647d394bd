// SPDX-License-Identifier: Apache-2.0
// The C door as one shared library, with the peaks of this core, for bench/torch_cpu.py and
// bench/gpu_peers.py.
#include "core/build_info.hpp"
#include "cpu/peak.hpp"

extern "C" {
double undivided_bench_fma_peak() { return undivided::cpu::fma_peak_gflops(); }
double undivided_bench_bf16_peak() { return undivided::cpu::bf16_dot_peak_gflops(); }
const char* undivided_bench_commit() { return undivided::build_info().commit; }
const char* undivided_bench_compiler() { return undivided::build_info().compiler; }
}
