// SPDX-License-Identifier: Apache-2.0
// Names are stable: results are compared by them from commit to commit.
#include "cli/bench_rows.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "cli/problem.hpp"
#include "core/generator.hpp"

namespace undivided::cli {
namespace {

constexpr std::int64_t window_width = 512, document_length = 300;
constexpr DType measured_dtypes[] = {DType::f32, DType::f16, DType::bf16};

std::string name_of(const Row& r) {
  std::string name = fmt::format(
      "{} {} d{} n{} {}", r.direction, undivided::name_of(r.dtype), r.d, r.k_len, r.mask);
  if (r.direction == "decode" && r.q_len > 1) name += fmt::format(" q{}", r.q_len);
  if (r.direction == "decode" && !r.usual) name += fmt::format(" {}/{}", r.heads, r.kv_heads);
  if (r.page) name += fmt::format(" page{}", r.page);
  if (r.score != "identity") name += " " + r.score;
  if (!r.precision.empty()) name += " " + r.precision;
  if (!r.isa.empty()) name += " " + r.isa;
  if (r.threads > 1) name += fmt::format(" t{}", r.threads);
  if (r.contended) name += " contended";
  return name;
}

class List {
 public:
  Row& add(Row r) {
    r.name = name_of(r);
    return rows_.emplace_back(std::move(r));
  }
  /// A row timed in turns with another, and the least of their rates it must keep.
  void add_beside(Row r, const Row& other, std::optional<double> least) {
    r.beside = std::make_shared<Row>(other);
    r.beside->name = name_of(other);
    if (least) r.bar = Row::Bar{"rate_ratio", *least};
    add(std::move(r));
  }
  std::vector<Row> rows_;
};

/// Bars of the shares of the peak: FMA for float32, 16-bit dot products for bfloat16 where the
/// processor has them.
std::optional<Row::Bar> bar_of(const Row& r) {
  const bool forward = r.direction == "forward";
  if (r.mask != "full" || r.dtype == DType::f16 || r.direction == "decode") return {};
  const bool wide = r.d == 128, single = r.dtype == DType::f32;
  if (!forward && !wide) return {};
  const double share = !forward ? (single ? .88 : .80)
                       : single ? (wide ? .90 : .87)
                                : (wide ? .82 : .78);
  return Row::Bar{"of_peak", share};
}

void add_usual(List& list, bool gpu) {
  const int all = gpu ? 1 : default_executor().workers();
  for (const char* direction : {"forward", "backward", "decode"})
    for (const DType dtype : measured_dtypes) {
      if (gpu && dtype == DType::f32) continue;
      for (const std::int64_t d : {64, 128})
        for (const char* mask : {"full", "causal", "window", "documents"}) {
          Row r;
          r.direction = direction;
          r.mask = mask;
          r.dtype = dtype;
          r.d = d;
          if (gpu) {
            r.batch = 2;
            r.heads = r.kv_heads = 16;
            r.q_len = r.k_len = 4096;
          }
          if (r.direction == "decode") {
            if (r.mask == "documents" || r.mask == "window") continue;
            r.q_len = 1;
            r.k_len = gpu ? 8192 : 4096;
            r.batch = gpu ? 16 : 2;
            r.heads = gpu ? 32 : 8;
            r.kv_heads = gpu ? 8 : 2;
          }
          if (!gpu) r.bar = bar_of(r);
          if (!gpu && dtype == DType::f16 && r.mask == "full" && r.direction != "decode") {
            Row single = r;
            single.dtype = DType::f32;
            list.add_beside(r, single, .85);
          } else {
            list.add(r);
          }
          if (all > 1 && dtype == DType::f32 && d == 128 &&
              (r.mask == "full" || r.mask == "causal")) {
            const Row one = r;
            r.threads = all;
            r.bar.reset();
            const bool scales = r.direction == "forward" && r.mask == "full";
            list.add_beside(r, one, scales ? std::optional(.95 * all) : std::nullopt);
          }
        }
    }
}

/// Masks at 4096 tokens keep the rate of the full mask; what a row costs beside another one.
void add_long(List& list) {
  Row base;
  base.usual = false;
  for (const char* direction : {"forward", "backward"})
    for (const DType dtype : measured_dtypes)
      for (const std::int64_t d : {64, 128}) {
        Row full = base;
        full.direction = direction;
        full.dtype = dtype;
        full.d = d;
        full.q_len = full.k_len = 4096;
        list.add(full);
        for (const char* mask : {"causal", "window", "documents"}) {
          Row r = full;
          r.mask = mask;
          list.add_beside(r, full, .92);
        }
      }
  for (const DType dtype : measured_dtypes)
    for (const std::int64_t n : {64, 128, 256}) {
      Row r = base;
      r.direction = "forward";
      r.dtype = dtype;
      r.q_len = r.k_len = n;
      r.bar = Row::Bar{"of_peak", .50};
      list.add(r);
    }
  Row forward = base;
  forward.direction = "forward";
  for (const char* isa : {"avx2", "scalar"}) {
    Row r = forward;
    r.isa = isa;
    if (r.isa == "avx2") r.bar = Row::Bar{"of_peak", .82};
    list.add(r);
  }
  for (const std::int64_t d : {64, 128}) {
    Row r = forward;
    r.dtype = DType::bf16;
    r.d = d;
    r.isa = "avx512_bf16";  // its dot products, also where float32 is faster
    r.bar = Row::Bar{"of_peak", d == 128 ? .82 : .78};
    list.add(r);
  }
  for (const std::int64_t d : {64, 128})  // shares of the bf16 dot peak, whatever multiplies
    for (const char* isa : {"", "avx512_bf16"})
      for (const char* precision : {"i8/bf16", "i8/f32"}) {
        if (*isa && precision == std::string_view("i8/f32")) continue;  // no dot products of bf16
        Row bf16 = forward;
        bf16.dtype = DType::bf16;
        bf16.d = d;
        bf16.isa = isa;
        Row r = bf16;
        r.precision = precision;
        if (d == 128 && r.precision == "i8/bf16") r.bar = Row::Bar{"of_peak", 1};
        list.add_beside(r, bf16, std::nullopt);
      }
  for (const char* score : {"softcap", "alibi", "t5"}) {
    Row r = forward;
    r.score = score;
    list.add_beside(r, forward, 1 / 1.2);
  }
  for (const DType dtype : measured_dtypes) {
    Row dense = forward;
    dense.dtype = dtype;
    Row r = dense;
    r.page = 16;
    list.add_beside(r, dense, .97);
  }
  for (const char* mask : {"full", "causal"}) {  // heads of 2 x 64 beside attention of d 128
    Row one = forward, r = forward;
    r.direction = "differential";
    r.d = 64;
    one.mask = r.mask = mask;
    list.add_beside(r, one, .90);
  }
  Row contended = forward;
  contended.threads = default_executor().workers();
  contended.contended = true;
  contended.bar = Row::Bar{"p90_ratio", 2.5, true};
  if (contended.threads > 1) list.add(contended);
}

void add_decode(List& list) {
  for (const DType dtype : measured_dtypes)
    for (const std::int64_t kv_heads : {4, 8}) {
      Row r;
      r.usual = false;
      r.direction = "decode";
      r.dtype = dtype;
      r.kv_heads = kv_heads;
      r.heads = kv_heads == 4 ? 32 : 8;
      r.q_len = 1;
      r.k_len = 8192;
      const Row one = r;
      if (dtype == DType::bf16) r.bar = Row::Bar{"of_read", kv_heads == 4 ? .80 : .90};
      list.add(r);
      r.page = 16;
      list.add_beside(r, one, .95);
      r.page = 0;
      r.q_len = 8;  // eight times the work in at most 1.3 times the time
      list.add_beside(r, one, 8 / 1.3);
    }
}

void add_overheads(List& list) {
  for (const char* step : {"verb", "resolve", "plan", "run", "c run"}) {
    Row r;
    r.usual = false;
    r.direction = "forward";
    r.heads = r.kv_heads = r.q_len = r.k_len = 1;
    r.d = 8;
    r.step = step;
    if (r.step == "verb") r.bar = Row::Bar{"seconds", 5e-6, true};
    if (r.step == "run") r.bar = Row::Bar{"seconds", 1e-6, true};
    list.add(r).name = "overhead " + r.step;
  }
}

/// One driver call and what is around it; calls of more than one kernel; and the doors before it.
void add_cuda_overheads(List& list) {
  Row small;
  small.usual = false;
  small.direction = "forward";
  small.dtype = DType::bf16;
  small.heads = small.kv_heads = 8;
  small.q_len = small.k_len = 128;
  small.d = 64;
  const auto add = [&](Row r, const char* step, const char* name, std::optional<double> most) {
    r.step = step;
    if (most) r.bar = Row::Bar{"seconds", *most, true};
    list.add(r).name = std::string("overhead ") + name;
  };
  add(small, "run", "run", 5e-6);
  add(small, "c run", "c run", {});
  add(small, "verb", "verb", {});
  Row tall = small;  // more tiles than multiprocessors
  tall.q_len = tall.k_len = 4096;
  add(tall, "run", "run many tiles", {});
  Row decode = small;
  decode.direction = "decode";
  decode.heads = 32;
  decode.q_len = 1;
  decode.k_len = 8192;
  add(decode, "run", "run decode", {});
  Row backward = small;
  backward.direction = "backward";
  add(backward, "run", "run backward", {});
}

}  // namespace

std::vector<Row> rows_of(Backend backend) {
  List list;
  add_usual(list, backend == Backend::cuda);
  if (backend == Backend::cpu) {
    add_long(list);
    add_decode(list);
    add_overheads(list);
  } else {
    add_cuda_overheads(list);
  }
  return std::move(list.rows_);
}

std::string mask_text(const Row& r) {
  if (r.mask == "window") return fmt::format("window({}, 0)", window_width);
  return r.mask == "documents" ? "documents(id)" : r.mask;
}

Workload workload_of(const Row& r) {
  Workload w;
  const auto tensor = [&](std::int64_t heads, std::int64_t tokens, std::uint64_t seed) {
    return w.keep.emplace_back(random_normal(r.dtype, {r.batch, heads, tokens, r.d}, seed));
  };
  w.q = Rows(tensor(r.heads, r.q_len, 1));
  if (r.page) {
    // The order that an allocator gives after a while: each seventh page, where that visits all.
    const std::int64_t pages = (r.k_len + r.page - 1) / r.page, count = pages * r.batch;
    const auto pool = [&](std::uint64_t seed) {
      return w.keep.emplace_back(random_normal(r.dtype, {count, r.kv_heads, r.page, r.d}, seed));
    };
    const Tensor k = pool(2), v = pool(3);
    const Tensor table = w.keep.emplace_back(Tensor::empty(DType::i32, {r.batch, pages}));
    const Tensor lengths = w.keep.emplace_back(Tensor::empty(DType::i32, {r.batch}));
    const std::int64_t stride = count % 7 ? 7 : 1;
    for (std::int64_t i = 0; i < count; ++i)
      table.ptr<std::int32_t>()[i] = static_cast<std::int32_t>(i * stride % count);
    std::fill_n(lengths.ptr<std::int32_t>(), r.batch, static_cast<std::int32_t>(r.k_len));
    w.kv = paged(k, v, table, lengths);
  } else {
    const Tensor k = tensor(r.kv_heads, r.k_len, 2), v = tensor(r.kv_heads, r.k_len, 3);
    w.kv = dense(k, v);
  }
  w.dout = tensor(r.heads, r.q_len, 4);
  if (!r.precision.empty()) {
    w.options.precision = precision_of(r.precision);
    w.kv.k_mean = w.keep.emplace_back(key_mean(w.kv));
  }
  w.options.align = Align::end;
  if (r.mask == "causal") w.options.mask = causal();
  if (r.mask == "window") w.options.mask = window(window_width, 0);
  if (r.mask == "documents") {
    std::vector<std::int32_t> id(static_cast<std::size_t>(r.k_len));
    for (std::size_t i = 0; i < id.size(); ++i)
      id[i] = static_cast<std::int32_t>(static_cast<std::int64_t>(i) / document_length);
    w.options.mask = documents(Array(std::move(id), "id"));
  }
  if (r.score == "softcap") w.options.score = softcap(30);
  if (r.score == "alibi") {
    std::vector<float> slope;
    for (std::int64_t h = 0; h < r.heads; ++h)
      slope.push_back(1.0f / static_cast<float>(2 << (h % 16)));
    w.options.score = alibi(Array(std::move(slope), "slope"));
  }
  if (r.score == "t5") {
    const Tensor table = w.keep.emplace_back(random_normal(DType::f32, {32, r.heads}, 5));
    w.options.score = t5_bias(Array(table, "table"));
  }
  return w;
}

}  // namespace undivided::cli
