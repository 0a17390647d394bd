// SPDX-License-Identifier: Apache-2.0
// How callers name their data: dense, ragged, paged.
#include "undivided/attention.hpp"

namespace undivided {

Rows ragged(View data, View offsets) {
  Rows rows(data);
  rows.offsets = offsets;
  return rows;
}

Kv dense(View k, View v) {
  Kv kv;
  kv.k = k;
  kv.v = v;
  return kv;
}

Kv ragged(View k, View v, View offsets) {
  Kv kv = dense(k, v);
  kv.kind = KvKind::ragged;
  kv.offsets = offsets;
  return kv;
}

Kv paged(View k_pool, View v_pool, View page_table, View lengths) {
  Kv kv = dense(k_pool, v_pool);
  kv.kind = KvKind::paged;
  kv.page_table = page_table;
  kv.lengths = lengths;
  return kv;
}

Kv paged(View k_pool, View v_pool, View prefix_table, View page_table, View lengths) {
  Kv kv = paged(k_pool, v_pool, page_table, lengths);
  kv.prefix_table = prefix_table;
  return kv;
}

}  // namespace undivided
