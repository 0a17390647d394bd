# SPDX-License-Identifier: Apache-2.0
"""Gates that a noisy machine cannot fake: instruction counts, tile loops, symbols of ISA objects.

test_gates.py asserts them, tools/record_gates writes the counts down.
"""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "release"
PROGRAM = BUILD / "gate_region"
RECORD = Path(__file__).with_name("counts.json")
TOLERANCE = 0.02
# How an instruction set is counted: Valgrind knows nothing beyond AVX2.
STEPPED = {"avx512": "", "avx512_bf16": "bf16", "amx": "bf16"}  # ISA: the cases that are its own


class Absent(Exception):
    """Why something cannot be measured on this machine."""


def compiler():
    """Name and major version, for example Clang-19: counts are kept apart by it."""
    text = (BUILD / "generated" / "build_info.cpp").read_text()
    return re.search(r'"(\w+) (\d+)[\d.]*",', text).expand(r"\1-\2")


def isas():
    return _run("--isas").split()


def _run(*words, isa=None, prefix=()):
    environment = {"UNDIVIDED_ISA": isa} if isa else {}
    result = subprocess.run([*prefix, str(PROGRAM), *words], env=environment, capture_output=True,
                            text=True, timeout=300)
    if result.returncode == 77:
        raise Absent(result.stdout.strip().splitlines()[-1])
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def counts(isa, planted=False):
    """Instructions of each case of gate_region."""
    extra = ["--planted"] if planted else []
    if isa in STEPPED:
        lines = _run("--step", STEPPED[isa], *extra, isa=isa).splitlines()
        return {name: int(count) for count, name in (line.split(" ", 1) for line in lines)}
    valgrind = shutil.which("valgrind")
    if not valgrind:
        raise Absent("no valgrind")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        names = _run(*extra, isa=isa, prefix=(
            valgrind, "--tool=callgrind", "--toggle-collect=gate_region", "--dump-after=gate_region",
            f"--callgrind-out-file={out}")).splitlines()
        found = {}
        for number, name in enumerate(names, 1):
            text = Path(f"{out}.{number}").read_text()
            found[name] = int(re.search(r"^totals: (\d+)", text, re.M).group(1))
    return found


def settled(isa, wanted):
    """counts(), and where they are not what is wanted the larger of two runs: a busy system loses steps
    now and then (1 run of 65), and never adds one."""
    found = counts(isa)
    if isa in STEPPED and drifted(found, wanted):
        again = counts(isa)
        found = {name: max(count, again[name]) for name, count in found.items()}
    return found


def recorded(isa):
    table = json.loads(RECORD.read_text()).get(compiler(), {})
    if isa not in table:
        raise Absent(f"no counts recorded for {compiler()} and {isa}")
    return table[isa]


def drifted(found, wanted):
    """What differs from the record by more than the tolerance, as text."""
    return [f"{name}: {count} instructions, recorded {wanted.get(name)}" for name, count in found.items()
            if name not in wanted or abs(count / wanted[name] - 1) > TOLERANCE]


def isa_objects():
    """Object file of each source in src/cpu/isa, by the name of the ISA."""
    folder = BUILD / "CMakeFiles" / "undivided.dir" / "src" / "cpu" / "isa"
    return {path.name.split(".")[0]: path for path in sorted(folder.glob("*.cpp.o"))}


FMA = re.compile(r"vfn?m(add|sub)\w+p[sh]|vdpbf16ps|vpdpbusd")


def innermost_loops(path):
    """(function, instructions of one innermost loop) for the loops of an object file."""
    text = subprocess.run(["objdump", "-d", "-C", "--no-show-raw-insn", str(path)], check=True,
                          capture_output=True, text=True).stdout
    for block in re.split(r"\n\n(?=[0-9a-f]+ <)", text):
        head = re.search(r"^[0-9a-f]+ <(.*)>:$", block, re.M)
        if not head:
            continue
        code = [(int(a, 16), op) for a, op in re.findall(r"^\s*([0-9a-f]+):\t(.*)$", block, re.M)]
        jumps = [(int(m.group(1), 16), at) for at, op in code
                 if (m := re.match(r"j\w+\s+([0-9a-f]+)\b", op))]
        loops = [(to, at) for to, at in jumps if code[0][0] <= to <= at]
        for to, at in loops:
            if not any((a, b) != (to, at) and to <= a and b <= at for a, b in loops):
                yield head.group(1), [op for where, op in code if to <= where <= at]


# The functions that hold nearly all products. A new name here is a new tile; a name that is gone
# fails the test that looks for it.
TILES = ("block_scores", "block_outputs", "accumulate_keys_of")


def tile_loops(path):
    """Product loops of the tile functions: name, registers that gather products, code."""
    for name, code in innermost_loops(path):
        products = [op for op in code if FMA.match(op)]
        if products and any(f"::{tile}<" in name for tile in TILES):
            yield name, {op.rsplit("%", 1)[1] for op in products}, code


def loop_faults(path):
    """Vector registers on the stack; in wide tiles products that are not whole steps of MR x NV,
    or more loads than the MR + NV operands of a step."""
    faults = []
    for name, sums, code in tile_loops(path):
        stack = [op for op in code if re.search(r"\(%r[sb]p\b", op) and re.search(r"%[zy]mm", op)]
        if stack:
            faults.append(f"{name}: {len(stack)} vector moves to or from the stack: {stack[0].strip()}")
        if not re.search(r"\b2>\(", name):
            continue
        products = sum(1 for op in code if FMA.match(op))
        loads = sum(1 for op in code if re.search(r"%[xyz]mm", op) and "(" in op.rsplit(",", 1)[0])
        if products % len(sums) or len(sums) % 2:
            faults.append(f"{name}: {products} products into {len(sums)} sums")
        if loads > products / len(sums) * (len(sums) / 2 + 2):
            faults.append(f"{name}: {loads} loads for {products} products")
    return faults


def weak_symbols(path, isa):
    """Weak symbols that another object file could also define, compiled for less."""
    text = subprocess.run(["nm", "-C", str(path)], check=True, capture_output=True, text=True).stdout
    rows = re.findall(r"^[0-9a-f ]{16} ([WwVvu]) (.*)$", text, re.M)
    return [name for kind, name in rows if f"undivided::cpu::{isa}::" not in name
            and name != "__gxx_personality_v0"]
