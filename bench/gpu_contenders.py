# SPDX-License-Identifier: Apache-2.0
"""The contenders of bench/gpu_peers.py: each makes the calls of a row, or says why it cannot."""

import ctypes
import math
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import door
from gpu_report import in_turns, report
from gpu_rows import BANDS, MASKS, SCORES, Row, equal_dense

try:
    from flash_attn.cute import flash_attn_func, flash_attn_varlen_func
    NO_FA4 = ""
except Exception as why:  # an import may fail in many ways
    NO_FA4 = f"not installed: {type(why).__name__}: {why}"

CODES = {torch.float32: door.F32, torch.bfloat16: door.BF16, torch.int32: door.I32}
BF16 = torch.bfloat16
LIMITS = {"forward": 1e-2, "backward": 2e-2}  # relative L2 distance from float32, bf16 inputs


class Left(Exception):
    """A row that a contender does not take."""


def plain_attention(q, k, v, dout, row, slopes):
    """O, dQ, dK, dV in float32 of query heads q [group, n, d] over one key head, a head at a time."""
    n, text = q.shape[1], row.score
    at = torch.arange(n, device=q.device)
    iq, ik = at[:, None], at[None, :]
    keep = {"full": lambda: None, "causal": lambda: ik <= iq, "window 128": lambda: (ik <= iq) & (iq - ik < 128),
            "window 1024": lambda: (ik <= iq) & (iq - ik < 1024),
            "documents 1024": lambda: (ik <= iq) & (iq // 1024 == ik // 1024),
            "prefix 2048": lambda: (ik < 2048) | (ik <= iq)}[row.mask]()
    out, dq, dk, dv = [], [], 0, 0
    for i in range(q.shape[0]):
        qf, kf, vf = (x.float().detach().requires_grad_() for x in (q[i], k, v))
        s = qf @ kf.T / math.sqrt(row.d)
        if text == "alibi":
            s = s + slopes[i] * (ik - iq)
        if text == "softcap":
            s = 20 * torch.tanh(s / 20)
        if keep is not None:
            s = s.masked_fill(~keep, -math.inf)
        o = torch.softmax(s, -1) @ vf
        del s
        gq, gk, gv = torch.autograd.grad(o, (qf, kf, vf), dout[i].float())
        out.append(o.detach())
        dq.append(gq)
        dk, dv = dk + gk, dv + gv
        del o
    return torch.stack(out), torch.stack(dq), dk, dv


def distance(got, wanted):
    return float((got.float() - wanted).norm() / wanted.norm())


class Data:
    """Tensors of a row, all as [batch, heads, tokens, dim] (ragged: [tokens, heads, dim])."""

    def __init__(self, row, layout, device="cuda"):
        generator = torch.Generator(device).manual_seed(1)

        def normal(*shape):
            return torch.randn(*shape, device=device, dtype=BF16, generator=generator)

        def tensor(heads, dim):
            if row.lengths:
                return normal(sum(row.lengths), heads, dim)
            if layout == "bhsd":
                return normal(row.batch, heads, row.length, dim)
            return normal(row.batch, row.length, heads, dim).transpose(1, 2)

        self.row = row
        self.q, self.k = tensor(row.heads, row.d), tensor(row.kv_heads, row.d)
        self.v, self.dout = tensor(row.kv_heads, row.dv), tensor(row.heads, row.dv)
        self.offsets = None
        if row.lengths:
            ends = torch.tensor((0, *row.lengths)).cumsum(0)
            self.offsets = ends.to(device=device, dtype=torch.int32)
            self.ends = ends.tolist()
        self.slopes = 2.0 ** (-8.0 * torch.arange(1, row.heads + 1, device=device) / row.heads)
        self.inputs = [x.detach().requires_grad_() for x in (self.q, self.k, self.v)]

    def corner(self, tensor, last, query):
        """The heads of the first or last key head, of the first or last sequence: [heads, n, dim]."""
        group = self.row.heads // self.row.kv_heads if query else 1
        if self.row.lengths:
            b = len(self.row.lengths) - 1 if last else 0
            of_sequence = tensor[self.ends[b]:self.ends[b + 1]].transpose(0, 1)
        else:
            of_sequence = tensor[-1 if last else 0]
        return of_sequence[-group:] if last else of_sequence[:group]


class Ours:
    def __init__(self, library, data, determinism=door.FAST, plain=False):
        row, self.library = data.row, library
        self.held = held = door.Held(CODES)
        self.o = torch.full_like(data.dout, math.nan)
        shape = (row.heads, self.o.shape[0]) if row.lengths else self.o.shape[:3]
        self.lse = torch.empty(shape, dtype=torch.float32, device=self.o.device)
        self.gradients = [torch.full_like(x, math.nan) for x in (data.q, data.k, data.v)]
        offsets = held.put(data.offsets)
        self.rows, self.drows = (door.Rows(data=held.put(x), offsets=offsets, max_length=row.length)
                                 for x in (data.q, data.dout))
        self.kv = door.Kv(kind=1 if row.lengths else 0, k=held.put(data.k), v=held.put(data.v),
                          offsets=offsets, max_length=row.length)
        mask, score = (None, None) if plain else (MASKS[row.mask][0], SCORES[row.score])
        arrays = (door.NamedView * 1)(door.NamedView(b"slope", held.put(data.slopes.float()), 0, 0))
        use = score is not None and "slope" in score
        self.arrays = arrays
        self.options = door.Options(
            mask=mask and mask.encode(), score=score and score.encode(),
            arrays=ctypes.addressof(arrays) if use else None, array_count=int(use), align=door.START,
            determinism=determinism, **(dict(backend=door.CUDA, stream=torch.cuda.current_stream().cuda_stream)
                                        if self.o.is_cuda else dict(backend=door.CPU)))
        self.o_view, self.lse_view = held.view(self.o), held.view(self.lse)
        self.outputs = door.Outputs(o=held.at(self.o_view), lse=held.at(self.lse_view))
        self.to = door.Gradients(**dict(zip("qkv", map(held.put, self.gradients))))
        self.plan, self.mask_plan = door.pointer(), door.pointer()
        if mask and row.mask not in BANDS:  # its blocks are planned once
            library.call("mask_plan_create", ctypes.byref(self.mask_plan), self.rows, self.kv, self.options)
        self.verb_options = self.options
        if self.mask_plan:
            self.options = type(self.options).from_buffer_copy(self.options)
            self.options.mask_plan = self.mask_plan.value
        library.call("plan_create", ctypes.byref(self.plan), self.rows, self.kv, self.options)
        room = library.door.undivided_plan_workspace(self.plan)
        self.room = torch.empty(max(256, room), dtype=torch.uint8, device=self.o.device)
        self.workspace = door.pointer(self.room.data_ptr())
        self.kernel = library.door.undivided_plan_kernel(self.plan).decode()
        self.plan_run = library.ready("plan_run", self.plan, self.outputs, self.rows, self.kv, self.options,
                                      self.workspace)
        self.attention_backward = library.ready("attention_backward", self.to, self.drows, self.rows, self.kv,
                                                self.o_view, self.lse_view, self.verb_options)

    def __del__(self):
        if getattr(self, "plan", None):
            self.library.door.undivided_plan_free(self.plan)
        if getattr(self, "mask_plan", None):
            self.library.door.undivided_mask_plan_free(self.mask_plan)

    def forward(self):
        self.plan_run()
        return self.o

    def backward(self):
        self.attention_backward()
        return self.gradients


class Peer:
    """A contender of PyTorch's: `call` gives O from the inputs."""

    def __init__(self, data, call):
        self.data, self.call, self.kept = data, call, None

    def forward(self):
        with torch.no_grad():
            return self.call(*self.data.inputs)

    def backward(self):
        if self.kept is None:
            self.kept = self.call(*self.data.inputs)
        return torch.autograd.grad(self.kept, self.data.inputs, self.data.dout, retain_graph=True)


def cudnn(data):
    row = data.row
    if row.lengths or row.score != "identity" or row.mask not in ("full", "causal"):
        raise Left("PyTorch's cuDNN attention has no such mask, score or layout")

    def call(q, k, v):
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, is_causal=row.mask == "causal",
                                                  enable_gqa=row.heads != row.kv_heads)
    return Peer(data, call)


def fa4(data, deterministic=False):
    row = data.row
    if NO_FA4:
        raise Left(NO_FA4)
    words = {"full": {}, "causal": {"causal": True}, "window 128": {"window_size": (127, 0)},
             "window 1024": {"window_size": (1023, 0)}}.get(row.mask)
    if words is None or row.score not in ("identity", "softcap"):
        raise Left("needs a hand-written program for this mask or score")
    words = dict(words, deterministic=deterministic)
    if row.score == "softcap":
        words["softcap"] = 20.0
    first = lambda out: out[0] if isinstance(out, tuple) else out  # noqa: E731

    def call(q, k, v):
        if row.lengths:
            return first(flash_attn_varlen_func(q, k, v, cu_seqlens_q=data.offsets, cu_seqlens_k=data.offsets,
                                                max_seqlen_q=row.length, max_seqlen_k=row.length, **words))
        return first(flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), **words)).transpose(1, 2)
    return Peer(data, call)


def flex(data):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    row = data.row
    if row.lengths:
        raise Left("ragged rows are not given to FlexAttention")
    document = torch.arange(row.length, device="cuda") // 1024
    keep = {"full": None, "causal": lambda b, h, q, k: q >= k,
            "window 128": lambda b, h, q, k: (q >= k) & (q - k < 128),
            "window 1024": lambda b, h, q, k: (q >= k) & (q - k < 1024),
            "documents 1024": lambda b, h, q, k: (document[q] == document[k]) & (q >= k),
            "prefix 2048": lambda b, h, q, k: (k < 2048) | (q >= k)}[row.mask]
    slopes = data.slopes
    score = {"identity": None, "alibi": lambda s, b, h, q, k: s + slopes[h] * (k - q),
             "softcap": lambda s, b, h, q, k: 20 * torch.tanh(s / 20)}[row.score]
    torch._dynamo.reset()
    plan = create_block_mask(keep, None, None, row.length, row.length, device="cuda") if keep else None
    compiled = torch.compile(flex_attention, dynamic=False)
    gqa = row.heads != row.kv_heads
    return Peer(data, lambda q, k, v: compiled(q, k, v, score_mod=score, block_mask=plan, enable_gqa=gqa))


class Bench:
    def __init__(self, library, layout, without, with_flex):
        self.library, self.layout, self.with_flex = door.Library(library), layout, with_flex
        self.without = without
        self.issue = {}  # function -> seconds that the host needs to queue a call
        self.absent = {name: "left out by --without" for name in without if name}
        if NO_FA4:
            self.absent["fa4"] = NO_FA4
        self.a = torch.randn(8192, 8192, device="cuda", dtype=BF16)
        self.b = torch.randn_like(self.a)

    def about(self):
        return {"card": torch.cuda.get_device_name(), "torch": torch.__version__,
                "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
                "commit": self.library.text("commit"), "compiler": self.library.text("compiler")}

    def timer(self, function, calls):
        """Seconds of `calls` calls on the GPU. It is kept waiting until they are queued, so that what a
        call costs on the host is not part of it (host() measures that of this library)."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        wait = 1.5 * calls * self.issue.get(function, 0.0) + 5e-5
        torch.cuda._sleep(int(min(wait, 0.05) * 2e9))  # cycles of about 2 GHz
        begin.record()
        started = time.perf_counter()
        for _ in range(calls):
            function()
        took = (time.perf_counter() - started) / calls
        end.record()
        end.synchronize()
        self.issue[function] = min(took, self.issue.get(function, math.inf))
        return begin.elapsed_time(end) * 1e-3

    def gemm(self):
        """TFLOP/s of a bf16 product of 8192 cubed, now."""
        seconds = in_turns({"gemm": lambda: self.a @ self.b}, self.timer, 3, 10e-3)["gemm"]
        return 2 * 8192**3 / seconds * 1e-12

    def host(self, rounds=40, calls=50):
        """Microseconds of the calling thread in a warm plan_run and backward, through ctypes; the queue of
        the card is empty when a round begins, and never full. `undivided bench cuda --filter overhead` is
        the same without Python."""
        ours = Ours(self.library, Data(Row("host", 1, 8, 8, 128, 64, 64), self.layout))

        def cost(function):
            costs = []
            for _ in range(rounds):
                torch.cuda.synchronize()
                begin = time.perf_counter()
                for _ in range(calls):
                    function()
                costs.append((time.perf_counter() - begin) / calls)
            return sorted(costs)[rounds // 2] * 1e6

        ours.forward(), ours.backward()
        return {"plan_run_us": cost(ours.plan_run), "attention_backward_us": cost(ours.attention_backward),
                "empty_call_us": cost(lambda: self.library.door.undivided_plan_workspace(ours.plan)),
                "kernel": ours.kernel}

    def contenders(self, data):
        """name -> contender, and name -> why not. `dense`: this library without the mask and score."""
        row = data.row
        makers = {"undivided": lambda: Ours(self.library, data), "cudnn": lambda: cudnn(data),
                  "fa4": lambda: fa4(data)}
        if row.kind == "mask":
            makers["dense"] = lambda: Ours(self.library, data, plain=True)
            if self.with_flex:
                makers["flex"] = lambda: flex(data)
        if row.kind == "ragged":
            makers["dense"] = lambda: Ours(self.library, Data(equal_dense(row), self.layout))
        if row.kind == "deterministic":
            makers["reproducible"] = lambda: Ours(self.library, data, door.REPRODUCIBLE)
            makers["fa4_deterministic"] = lambda: fa4(data, True)
        made, refused = {}, {}
        for name, make in makers.items():
            if name in self.without:
                continue
            try:
                made[name] = make()
            except Exception as why:
                refused[name] = str(why)[:300]
        return made, refused

    def errors(self, data, made, directions):
        """By direction: the relative L2 distance from float32 at two corners of each contender that is
        right, and why the others take no part. A contender may fail in one direction alone."""
        truth = [self.truth(data, last) for last in (False, True)]
        found, refused = {d: {} for d in directions}, {d: {} for d in directions}
        for name, contender in made.items():
            for direction in directions:
                of = slice(0, 1) if direction == "forward" else slice(1, 4)
                try:
                    results = [contender.forward()]
                    if direction == "backward":
                        results = contender.backward()
                    if name == "dense":  # another problem
                        found[direction][name] = None
                        continue
                    distances = [0.0]
                    for last, exact in zip((False, True), truth):
                        for i, (got, wanted) in enumerate(zip(results, exact[of])):
                            corner = data.corner(got.detach(), last, direction == "forward" or i == 0)
                            distances.append(distance(corner, wanted.reshape(corner.shape)))
                    worst = max(x if math.isfinite(x) else math.inf for x in distances)
                    if worst > LIMITS[direction]:
                        raise Left(f"wrong: {direction} is {worst:.3g} from float32, "
                                   f"{LIMITS[direction]} is allowed")
                    found[direction][name] = worst
                except Exception as why:
                    refused[direction][name] = str(why)[:300]
        return found, refused

    @staticmethod
    def truth(data, last):
        q, k, v, dout = (data.corner(x, last, query) for x, query in
                         ((data.q, True), (data.k, False), (data.v, False), (data.dout, True)))
        slopes = data.slopes[-len(q):] if last else data.slopes[:len(q)]
        return plain_attention(q, k[0], v[0], dout, data.row, slopes)

    def measure(self, row, directions, rounds, gemm):
        self.issue = {}
        data = Data(row, self.layout)
        made, absent = self.contenders(data)
        errors, refused = self.errors(data, made, directions)
        dense = equal_dense(row) if row.lengths else Row("dense", row.batch, row.heads, row.kv_heads,
                                                         row.length, row.d, row.dv)
        results = []
        for direction in directions:
            calls = {name: getattr(made[name], direction) for name in errors[direction]}
            seconds = in_turns(calls, self.timer, rounds) if "undivided" in calls else {}
            right = {name: e for name, e in errors[direction].items() if e is not None}
            results.append(report(row, direction, seconds, right, {**absent, **refused[direction]}, gemm,
                                  {"dense": dense.flop(direction)}))
            results[-1]["kernel"] = made["undivided"].kernel if "undivided" in made else None
        return results
