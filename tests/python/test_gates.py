# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels stay as good as they were, whatever the load of the machine that tests them:
instructions executed, code of the tile loops, symbols of the ISA objects. Every gate is shown to
fail on a planted fault."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "gates"))
import gates  # noqa: E402

pytestmark = pytest.mark.skipif(not gates.PROGRAM.exists(), reason="gates: no release build of gate_region")


def measured(function, *arguments, **options):
    try:
        return function(*arguments, **options)
    except gates.Absent as why:
        pytest.skip(str(why))


def vector_isas():
    return [isa for isa in gates.isas() if isa != "scalar"] if gates.PROGRAM.exists() else []


@pytest.mark.parametrize("isa", ["avx2", "avx512", "avx512_bf16", "amx"])
def test_instruction_counts_are_those_recorded(isa):
    if isa not in vector_isas():
        pytest.skip(f"ISA absent: {isa}")
    wanted = measured(gates.recorded, isa)
    found = measured(gates.settled, isa, wanted)
    assert found.keys() == wanted.keys()
    assert not gates.drifted(found, wanted), "tools/record_gates writes new counts down"


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_a_tile_that_works_twice_is_counted(isa):
    if isa not in vector_isas():
        pytest.skip(f"ISA absent: {isa}")
    wanted = measured(gates.recorded, isa)
    assert gates.drifted(measured(gates.counts, isa, planted=True), wanted)


def test_three_in_a_hundred_is_too_much():
    assert gates.drifted({"x": 1030}, {"x": 1000}) and gates.drifted({"x": 970}, {"x": 1000})
    assert not gates.drifted({"x": 1015}, {"x": 1000})


@pytest.mark.parametrize("isa", vector_isas())
def test_tile_loops_keep_their_sums_in_registers(isa):
    if not gates.compiler().startswith("Clang"):
        pytest.skip(f"no counts recorded for {gates.compiler()}: its register allocation is not gated")
    path = gates.isa_objects()[isa]
    names = [name for name, _, _ in gates.tile_loops(path)]
    for tile in gates.TILES:
        assert any(f"::{tile}<" in name for name in names), f"no loop of {tile} in {path.name}"
    assert not gates.loop_faults(path)


@pytest.mark.parametrize("isa", ["scalar", *vector_isas()])
def test_isa_objects_define_nothing_that_others_could_share(isa):
    assert not gates.weak_symbols(gates.isa_objects()[isa], isa)


def compiled(tmp_path, source):
    clang = shutil.which("clang++-19") or shutil.which("clang++")
    if not clang:
        pytest.skip("no clang to compile the planted fault")
    path = tmp_path / "planted.cpp"
    path.write_text(source)
    subprocess.run([clang, "-std=c++20", "-O3", "-mavx512f", "-mfma", "-c", path.name, "-o", "planted.o"],
                   cwd=tmp_path, check=True)
    return tmp_path / "planted.o"


TILE = """
#include <immintrin.h>
namespace undivided::cpu::planted {
template <int MR, int NV>
__attribute__((noinline)) void block_scores(const float* k, const float* q, float* s, int d) {
  __m512 acc[MR][NV] = {};
  #pragma GCC unroll 1
  for (int i = 0; i < d; ++i, k += MR, q += 16 * NV) {
    #pragma GCC unroll 32
    for (int r = 0; r < MR; ++r)
      #pragma GCC unroll 2
      for (int v = 0; v < NV; ++v)
        acc[r][v] = _mm512_fmadd_ps(_mm512_set1_ps(k[r]), _mm512_loadu_ps(q + 16 * v), acc[r][v]);
  }
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) _mm512_storeu_ps(s + (r * NV + v) * 16, acc[r][v]);
}
template void block_scores<ROWS, 2>(const float*, const float*, float*, int);
}
"""


def test_more_sums_than_registers_are_seen(tmp_path):
    assert gates.loop_faults(compiled(tmp_path, TILE.replace("ROWS", "20")))


def test_the_same_tile_that_fits_is_let_through(tmp_path):
    assert not gates.loop_faults(compiled(tmp_path, TILE.replace("ROWS", "12")))


def test_an_inline_function_of_all_is_seen(tmp_path):
    source = "inline int shared(int x) { return x * x; } int (*user)(int) = &shared;"
    assert gates.weak_symbols(compiled(tmp_path, source), "avx512") == ["shared(int)"]
