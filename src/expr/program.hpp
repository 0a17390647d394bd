// SPDX-License-Identifier: Apache-2.0
// A program of the little language: an immutable, deduplicated SSA vector. Operands precede users.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "undivided/expr.hpp"

namespace undivided::expr {

enum class Op : std::uint8_t {
  // leaves
  batch,
  head,
  q,
  k,
  q_len,
  k_len,
  score,
  constant,  // Node::integer (boolean, i32) or Node::real (f32)
  param,     // Node::slot indexes Program::params
  load,      // Node::slot indexes Program::slots; operands are the indices
  // arithmetic on i32 or f32 (both sides of one type; the builder inserts to_float)
  add,
  sub,
  mul,
  div /* f32 only */,
  floordiv /* i32 */,
  mod /* i32 */,
  abs,
  min,
  max,
  neg,
  // i32
  shl,
  shr,
  bit_and,
  bit_or,
  bit_xor,
  // compares: i32, f32; eq and ne also boolean
  lt,
  le,
  gt,
  ge,
  eq,
  ne,
  // boolean
  logical_and,
  logical_or,
  logical_not,
  select,  // operands: condition, if true, if false
  // f32
  tanh,
  exp,
  log,
  sqrt,
  // conversions
  to_float,
  trunc,
};
int arity(Op op);  // -1 for load
const char* name_of(Op op);

struct Node {
  Op op{};
  Type type{};
  std::array<std::int32_t, 4> operand{-1, -1, -1, -1};  // unused ones are -1
  std::int32_t slot = -1;
  std::int64_t integer = 0;
  double real = 0;
  friend bool operator==(const Node&, const Node&) = default;
};

struct Slot {  // a captured array: contents are bound later
  std::string name;
  DType dtype = DType::i32;  // i32, f32, boolean
  int rank = 1;
  friend bool operator==(const Slot&, const Slot&) = default;
};

struct ParamDecl {
  std::string name;
  Type type = Type::i32;
  double value = 0;     // default; a lifted constant's value
  bool lifted = false;  // made by lift() from a literal: prints as "_c0"
};

class Program {
 public:
  std::vector<Node> nodes;
  std::vector<std::int32_t> roots;  // one for masks and scores; several for gradients
  std::vector<Slot> slots;
  std::vector<ParamDecl> params;

  const Node& root(std::size_t i = 0) const { return nodes[static_cast<std::size_t>(roots[i])]; }
  bool reads(Op leaf) const;     // is that leaf reachable?
  bool reads_positions() const;  // batch and head excluded: q or k
};
using ProgramPtr = std::shared_ptr<const Program>;

/// Equal by structure: nodes, roots, slots, parameter names and types; parameter values do not
/// count.
bool same_structure(const Program& a, const Program& b);
std::size_t structure_hash(const Program& p);

/// Canonical text with declarations ("array doc: i32[1]; param w: i32 = 1024; k <= q"), or without.
std::string print(const Program& p, bool declarations = true);
/// Parses canonical or hand-written text and simplifies it:
///   { array NAME: i32|f32|bool [RANK]; | param NAME: i32|f32 = NUMBER; | let NAME = expr; } expr
/// with C's operators and precedences, c ? a : b, NAME[i, j], abs min max clamp select tanh exp log
/// sqrt trunc float, and the literals true, false, inf. Arrays and parameters need no declaration
/// when `captures` names them; an undeclared whole-number parameter is i32. `wanted` is the type of
/// the expression (boolean or f32). Raises Error{parse}: what was found, at which line and column,
/// what was expected, a caret line.
Program parse(std::string_view text, Type wanted, const Captures& captures);

/// Folds constants, removes identities and dead nodes, orders commutative operands; keeps meaning
/// bit for bit in int32 and never changes float rounding.
Program simplify(const Program& p);

/// Turns literals into parameters named _c0, _c1, ... so that their values do not recompile.
/// Divisors, moduli and shift counts stay literal, and so do booleans. A lifted float is positive
/// and finite: a negative literal is the negation of one, any other stays. Lifted parameters come
/// after the others in Program::params, one for each use of a literal.
Program lift(const Program& p);

// --- readings ------------------------------------------------------------------------------------

/// Contents of a program's slots and parameters, in their order. Host pointers.
struct Bound {
  struct ArrayRef {
    const void* data = nullptr;
    DType dtype = DType::i32;
    std::array<std::int64_t, 4> shape{1, 1, 1, 1};
    std::array<std::int64_t, 4> stride{0, 0, 0, 0};
    std::int64_t low = 0, high = 0;  // range of the values of an integer array
  };
  std::vector<ArrayRef> arrays;
  std::vector<double> params;
};

struct Point {  // one element
  std::int64_t batch = 0, head = 0, q = 0, k = 0, q_len = 0, k_len = 0;
  double score = 0;
};
/// Scalar reading, in float64 and exact integers: the oracle's. Writes one value per root (booleans
/// as 0 or 1). `scratch` has nodes.size() entries. Load indices are clamped.
void evaluate(
    const Program& p, const Bound& bound, const Point& at, double* scratch, double* results);

struct Interval {
  std::int64_t low = 0, high = 0;
};
/// The box of positions that a problem can reach.
struct Box {
  Interval batch, head, q, k, q_len, k_len;
};
/// Proves that integers stay in int32 and load indices inside their arrays for every point of
/// `box`. Raises Error{bind} that prints the expression, the interval and the extent.
void prove(const Program& p, const Bound& bound, const Box& box);

/// A mask that is a conjunction of upper bounds on q - k and k - q by constants or parameters:
/// keep iff q - k <= left and k - q <= right. `full` has neither bound.
struct Band {
  bool is_band = false;
  bool has_left = false, has_right = false;
  std::int64_t left = 0, right = 0;
};
Band recognise_band(const Program& p, const std::vector<double>& params);

/// A mask by key columns: q is read only as a whole side of integer compares whose other side does
/// not read it, as in k <= q && q < end[k]. So each key keeps a few stretches of queries.
struct ColumnForm {
  std::vector<std::int32_t> leaves;  // of the boolean tree, ascending; empty: not of this form
  bool loads = false;                // some leaf reads an array
};
inline constexpr std::size_t most_column_compares = 20;
ColumnForm by_columns(const Program& p);
/// The boolean tree of such a mask, operands before their readers and the root last; no steps: not
/// of this form. A leaf compares q, on the left, with the value of `node`, which does not read q;
/// or it is a constant: the condition `node`.
struct ColumnTree {
  struct Step {
    Op op{};
    std::array<std::int32_t, 3> from{-1, -1, -1};  // steps
    std::int32_t node = -1;                        // of a leaf
  };
  std::vector<Step> steps;
};
ColumnTree column_tree(const Program& p);
/// Is this node a connective of booleans (a node of the boolean tree and no leaf)?
bool is_connective(const Program& p, const Node& node);

/// The derivative of root 0 with respect to the score, each load of a float slot and each float
/// parameter, as one program with several roots. Loads and parameters are those of `p`.
struct Gradient {
  Program program;  // roots: [d/dscore, then one per term]
  struct Term {
    bool is_param = false;
    std::int32_t slot = -1;  // slot or parameter of `p`
    std::array<std::int32_t, 4> index{
        -1, -1, -1, -1};  // nodes of `program` that hold the load's indices
    // The value of root i + 1 times the incoming gradient is added to slot[index...] (or the
    // parameter).
  };
  std::vector<Term> terms;
};
Gradient differentiate(const Program& p);

/// CUDA text: the body of a device function. Positions are the given variable names, arrays and
/// parameters come through `env` members named after slots and parameters (a<i>, p<i>). Statements
/// v<i> for each node, then `out<i>` for each root. For a score: it is raw * scale, factors that
/// all pairs share are multiplied first, tanh is within 3e-6 (2^-10.9 for bfloat16) and division
/// within 2 ulp; with `kept`, values of cuda_kept() are read as <kept><i>. Masks compare what they
/// compute, and stay exact.
std::string print_cuda(const Program& p, bool score = false, const char* kept = nullptr);

/// What a score loads by batch and head alone, to be looked up once for many pairs: declarations of
/// <kept><i>, and the statements that set them.
struct CudaKept {
  std::string members, statements;
};
CudaKept cuda_kept(const Program& p, const char* kept);

/// After the statements of print_cuda: root 0 is `unit` * `value`. The unit is positive, the same
/// for all pairs and made of constants, lifted parameters and `scale`, which must be positive. An
/// exponent takes it with the multiplication that it needs anyway. `linear`: the value is the raw
/// product plus a multiple of the distance that all pairs of a row share, as in ALiBi.
struct CudaScore {
  std::string value, unit;
  bool linear = false;
};
CudaScore cuda_score(const Program& p);

}  // namespace undivided::expr
