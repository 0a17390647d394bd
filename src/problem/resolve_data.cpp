// SPDX-License-Identifier: Apache-2.0
// Checks of Q, K and V: dtypes, shapes, strides, lengths, offsets, pages.
#include "problem/resolve_data.hpp"

#include <algorithm>
#include <vector>

#include "problem/sequence.hpp"

namespace undivided {

void want_unit_stride(const char* name, const View& v) {
  if (v.size(-1) > 1 && v.step(-1) != 1)
    refuse("the last stride of {} ({}) is {}; it must be 1: make a dense copy",
           name,
           v.describe(),
           v.step(-1));
}

void want_index(const char* name, const View& v, std::int64_t size, Device device) {
  if (v.dtype != DType::i32 && v.dtype != DType::i64)
    refuse("{} is {}; i32 or i64 is allowed", name, name_of(v.dtype));
  if (v.rank != 1 || v.size(0) != size)
    refuse("{} is {}; a vector of {} elements is expected", name, v.describe(), size);
  if (!on_host(v) && v.device != device)
    refuse("{} is on {}; it must be on the host or on {} like Q",
           name,
           to_string(v.device),
           to_string(device));
}

void add_batch_axis(View& v) {
  if (v && v.rank == 3) v = v.unsqueezed(0);
}

namespace {

/// Offsets ascend from 0 to at most `total`; returns the largest length.
std::int64_t check_offsets(const char* name, const View& offsets, std::int64_t total) {
  std::int64_t longest = 0, previous = index_at(offsets, 0);
  if (previous != 0) refuse("{} must begin with 0; it begins with {}", name, previous);
  for (std::int64_t i = 1; i < offsets.size(0); ++i) {
    const std::int64_t next = index_at(offsets, i);
    if (next < previous || next > total)
      refuse("{}[{}] is {}; offsets must ascend and stay within the {} packed rows",
             name,
             i,
             next,
             total);
    longest = std::max(longest, next - previous);
    previous = next;
  }
  return longest;
}

std::int64_t check_lengths(const char* name, const View& lengths, std::int64_t most) {
  std::int64_t longest = 0;
  for (std::int64_t i = 0; i < lengths.size(0); ++i) {
    const std::int64_t n = index_at(lengths, i);
    if (n < 0 || n > most) refuse("{}[{}] is {}; 0 to {} is allowed", name, i, n, most);
    longest = std::max(longest, n);
  }
  return longest;
}

}  // namespace

void DataResolver::rows(const Rows& q) {
  if (!q.data) refuse("Q is not given");
  args.q = q;
  if (q.offsets) {
    spec.rows = RowKind::ragged;
    if (q.data.rank != 3)
      refuse("ragged Q is {}; [total, head, dim] is expected", q.data.describe());
    if (q.lengths) refuse("ragged Q has offsets; lengths belong to dense rows only");
    if (q.offsets.rank != 1 || q.offsets.size(0) < 1)
      refuse("Q offsets are {}; a vector of batch + 1 elements is expected", q.offsets.describe());
  } else if (q.data.rank != 3 && q.data.rank != 4) {
    refuse("Q is {}; [batch, head, token, dim] or [head, token, dim] is expected",
           q.data.describe());
  } else {
    add_batch_axis(args.q.data);
  }
  problem.device = q.data.device;
  spec.dtype = q.data.dtype;
  switch (spec.dtype) {
    case DType::f64:
    case DType::f32:
    case DType::f16:
    case DType::bf16:
      break;
    default:
      refuse("Q has dtype {}; f32, f16, bf16 (and f64 for the oracle) are allowed",
             name_of(spec.dtype));
  }
}

void DataResolver::keys(const Kv& kv) {
  args.kv = kv;
  spec.kv = kv.kind;
  if (!kv.k || !kv.v) refuse("{} is not given", kv.k ? "V" : "K");
  const int rank = kv.kind == KvKind::ragged ? 3 : 4;
  if (kv.kind == KvKind::dense) {
    add_batch_axis(args.kv.k);
    add_batch_axis(args.kv.v);
  }
  for (const auto& [name, v] : {std::pair{"K", &args.kv.k}, std::pair{"V", &args.kv.v}}) {
    if (v->rank != rank)
      refuse("{} is {}; {} is expected",
             name,
             v->describe(),
             kv.kind == KvKind::dense    ? "[batch, kv head, token, dim] or [kv head, token, dim]"
             : kv.kind == KvKind::ragged ? "ragged [total, kv head, dim]"
                                         : "paged [page, kv head, token, dim]");
    if (v->dtype != spec.dtype)
      refuse("{} has dtype {} and Q has {}; they must be the same",
             name,
             name_of(v->dtype),
             name_of(spec.dtype));
    if (v->device != problem.device)
      refuse("{} is on {} and Q is on {}", name, to_string(v->device), to_string(problem.device));
    want_unit_stride(name, *v);
  }
  const View &k = args.kv.k, &v = args.kv.v;
  for (int axis = 0; axis + 1 < rank; ++axis)
    if (k.size(axis) != v.size(axis))
      refuse("K is {} and V is {}; all axes but the last must agree", k.describe(), v.describe());
}

void DataResolver::shapes() {
  const View &q = args.q.data, &k = args.kv.k, &v = args.kv.v;
  want_unit_stride("Q", q);
  if (q.size(-1) != k.size(-1))
    refuse("Q has head dim {} and K has {}; they must be equal (V may differ)",
           q.size(-1),
           k.size(-1));
  if (q.size(-1) < 1 || v.size(-1) < 1) refuse("head dim 0 is not allowed");
  const std::int64_t hq = q.size(1), hkv = k.size(1);
  if (hkv < 1 || hq < 1) refuse("Q has {} heads and K has {}; at least one each", hq, hkv);
  if (hq % hkv != 0)
    refuse(
        "Q has {} heads and K has {}; the number of query heads must be a multiple of the KV "
        "heads "
        "(nearest: {})",
        hq,
        hkv,
        std::max<std::int64_t>(1, (hq + hkv / 2) / hkv) * hkv);
  if (hq > 65535) refuse("Q has {} heads; at most 65535", hq);
  spec.dqk = static_cast<int>(q.size(-1));
  spec.dv = static_cast<int>(v.size(-1));
  spec.group = static_cast<int>(hq / hkv);
  bounds.kv_heads = hkv;
}

void DataResolver::lengths() {
  const View& q = args.q.data;
  const Kv& kv = args.kv;
  const Device device = problem.device;
  const bool ragged_q = spec.rows == RowKind::ragged;
  bounds.batch = ragged_q ? args.q.offsets.size(0) - 1 : q.size(0);
  const std::int64_t batch = bounds.batch;
  // queries
  if (ragged_q) {
    want_index("Q offsets", args.q.offsets, batch + 1, device);
    bounds.total_q = q.size(0);
    bounds.max_q_len = on_host(args.q.offsets)
                           ? check_offsets("Q offsets", args.q.offsets, q.size(0))
                       : args.q.max_length ? args.q.max_length
                                           : q.size(0);
  } else {
    bounds.max_q_len = q.size(2);
    bounds.total_q = batch * q.size(2);
    spec.q_lengths = static_cast<bool>(args.q.lengths);
    if (spec.q_lengths) {
      want_index("Q lengths", args.q.lengths, batch, device);
      if (on_host(args.q.lengths)) check_lengths("Q lengths", args.q.lengths, q.size(2));
    }
  }
  // keys
  if (spec.kv != KvKind::ragged && kv.offsets) refuse("offsets belong to ragged K and V only");
  if (spec.kv != KvKind::paged && kv.page_table)
    refuse("a page table belongs to paged K and V only");
  if (spec.kv != KvKind::paged && kv.prefix_table)
    refuse("a prefix table belongs to paged K and V only");
  switch (spec.kv) {
    case KvKind::dense:
      if (kv.k.size(0) != batch)
        refuse("Q has batch {} and K has {}; they must be equal", batch, kv.k.size(0));
      bounds.max_k_len = kv.k.size(2);
      bounds.total_k = batch * kv.k.size(2);
      spec.k_lengths = static_cast<bool>(kv.lengths);
      if (spec.k_lengths) {
        want_index("K lengths", kv.lengths, batch, device);
        if (on_host(kv.lengths)) check_lengths("K lengths", kv.lengths, kv.k.size(2));
      }
      break;
    case KvKind::ragged:
      if (kv.lengths) refuse("ragged K has offsets; lengths belong to dense and paged K only");
      if (!kv.offsets) refuse("ragged K and V need offsets");
      want_index("K offsets", kv.offsets, batch + 1, device);
      bounds.total_k = kv.k.size(0);
      bounds.max_k_len = on_host(kv.offsets) ? check_offsets("K offsets", kv.offsets, kv.k.size(0))
                         : kv.max_length     ? kv.max_length
                                             : kv.k.size(0);
      break;
    case KvKind::paged:
      pages(batch);
      break;
  }
}

void DataResolver::pages(std::int64_t batch) {
  const Kv& kv = args.kv;
  if (!kv.page_table || !kv.lengths) refuse("paged K and V need a page table and lengths");
  if (kv.page_table.rank != 2 || kv.page_table.size(0) != batch)
    refuse(
        "the page table is {}; [batch {}, max pages] is expected", kv.page_table.describe(), batch);
  if (kv.page_table.dtype != DType::i32 && kv.page_table.dtype != DType::i64)
    refuse("the page table is {}; i32 or i64 is allowed", name_of(kv.page_table.dtype));
  want_index("K lengths", kv.lengths, batch, problem.device);
  if (kv.prefix_table)
    want_index("the prefix table", kv.prefix_table, kv.prefix_table.size(0), problem.device);
  const std::int64_t size = kv.k.size(2), most = page_slots(kv) * size;
  if (size < 1) refuse("pages of 0 tokens are not allowed");
  bounds.pages = kv.k.size(0);
  std::int64_t longest = kv.max_length ? std::min(kv.max_length, most) : most;
  if (on_host(kv.lengths)) longest = check_lengths("K lengths", kv.lengths, most);
  bounds.max_k_len = longest;
  bounds.total_k = batch * longest;
  spec.page = size % 64 == 0 ? PageClass::multiple_of_64
              : size == 32   ? PageClass::of_32
              : size == 16   ? PageClass::of_16
                             : PageClass::other;
  if (!tables_on_host()) return;
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t i = 0; i * size < index_at(kv.lengths, b); ++i) {
      const std::int64_t page = page_of(kv, b, i);
      if (page < 0 || page >= bounds.pages)
        refuse("page_table[{}, {}] is {}; pages 0 to {} exist", b, i, page, bounds.pages - 1);
    }
}

bool DataResolver::lengths_on_host() const {
  return (!args.q.offsets || on_host(args.q.offsets)) &&
         (!args.q.lengths || on_host(args.q.lengths)) &&
         (!args.kv.offsets || on_host(args.kv.offsets)) &&
         (!args.kv.lengths || on_host(args.kv.lengths));
}

bool DataResolver::tables_on_host() const {
  return on_host(args.kv.page_table) && on_host(args.kv.lengths) && on_host(args.kv.prefix_table);
}

bool DataResolver::shares_pages() const {
  const Kv& kv = args.kv;
  if (spec.kv != KvKind::paged) return false;
  if (!tables_on_host()) return kv.prefix_table && bounds.batch > 1;
  std::vector<char> seen(static_cast<std::size_t>(kv.k.size(0)), 0);
  for (std::int64_t b = 0; b < bounds.batch; ++b)
    for (std::int64_t i = 0; i * kv.k.size(2) < index_at(kv.lengths, b); ++i) {
      char& page = seen[static_cast<std::size_t>(page_of(kv, b, i))];
      if (page) return true;
      page = 1;
    }
  return false;
}

}  // namespace undivided
