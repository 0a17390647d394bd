// SPDX-License-Identifier: Apache-2.0
// A KernelSpec holds what changes the machine code of a kernel, and has one printable, parsable
// name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "cuda/params.hpp"
#include "undivided/plan.hpp"

namespace undivided::cuda {

enum class KernelKind : std::uint8_t {
  forward,              // O and LSE, or one split's partial results
  combine,              // splits -> O and LSE, in fixed order, plus the sink
  key_mass,             // column sums of the weights, from the LSE
  preprocess,           // delta = rowsum(dO * O) - dLSE
  backward_q,           // dQ and captured gradients
  backward_kv,          // dK and dV
  sink_gradient,        // dsink
  merge,                // two partial results, or one, plus a sink
  init,                 // max_logit = -inf
  backward,             // family sm90: sums of dQ, and dK and dV, in one pass
  prepare_rows,         // family sm90: before it, delta and zeros for the sums
  gather_dq,            // and after it, the sums to dQ
  sort_rows,            // sparse attention: lists of the rows that take part,
  meet_rows,            // which of them meet,
  plan_rows,            // the mask plan of that,
  take_rows,            // and rows to and from their places
  difference,           // the epilogue of differential attention,
  difference_backward,  // and its gradients
  round_sums,           // ordered gradients of captured arrays: fixed point to float32
};
/// Kernels of row_lists.cuh: they read ListParams, and no field of a spec but the target.
constexpr bool makes_lists(KernelKind k) {
  return k == KernelKind::sort_rows || k == KernelKind::meet_rows || k == KernelKind::plan_rows ||
         k == KernelKind::take_rows;
}
/// Kernels of difference.cuh: they read DifferenceParams, and no field of a spec but the target.
constexpr bool makes_difference(KernelKind k) {
  return k == KernelKind::difference || k == KernelKind::difference_backward;
}
/// Kernels of backward_rows_sm90.cuh: a block a query tile of the backward.
constexpr bool by_query_tiles(KernelKind k) {
  return k == KernelKind::prepare_rows || k == KernelKind::gather_dq;
}
/// portable: mma.sync and cp.async, every target from sm_80. sm90: TMA and wgmma, sm_90a alone.
enum class Family : std::uint8_t { portable, sm90 };
enum class MaskKind : std::uint8_t { full, band, program, plan };

/// Only what changes machine code. Programs themselves are text: the cache key holds them.
struct KernelSpec {
  KernelKind kind = KernelKind::forward;
  Family family = Family::portable;
  int arch = 80;  // the target: sm_<arch>, 80 or later; family sm90: sm_90a
  DType dtype = DType::bf16;
  DType out = DType::bf16;  // of O, or of the gradients: dtype or f32
  int dqk = 64, dv = 64;    // multiples of 8, 8..512
  MaskKind mask = MaskKind::full;
  bool inside_program = false;  // plan: Partial blocks ask the program, not bits
  bool score = false;           // a score program?
  /// Single pairs ask generated text?
  bool asks_program() const { return mask == MaskKind::program || inside_program; }
  RowKind rows = RowKind::dense;
  KvKind kv = KvKind::dense;
  bool packed = false;  // forward: rows of a tile are token x head-in-group (not with plan)
  bool split = false;   // forward: write partials of one key split
  int warpgroups = 0;   // sm90: of 64 query rows, for few rows; 0: as tuned for many
  bool fixed = false;   // sm90: keys of a tile depend on dims, score and dropout alone
  bool dropout = false;
  bool aligned = true;  // every base and stride a multiple of 16 bytes: cp.async
  Capture capture =
      Capture::none;  // backward_q, backward: gradients of captured arrays and parameters
  // backward_q, backward_kv: dO is float32 (rounded to dtype for the products). prepare_rows: it
  // rounds that for the sm90 backward.
  bool wide_dout = false;
  bool ordered = false;  // backward of family sm90: dQ is added in a fixed order

  friend bool operator==(const KernelSpec&, const KernelSpec&) = default;

  int tile_m() const;     // queries
  int tile_n() const;     // keys
  int dv_chunks() const;  // forward: CTAs that share one query tile's dv
  int dv_width() const;   // columns of dv of such a CTA: a multiple of 16
  int chunks() const;     // backward: column chunks of the gradients, each with its own CTA
  int threads() const;
  int min_blocks() const;             // of one multiprocessor, for the register allocator
  std::size_t shared_memory() const;  // dynamic; portable: at most 99 KB, sm90: 227 KB

  /// "fwd.sm90a..." is the sm90 family;
  /// "fwd.sm80.bf16.obf16.d128.v128.m64n64.band.identity.dense.paged.packed.split"
  std::string name() const;
  static KernelSpec parse(std::string_view name);  // raises Error{invalid_argument}
};

/// Makes the spec canonical: fields that the kind does not read take their defaults, so that equal
/// kernels have equal names.
KernelSpec canonical(KernelSpec spec);

/// The whole text for NVRTC. `mask` and `score` are definitions of `struct Mask` and `struct Score`
/// (policies as in kernels/policy.cuh); empty text means none.
std::string compose(const KernelSpec& spec,
                    std::string_view mask = {},
                    std::string_view score = {});
/// The entry point in every module.
inline constexpr const char* entry_name = "undivided_kernel";

/// Thread blocks of a launch (x only).
long long grid_size(const KernelSpec& spec, const Params& p);
/// Rows of partial_o, partial_lse and delta. Row of (b, h, i): dense (b * heads + h) * max_q_len +
/// i, ragged h * total_q + offset + i.
long long rows_of(RowKind rows, const Params& p);

}  // namespace undivided::cuda
