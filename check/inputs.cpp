// SPDX-License-Identifier: Apache-2.0
// Makes the tensors, tables and options of a case from its seed.
#include "check/inputs.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "check/programs.hpp"
#include "check/random.hpp"
#include "problem/sequence.hpp"

namespace undivided::check {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

void fill(DType dtype, void* data, std::int64_t count) {
  const auto bytes = size_of(dtype);
  std::byte one[8];
  const bool integer = dtype == DType::i32 || dtype == DType::i64 || dtype == DType::boolean;
  store_element(dtype, one, integer ? -1 : nan);
  for (std::int64_t i = 0; i < count; ++i)
    std::memcpy(static_cast<std::byte*>(data) + static_cast<std::size_t>(i) * bytes, one, bytes);
}

}  // namespace

Buffer::Buffer(DType dtype, std::vector<std::int64_t> shape, const std::string& layout) {
  const int rank = static_cast<int>(shape.size());
  // The order of the axes in memory, outermost first, and how much larger each is there.
  std::vector<std::size_t> order(shape.size());
  std::iota(order.begin(), order.end(), 0u);
  if (layout == "tokens" && rank >= 3)
    std::swap(order[static_cast<std::size_t>(rank - 3)], order[static_cast<std::size_t>(rank - 2)]);
  std::vector<std::int64_t> memory = shape;
  std::int64_t offset = guard;
  if (layout == "padded" && rank >= 3) {
    memory[shape.size() - 1] += static_cast<std::int64_t>(16 / size_of(dtype));
    memory[shape.size() - 2] += 3;
    memory[shape.size() - 3] += 1;
  } else if (layout == "unaligned" && rank >= 3) {
    memory[shape.size() - 1] += 3;
    offset += 1;
  }
  view_.dtype = dtype;
  view_.rank = rank;
  std::int64_t total = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    const std::size_t axis = order[i];
    view_.shape[axis] = shape[axis];
    view_.stride[axis] = total;
    total *= memory[axis];
  }
  const std::int64_t count = total + 2 * guard + 1;
  bytes_ = std::make_shared<std::vector<std::byte>>(
      static_cast<std::size_t>(count) * size_of(dtype) + 64);
  auto address = reinterpret_cast<std::uintptr_t>(bytes_->data());
  address = (address + 63) / 64 * 64;
  fill(dtype, reinterpret_cast<void*>(address), count);
  view_.data =
      reinterpret_cast<std::byte*>(address) + static_cast<std::size_t>(offset) * size_of(dtype);
}

View Buffer::storage() const {
  const auto first = (reinterpret_cast<std::uintptr_t>(bytes_->data()) + 63) / 64 * 64;
  const auto count = (bytes_->size() - 64) / size_of(view_.dtype);
  return View::of(reinterpret_cast<void*>(first), view_.dtype, {static_cast<std::int64_t>(count)});
}

bool Buffer::untouched_outside() const {
  const auto size = size_of(view_.dtype);
  std::byte pattern[8];
  const bool integer = view_.dtype == DType::i32 || view_.dtype == DType::i64;
  store_element(view_.dtype, pattern, integer ? -1 : nan);
  const View all = storage();
  const auto first = reinterpret_cast<std::uintptr_t>(all.data);
  const auto count = static_cast<std::size_t>(all.count());
  const auto base = (reinterpret_cast<std::uintptr_t>(view_.data) - first) / size;
  std::vector<bool> inside(count, false);
  std::array<std::int64_t, max_rank> at{};
  for (std::int64_t n = view_.count(); n-- > 0;) {
    std::int64_t element = static_cast<std::int64_t>(base);
    for (int a = 0; a < view_.rank; ++a) element += at[static_cast<std::size_t>(a)] * view_.step(a);
    inside[static_cast<std::size_t>(element)] = true;
    for (int a = view_.rank - 1; a >= 0 && ++at[static_cast<std::size_t>(a)] == view_.size(a); --a)
      at[static_cast<std::size_t>(a)] = 0;
  }
  for (std::size_t i = 0; i < count; ++i)
    if (!inside[i] && std::memcmp(reinterpret_cast<const void*>(first + i * size), pattern, size))
      return false;
  return true;
}

namespace {

/// Lengths differ between the sequences of a batch, and stay in the same order for q and k.
std::vector<std::int64_t> lengths_of(std::int64_t batch, std::int64_t n, bool vary) {
  std::vector<std::int64_t> out(static_cast<std::size_t>(batch), n);
  for (std::size_t b = 1; vary && b < out.size(); ++b) out[b] = b % 2 ? n / 2 : n - n / 3;
  return out;
}

class Maker {
 public:
  explicit Maker(const Case& c) : c_(c), random_(c.seed * 7919 + 17) {}

  Inputs make() {
    in_.q_len = lengths_of(c_.batch, c_.q_len, c_.rows != "dense");
    in_.k_len = lengths_of(c_.batch, c_.k_len, c_.kv != "dense");
    const DType index = c_.index == "i64" ? DType::i64 : DType::i32;
    const DType out = c_.result == "f32" || c_.result == "partial" ? DType::f32 : c_.dtype;
    make_rows(index, out);
    make_keys(index);
    make_options(index, out);
    return std::move(in_);
  }

 private:
  View keep(Buffer buffer) {
    in_.owners.push_back(buffer);
    return buffer;
  }
  View vector(DType dtype, const std::vector<std::int64_t>& values) {
    const View v = keep(Buffer(dtype, {static_cast<std::int64_t>(values.size())}));
    for (std::size_t i = 0; i < values.size(); ++i)
      store_element(dtype, v.at({static_cast<std::int64_t>(i)}), static_cast<double>(values[i]));
    return v;
  }
  static std::vector<std::int64_t> offsets(const std::vector<std::int64_t>& lengths) {
    std::vector<std::int64_t> out{0};
    for (const auto n : lengths) out.push_back(out.back() + n);
    return out;
  }
  void put_row(const View& v, void* at) {
    const auto size = size_of(v.dtype);
    for (std::int64_t i = 0; i < v.size(-1); ++i)
      store_element(v.dtype,
                    static_cast<std::byte*>(at) + static_cast<std::size_t>(i) * size,
                    random_.normal());
  }
  /// Q, dO: rows of the sequences get values, all else stays NaN.
  View rows(DType dtype, std::int64_t dim) {
    if (c_.rows == "ragged") {
      const View v = keep(Buffer(
          dtype,
          {std::accumulate(in_.q_len.begin(), in_.q_len.end(), std::int64_t{4}), c_.heads, dim},
          c_.layout));
      for (std::int64_t i = 0; i < v.size(0) - 4; ++i)
        for (std::int64_t h = 0; h < c_.heads; ++h) put_row(v, v.at({i, h, 0}));
      return v;
    }
    const View v = keep(Buffer(
        dtype, {c_.batch, c_.heads, c_.q_len + (c_.rows == "lengths" ? 5 : 0), dim}, c_.layout));
    for (std::int64_t b = 0; b < c_.batch; ++b)
      for (std::int64_t h = 0; h < c_.heads; ++h)
        for (std::int64_t i = 0; i < in_.q_len[static_cast<std::size_t>(b)]; ++i)
          put_row(v, v.at({b, h, i, 0}));
    return v;
  }
  void make_rows(DType index, DType out) {
    in_.q = Rows(rows(c_.dtype, c_.d));
    if (c_.rows == "ragged") in_.q.offsets = vector(index, offsets(in_.q_len));
    if (c_.rows == "lengths") in_.q.lengths = vector(index, in_.q_len);
    if (c_.backward()) in_.dout = Rows(rows(out, c_.dv));
  }

  void make_keys(DType index) {
    Kv& kv = in_.kv;
    if (c_.kv == "ragged") {
      kv.kind = KvKind::ragged;
      const auto total = std::accumulate(in_.k_len.begin(), in_.k_len.end(), std::int64_t{6});
      kv.k = keep(Buffer(c_.dtype, {total, c_.kv_heads, c_.d}, c_.layout));
      kv.v = keep(Buffer(c_.dtype, {total, c_.kv_heads, c_.dv}, c_.layout));
      for (const View* v : {&kv.k, &kv.v})
        for (std::int64_t j = 0; j < total - 6; ++j)
          for (std::int64_t h = 0; h < c_.kv_heads; ++h) put_row(*v, v->at({j, h, 0}));
      kv.offsets = vector(index, offsets(in_.k_len));
    } else if (c_.kv.starts_with("page")) {
      make_pages(index, std::stoll(c_.kv.substr(4)));
    } else {
      const auto tokens = c_.k_len + (c_.kv == "lengths" ? 9 : 0);
      kv.k = keep(Buffer(c_.dtype, {c_.batch, c_.kv_heads, tokens, c_.d}, c_.layout));
      kv.v = keep(Buffer(c_.dtype, {c_.batch, c_.kv_heads, tokens, c_.dv}, c_.layout));
      for (const View* v : {&kv.k, &kv.v})
        for (std::int64_t b = 0; b < c_.batch; ++b)
          for (std::int64_t h = 0; h < c_.kv_heads; ++h)
            for (std::int64_t j = 0; j < in_.k_len[static_cast<std::size_t>(b)]; ++j)
              put_row(*v, v->at({b, h, j, 0}));
      if (c_.kv == "lengths") kv.lengths = vector(index, in_.k_len);
    }
  }

  /// Pages lie in a shuffled order; entries past a length are rubbish.
  void make_pages(DType index, std::int64_t size) {
    Kv& kv = in_.kv;
    kv.kind = KvKind::paged;
    std::int64_t used = 0, most = 0;
    for (const auto n : in_.k_len) {
      used += (n + size - 1) / size;
      most = std::max(most, (n + size - 1) / size);
    }
    std::vector<std::int64_t> ids(static_cast<std::size_t>(used + 3));
    std::iota(ids.begin(), ids.end(), 0);
    for (std::size_t i = ids.size(); i > 1; --i) std::swap(ids[i - 1], ids[random_.below(i)]);
    kv.k = keep(Buffer(c_.dtype, {used + 3, c_.kv_heads, size, c_.d}, c_.layout));
    kv.v = keep(Buffer(c_.dtype, {used + 3, c_.kv_heads, size, c_.dv}, c_.layout));
    kv.page_table = keep(Buffer(index, {c_.batch, most + 2}));
    kv.lengths = vector(index, in_.k_len);
    std::size_t next = 0;
    for (std::int64_t b = 0; b < c_.batch; ++b) {
      const auto n = in_.k_len[static_cast<std::size_t>(b)];
      for (std::int64_t slot = 0; slot < most + 2; ++slot) {
        const bool in_use = slot * size < n;
        const std::int64_t page = in_use ? ids[next++] : slot % 2 ? -5 : 1 << 30;
        store_element(index, kv.page_table.at({b, slot}), static_cast<double>(page));
        if (!in_use) continue;
        for (const View* v : {&kv.k, &kv.v})
          for (std::int64_t h = 0; h < c_.kv_heads; ++h)
            for (std::int64_t j = 0; j < std::min(size, n - slot * size); ++j)
              put_row(*v, v->at({page, h, j, 0}));
      }
    }
  }

  void make_options(DType index, DType out) {
    Options& o = in_.options;
    std::int64_t q_extent = 0, k_extent = 0;
    std::vector<std::int64_t> q_origin, k_origin;
    for (std::int64_t b = 0; b < c_.batch; ++b) {
      const auto nq = in_.q_len[static_cast<std::size_t>(b)],
                 nk = in_.k_len[static_cast<std::size_t>(b)];
      q_origin.push_back(c_.align == "given" ? 9 + 4 * b : c_.align == "end" ? nk - nq : 0);
      k_origin.push_back(c_.align == "given" ? 3 * b : 0);
      q_extent = std::max(q_extent, q_origin.back() + nq);
      k_extent = std::max(k_extent, k_origin.back() + nk);
    }
    if (c_.align == "given") {
      o.q_origin = vector(index, q_origin);
      o.k_origin = vector(index, k_origin);
    } else {
      o.align = c_.align == "end" ? Align::end : Align::start;
    }
    const Extents extents{c_.batch,
                          c_.heads,
                          std::max<std::int64_t>(q_extent, 1),
                          std::max<std::int64_t>(k_extent, 1)};
    o.mask = make_mask(c_.mask, extents, c_.seed);
    if (c_.via == "inside") o.inside = Inside::program;
    if (c_.via == "maskplan") o.inside = Inside::bits;
    o.score = make_score(c_.score, extents, c_.seed);
    if (c_.sink == "given") {
      const View sink = keep(Buffer(DType::f32, {c_.heads}));
      for (std::int64_t h = 0; h < c_.heads; ++h)
        store_element(DType::f32, sink.at({h}), random_.uniform(-3, 6));
      o.sink = sink;
    }
    if (c_.dropout == "some") {
      o.dropout = 0.25;
      o.seed = c_.seed * 77 + 5;
    }
    if (c_.quantised()) {
      o.precision = {DType::i8, c_.precision == "i8/bf16" ? DType::bf16 : DType::f32, false};
      const View mean = keep(Buffer(DType::f32, {c_.kv_heads, c_.d}));
      for (std::int64_t h = 0; h < c_.kv_heads; ++h) put_row(mean, mean.at({h, 0}));
      in_.kv.k_mean = mean;
    }
    o.max_logit = c_.aux == "max" || c_.aux == "both";
    o.key_mass = c_.aux == "mass" || c_.aux == "both";
    o.partial = c_.result == "partial";
    if (c_.result == "f32") o.out_dtype = in_.backward.gradient_dtype = DType::f32;
    o.determinism = c_.determinism == "invariant"      ? Determinism::invariant
                    : c_.determinism == "reproducible" ? Determinism::reproducible
                                                       : Determinism::fast;
    (void)out;
    BackwardOptions& backward = in_.backward;
    backward.q = c_.want != "kv";
    backward.k = backward.v = c_.want != "q";
    backward.captured = c_.want == "all" || c_.want == "dlse";
    if (c_.want == "dlse") {
      const View d =
          keep(c_.rows == "ragged" ? Buffer(DType::f32, {c_.heads, in_.q.data.size(0)})
                                   : Buffer(DType::f32, {c_.batch, c_.heads, in_.q.data.size(2)}));
      std::int64_t first = 0;
      for (std::int64_t b = 0; b < c_.batch; ++b) {
        const auto n = in_.q_len[static_cast<std::size_t>(b)];
        for (std::int64_t h = 0; h < c_.heads; ++h)
          for (std::int64_t i = 0; i < n; ++i)
            store_element(DType::f32,
                          c_.rows == "ragged" ? d.at({h, first + i}) : d.at({b, h, i}),
                          random_.normal());
        first += n;
      }
      backward.dlse = d;
    }
  }

  const Case& c_;
  Random random_;
  Inputs in_;
};

}  // namespace

Inputs make_inputs(const Case& c) { return Maker(c).make(); }

Tensor random_tensor(DType dtype, std::initializer_list<std::int64_t> shape, std::uint64_t seed) {
  const Tensor t = Tensor::empty(dtype, shape);
  Random random(seed);
  for (std::int64_t i = 0; i < t.count(); ++i)
    store_element(dtype,
                  static_cast<std::byte*>(t.data) + static_cast<std::size_t>(i) * size_of(dtype),
                  random.normal());
  return t;
}

}  // namespace undivided::check
