# SPDX-License-Identifier: Apache-2.0
"""The C door through ctypes: structs of undivided/c.h, and a library that raises what it refuses.

Views borrow: whoever makes one keeps it and its tensor alive.
"""

import ctypes

i32, i64, size, pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_size_t, ctypes.c_void_p
F32, F16, BF16, I32, I64 = 2, 3, 4, 5, 6
CPU, CUDA = 2, 3  # undivided_backend
START, END = 1, 2  # undivided_align
FAST, REPRODUCIBLE, INVARIANT = 0, 1, 2


def struct(name, *fields):
    made = type(name, (ctypes.Structure,), {"_fields_": [("struct_size", size), *fields]})
    return lambda **values: made(struct_size=ctypes.sizeof(made), **values)


def pointers(*names):
    return [(name, pointer) for name in names]


View = struct("View", ("data", pointer), ("dtype", i32), ("cuda", i32), ("device", i32),
              ("rank", i32), ("shape", i64 * 4), ("stride", i64 * 4))
Rows = struct("Rows", *pointers("data", "offsets", "lengths"), ("max_length", i64))
Kv = struct("Kv", ("kind", i32), *pointers("k", "v", "offsets", "lengths", "page_table", "prefix_table"),
            ("max_length", i64))
Options = struct("Options", ("mask", ctypes.c_char_p), ("score", ctypes.c_char_p), *pointers("arrays"),
                 ("array_count", size), *pointers("params"), ("param_count", size), ("align", i32),
                 *pointers("q_origin", "k_origin"), ("scale", ctypes.c_double), *pointers("sink"),
                 ("dropout", ctypes.c_double), ("seed", ctypes.c_uint64),
                 *[(name, i32) for name in ("determinism", "out_dtype", "partial", "max_logit",
                                            "key_mass", "inside", "backend", "compile_never", "threads")],
                 *pointers("stream", "mask_plan"))
Outputs = struct("Outputs", *pointers("o", "lse", "max_logit", "key_mass"))
Gradients = struct("Gradients", *pointers("q", "k", "v", "sink", "captured"), ("captured_count", size),
                   *pointers("dlse"))
Summary = struct("Summary", *[(name, i64) for name in ("block", "empty", "partial", "full", "kept_pairs",
                                                       "rows_without_key")])


class NamedView(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("view", pointer), ("low", i64), ("high", i64)]


class Library:
    def __init__(self, path):
        self.door = ctypes.CDLL(str(path))
        for name in ("undivided_last_error", "undivided_plan_explain", "undivided_plan_kernel",
                     "undivided_bench_commit", "undivided_bench_compiler"):
            getattr(self.door, name).restype = ctypes.c_char_p
        for name in ("undivided_bench_fma_peak", "undivided_bench_bf16_peak"):
            getattr(self.door, name).restype = ctypes.c_double
        self.door.undivided_plan_workspace.restype = size
        for name in ("workspace", "explain", "kernel", "free"):
            getattr(self.door, f"undivided_plan_{name}").argtypes = [pointer]

    def call(self, name, *arguments):
        """undivided_<name>; structs are passed by address, None as null."""
        self.ready(name, *arguments)()

    def ready(self, name, *arguments):
        """The same call with its arguments converted now: what is left of the cost is little Python."""
        function, converted = getattr(self.door, f"undivided_{name}"), [address(a) for a in arguments]

        def call():
            if function(*converted):
                raise RuntimeError(self.door.undivided_last_error().decode())
        return call

    def text(self, name):
        return getattr(self.door, f"undivided_bench_{name}")().decode()

    def number(self, name):
        return getattr(self.door, f"undivided_bench_{name}")()


def address(value):
    return ctypes.byref(value) if isinstance(value, ctypes.Structure) else value


class Held:
    """Structs of one problem, kept alive with the tensors that they point at."""

    def __init__(self, codes):
        self.codes, self.keep = codes, []  # codes: torch dtype -> undivided_dtype

    def at(self, value):
        self.keep.append(value)
        return ctypes.addressof(value)

    def view(self, tensor):
        self.keep.append(tensor)
        rank = tensor.dim()
        return View(data=tensor.data_ptr(), dtype=self.codes[tensor.dtype], cuda=int(tensor.is_cuda),
                    device=tensor.device.index or 0, rank=rank, shape=(i64 * 4)(*tensor.shape),
                    stride=(i64 * 4)(*tensor.stride()))

    def put(self, tensor):
        return None if tensor is None else self.at(self.view(tensor))
