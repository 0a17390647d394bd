// SPDX-License-Identifier: Apache-2.0
// Plans: which kernel runs a class of problems, why, and how to run it without allocating.
//
// A warm call is four stops: verb -> interned spec -> Plan::run -> kernel.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "undivided/attention.hpp"

namespace undivided {

enum class Operation : std::uint8_t {
  forward,
  backward,
  merge,
  differential,
  fastformer,
  quantize
};
enum class RowKind : std::uint8_t { dense, ragged };
/// How positions start: nobody reads them, or Align, or explicit origins.
enum class Origin : std::uint8_t { unread, start, end, given };
/// Page sizes that kernels tell apart.
enum class PageClass : std::uint8_t { none, multiple_of_64, of_32, of_16, other };

/// Everything that changes which code runs; no lengths, no contents, no batch, no KV head count.
struct Spec {
  Operation op = Operation::forward;
  DType dtype = DType::f32;      ///< of Q, K and V
  DType out_dtype = DType::f32;  ///< of O, or of the gradients in a backward
  int dqk = 0, dv = 0;
  int group = 1;  ///< query heads per KV head
  RowKind rows = RowKind::dense;
  KvKind kv = KvKind::dense;
  PageClass page = PageClass::none;
  bool q_lengths = false, k_lengths = false;  ///< dense rows with lengths
  bool shared_pages = false;  ///< a backward in which two places of the page table name one page
  bool aligned = true;        ///< every base and stride is a multiple of 16 bytes
  bool wide_index = false;    ///< offsets inside a tensor need 64 bits
  bool listed = false;        ///< Args carry RowLists; the mask keeps all pairs
  Origin origin = Origin::unread;
  std::shared_ptr<const expr::Program> mask;   ///< lifted; never null
  std::shared_ptr<const expr::Program> score;  ///< lifted; never null
  bool sink = false, dropout = false, partial = false, max_logit = false, key_mass = false;
  bool mask_plan = false;                                  ///< Args carry a MaskPlan
  Inside inside = Inside::bits;                            ///< ... of this kind
  bool want_dq = false, want_dk = false, want_dv = false;  ///< of a backward
  bool dlse = false, captured = false;
  DType dout_dtype = DType::f32;  ///< of the gradient of O in a backward
  Determinism determinism = Determinism::fast;
  Precision precision{};

  friend bool operator==(const Spec& a, const Spec& b);  ///< programs compare by structure
};
std::size_t hash_of(const Spec& spec);
std::string describe(const Spec& spec);  ///< one line

/// Upper bounds of the problems a plan will see; verbs round each up to a power of two.
struct Bounds {
  std::int64_t batch = 0, kv_heads = 0, total_q = 0, total_k = 0, max_q_len = 0, max_k_len = 0,
               pages = 0;
  std::int64_t captured = 0;  ///< a backward: elements of Args::d_arrays, all together
  friend bool operator==(const Bounds&, const Bounds&) = default;
};

class BoundProgram;  ///< arrays and parameters attached to a program, and proved
/// The positions that a problem can reach, ends included: what bind() proves a program for.
struct Positions {
  std::int64_t batch = 1, heads = 1;
  std::int64_t q_low = 0, q_high = 0, k_low = 0, k_high = 0;
  std::int64_t max_q_len = 0, max_k_len = 0;
};
/// Attaches contents: proves that integers stay in int32 and indices inside their arrays for every
/// problem within `reach`. Raises Error{bind}. Keep the handle: making it scans arrays once per
/// version.
std::shared_ptr<const BoundProgram> bind(const Mask& mask, const Positions& reach);
std::shared_ptr<const BoundProgram> bind(const Score& score, const Positions& reach);

/// Rows by lists, on the host. Row i of a head of the problem is row q[b, h, i] of Q, O, LSE, dO
/// and dQ; key j of a KV head is row k[b, h, j] of K, V, dK and dV. Of its KV head's list a row
/// keeps the keys from first[b, h, i] to end[b, h, i] - 1, and neither end ever descends. A list
/// that leaves rows out ascends. Rows that no list names have O = 0, LSE = -inf and gradients of 0.
struct RowLists {
  View q, k;                  ///< i32 [batch, head, room], [batch, KV head, room of keys], dense
  View q_lengths, k_lengths;  ///< i32 [batch, head], [batch, KV head]: how many of them
  View first, end;            ///< i32 like q
};

/// Data of one run. On CUDA, lengths, offsets, tables, origins, arrays and the seed view are device
/// memory.
struct Args {
  Rows q;
  Kv kv;
  RowLists lists;
  View o, lse, max_logit, key_mass;  ///< a backward reads o and lse
  double scale = 1;
  View q_origin, k_origin;
  View sink;
  double dropout = 0;
  std::uint64_t seed = 0;
  View seed_view;  ///< CUDA, optional: i64 [1], read instead of `seed` (new seeds under graph
                   ///< replay)
  std::shared_ptr<const BoundProgram> mask, score;
  std::shared_ptr<const MaskPlan> mask_plan;
  // backward
  Rows dout;
  View dlse, dq, dk, dv, dsink;
  std::vector<View> d_arrays;  ///< per slot of the score program, float32; not given = not wanted
  View d_params;  ///< float32, one per parameter of the score program (lifted ones too)
  // merge: (a, b) -> (o, lse); without b, (a, sink) -> (o, lse)
  View a_o, a_lse, b_o, b_lse;

  /// Copies lengths, offsets, tables and origins and validates them. Synchronises; refused during
  /// capture.
  void check(const Spec& spec, const Bounds& bounds, const Context& context = {}) const;
};

/// Why a backend was not chosen: which limit, what came.
struct Refusal {
  std::string backend, reason, limit, got;
};
/// What runs and why, for people (text) and programs (the fields).
struct Explanation {
  std::string backend, kernel, tiles, determinism;
  std::int64_t splits = 1;
  double flops = 0, bytes = 0,
         floor_seconds = 0;  ///< at the bounds, all pairs kept unless a band says otherwise
  std::size_t workspace = 0;
  std::vector<std::string> notes;
  std::vector<Refusal> refused;
};

/// A prepared way to run a class of problems. Copies are cheap; runs are safe from many threads.
class Plan {
 public:
  std::size_t workspace()
      const;  ///< bytes that run() needs, 256-byte aligned, on the device of the data
  /// Validates classes and bounds, then launches: no allocation, no synchronisation, no
  /// compilation.
  void run(const Args& args, void* workspace, const Context& context = {}) const;
  const Explanation& explanation() const;
  std::string explain() const;
  const Spec& spec() const;
  const Bounds& bounds() const;

  struct State;
  explicit Plan(std::shared_ptr<const State> state) : state_(std::move(state)) {}

 private:
  std::shared_ptr<const State> state_;
};

/// Chooses and prepares. Depends on spec, bounds, context.backend and context.compile only, and on
/// which device `device` is. Raises Error{plan} that lists every refusal and the nearest legal
/// choice.
Plan plan(const Spec& spec, const Bounds& bounds, Device device = {}, const Context& context = {});

/// A call, taken apart: what attention() would plan and run.
struct Problem {
  Spec spec;
  Bounds bounds;
  Args args;
  Device device;
};
/// Every user error of a forward is raised here. Outputs that are not given stay empty views in
/// Args.
Problem resolve(const Rows& q, const Kv& kv, const Options& options, const Outputs& out = {});
Problem resolve_backward(const Rows& dout,
                         const Rows& q,
                         const Kv& kv,
                         const View& o,
                         const View& lse,
                         const Options& options,
                         const BackwardOptions& backward);

}  // namespace undivided
