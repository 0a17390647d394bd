// SPDX-License-Identifier: Apache-2.0
// Decides the shape of the work at prepare, checks contents at run.
#include "cpu/problem.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/philox.hpp"
#include "cpu/column_words.hpp"
#include "cpu/isa.hpp"
#include "undivided/error.hpp"

namespace undivided::cpu {
namespace {

template <class... T>
[[noreturn]] void refuse(fmt::format_string<T...> format, T&&... args) {
  throw Error(Code::invalid_argument, Stage::run, fmt::format(format, std::forward<T>(args)...));
}

bool is_identity(const expr::Program& p) { return p.root().op == expr::Op::score; }

void check_offsets(const char* name, const View& offsets, std::int64_t total) {
  std::int64_t previous = index_at(offsets, 0);
  if (previous != 0) refuse("{} offsets must begin with 0; they begin with {}", name, previous);
  for (std::int64_t i = 1; i < offsets.size(0); ++i) {
    const std::int64_t next = index_at(offsets, i);
    if (next < previous || next > total)
      refuse("{} offsets[{}] is {}; offsets must ascend and stay within the {} packed rows",
             name,
             i,
             next,
             total);
    previous = next;
  }
}

void check_length(const char* name, std::int64_t b, std::int64_t n, std::int64_t most) {
  if (n < 0 || n > most) refuse("{} length {} is {}; 0 to {} is allowed", name, b, n, most);
}

void check_pages(const Kv& kv, std::int64_t b, std::int64_t k_len) {
  const std::int64_t pages = kv.k.size(0), size = kv.k.size(2);
  if (k_len > page_slots(kv) * size)
    refuse("K length {} is {}; its {} page table entries hold {} tokens",
           b,
           k_len,
           page_slots(kv),
           page_slots(kv) * size);
  for (std::int64_t i = 0; i * size < k_len; ++i) {
    const std::int64_t page = page_of(kv, b, i);
    if (page < 0 || page >= pages)
      refuse("page_table[{}, {}] is {}; pages 0 to {} exist", b, i, page, pages - 1);
  }
}

}  // namespace

Setup::Setup(const Spec& s, const Bounds& b, const Context& context)
    : spec(s), bounds(b), kernels(&chosen_kernels()) {
  std::vector<double> values;
  for (const expr::ParamDecl& p : spec.mask->params) values.push_back(p.value);
  const expr::Band shape = expr::recognise_band(*spec.mask, values);
  band = shape.is_band;
  workers =
      std::max(default_executor().workers(), context.executor ? context.executor->workers() : 1);
  // Packing fills lanes that few queries would leave idle. A program that reads the head, a mask
  // plan with an entry per head, and key_mass want one head in all lanes.
  packed = spec.group > 1 && bounds.max_q_len < 2 * kernels->lanes && !spec.mask_plan &&
           !spec.listed && !spec.key_mass && !spec.mask->reads(expr::Op::head) &&
           !spec.score->reads(expr::Op::head) && spec.op == Operation::forward;
  // Rows that fill half a vector at most are bound by memory: the decode tile widens K and V on
  // their way. Where a row's bits may not depend on how many there are, prefill decides.
  const bool few = spec.op == Operation::forward && max_rows() <= kernels->width / 2 &&
                   spec.determinism != Determinism::invariant;
  const Precision& precision = spec.precision;
  const bool whole_numbers = !precision.follow && precision.qk == DType::i8;
  bf16_values = whole_numbers && precision.pv == DType::bf16;
  const bool whole_vectors = spec.dqk % 32 == 0 && spec.dv % 32 == 0;
  const Dots* matrix = whole_vectors ? kernels->matrix : nullptr;
  const bool pays = matrix || (bf16_dot_pays() && (whole_numbers || whole_vectors || !few));
  const bool bf16 = spec.dtype == DType::bf16 && spec.op != Operation::merge;
  if (whole_numbers      ? bf16_values && pays
      : precision.follow ? bf16 && pays
                         : bf16 && precision.qk == DType::bf16)
    dots = matrix ? matrix : kernels->dots;
  if (whole_numbers)
    quantised =
        dots && dots->quantised && spec.dqk % 64 == 0 ? dots->quantised : &kernels->quantised;
  if (spec.op == Operation::forward && !quantised) {
    if (!dots) decode = &kernels->decode;
    if (dots && whole_vectors) decode = dots->decode;
  }
  // Packed lanes are no row of queries, of which a word would hold a stretch.
  if (!packed && !band) columns = expr::column_tree(*spec.mask);
  mask = flatten(*spec.mask, {.diagonals = !packed}, leaves_of(columns));
  score = flatten(*spec.score, {.diagonals = !packed, .in_place = true});
  score.used = !is_identity(*spec.score);
  choose_tiles(spec.mask_plan || spec.listed || (shape.has_left && shape.has_right));
}

void Setup::choose_tiles(bool may_slide) {
  const bool narrow = spec.dqk + spec.dv <= 128;
  if (spec.op == Operation::backward && narrow) tile = 2 * query_tile;
  if (spec.op == Operation::forward)
    tile = dots && dots == kernels->matrix && spec.dqk + spec.dv <= 256 ? matrix_query_tile
           : narrow                                                     ? 2 * forward_query_tile
                                                                        : forward_query_tile;
  // Rows of K and V that lie apart cost twice as much: fewer tiles load them.
  if (spec.listed) tile = spec.op == Operation::forward ? 2 * tile : 3 * tile / 2;
  const std::int64_t streams = bounds.batch * (packed ? bounds.kv_heads : heads());
  // The backward sums dK and dV by tiles: their size must not depend on the workers.
  if (spec.op != Operation::backward)
    while (tile > 64 && streams * tiles(max_rows()) < 2 * workers) tile /= 2;
  while (tile > std::max(kernels->lanes, spec.mask_plan ? 64 : 0) && tile / 2 >= max_rows())
    tile /= 2;
  sliding_tile = tile;
  if (spec.op != Operation::forward || !may_slide) return;
  const auto tasks = [&](std::int64_t size) { return streams * ((max_rows() + size - 1) / size); };
  while (sliding_tile < std::min<std::int64_t>(sliding_query_tile, max_rows()) &&
         tasks(2 * std::int64_t{sliding_tile}) >= 2 * workers)
    sliding_tile *= 2;
}

namespace {

void check_list(const char* name, const std::int32_t* list, std::int64_t n, std::int64_t most) {
  if (n < most && !std::is_sorted(list, list + n))
    refuse("the list of {} holds {} of {} rows; it must ascend, or hold all", name, n, most);
  std::int32_t low = 0, high = -1;
  for (std::int64_t i = 0; i < n; ++i) low = std::min(low, list[i]), high = std::max(high, list[i]);
  if (low < 0 || high >= most)
    refuse("the list of {} holds {} to {}; rows 0 to {} exist", name, low, high, most - 1);
}

void check_lists(const Args& args, const Sequence& s) {
  check_list("Q", s.q_rows, s.q_len, args.q.data.size(2));
  check_list("K", s.k_rows, s.k_len, args.kv.k.size(2));
  bool ascend = true;
  std::int32_t first = 0, end = 0;
  for (std::int64_t i = 0; i < s.q_len; ++i) {
    ascend &= first <= s.first[i] && end <= s.end[i];
    first = s.first[i], end = s.end[i];
  }
  if (!ascend || first > s.k_len || end > s.k_len)
    refuse("the ends of the keys of rows must ascend within the {} keys", s.k_len);
}

/// Tiles of one size, with a quarter more where that spares a tile: a short last one would pack all
/// keys for a few rows. The backward adds to dK and dV by 128 rows, so bits do not know the tile.
int even_tile(int tile, std::int64_t rows) {
  if (tile == with_quarter(tile)) return tile;
  const std::int64_t tiles = std::max<std::int64_t>(1, (rows - tile / 4 + tile - 1) / tile);
  return static_cast<int>(((rows + tiles - 1) / tiles + 127) / 128 * 128);
}

/// Are the keys of a row few, from the first to the last, and do they move along with the row?
bool slides(const Args& args, MaskKind kind) {
  if (const RowLists& lists = args.lists; lists.q) {
    std::int64_t rows = 0, keys = 0;
    for (std::int64_t b = 0; b < lists.q.size(0); ++b)
      for (std::int64_t h = 0; h < lists.q.size(1); ++h) {
        const auto n = *static_cast<const std::int32_t*>(lists.q_lengths.at({b, h}));
        const auto *first = static_cast<const std::int32_t*>(lists.first.at({b, h, 0})),
                   *end = static_cast<const std::int32_t*>(lists.end.at({b, h, 0}));
        rows += n;
        for (std::int32_t i = 0; i < n; ++i) keys += std::max(0, end[i] - first[i]);
      }
    return keys <= rows * sliding_keys;
  }
  if (kind == MaskKind::band) {
    const expr::Band& band = args.mask->band;
    return band.has_left && band.has_right && band.left + band.right < sliding_keys;
  }
  if (kind != MaskKind::plan) return false;
  const MaskPlan& plan = *args.mask_plan;
  std::int64_t rows = 0, blocks = 0;
  for (const MaskPlan::Entry& entry : plan.entries) {
    const std::int64_t n = entry.q_blocks;
    const std::int32_t* offsets = plan.run_offsets.data() + entry.query_runs;
    for (std::int64_t row = 0; row < n; ++row)
      if (offsets[row] < offsets[row + 1])
        blocks += plan.runs[static_cast<std::size_t>(offsets[row + 1]) - 1].end -
                  plan.runs[static_cast<std::size_t>(offsets[row])].begin;
    rows += n;
  }
  return blocks * MaskPlan::block <= rows * sliding_keys;
}

}  // namespace

void Run::layout(Arena& arena, const Setup& setup) {
  Contents::layout(arena, setup.mask);
  Contents::layout(arena, setup.score);
}

Run::Run(const Setup& at, const Args& a, Arena& arena)
    : setup(at), args(a), spec(at.spec), kernels(*at.kernels) {
  batch = batch_of(spec, args);
  heads = query_heads(args);
  kv_heads = args.kv.k.size(1);
  if (spec.rows == RowKind::ragged) check_offsets("Q", args.q.offsets, args.q.data.size(0));
  if (spec.kv == KvKind::ragged) check_offsets("K", args.kv.offsets, args.kv.k.size(0));
  for (std::int64_t i = 0; i < batch * (spec.listed ? heads : 1); ++i) {
    const std::int64_t b = spec.listed ? i / heads : i;
    const Sequence s = sequence(spec, args, b, i % heads);
    if (spec.q_lengths) check_length("Q", b, s.q_len, args.q.data.size(2));
    if (spec.k_lengths) check_length("K", b, s.k_len, args.kv.k.size(2));
    if (spec.kv == KvKind::paged) check_pages(args.kv, b, s.k_len);
    check_length("Q", b, s.q_len, setup.bounds.max_q_len);
    check_length("K", b, s.k_len, setup.bounds.max_k_len);
    if (spec.listed) check_lists(args, s);
    max_q_len = std::max(max_q_len, s.q_len);
    max_k_len = std::max(max_k_len, s.k_len);
  }
  band = args.mask->band;
  mask_kind = spec.listed      ? MaskKind::band
              : band.is_band   ? (band.has_left || band.has_right ? MaskKind::band : MaskKind::none)
              : spec.mask_plan ? MaskKind::plan
                               : MaskKind::program;
  tile =
      setup.sliding_tile > setup.tile && slides(args, mask_kind) ? setup.sliding_tile : setup.tile;
  if (spec.op != Operation::merge)
    tile = even_tile(tile, max_q_len * (setup.packed ? spec.group : 1));
  asks_program = mask_kind == MaskKind::program ||
                 (mask_kind == MaskKind::plan && spec.inside == Inside::program);
  if (mask_kind == MaskKind::plan &&
      (args.mask_plan->batch != batch || args.mask_plan->heads != heads))
    refuse("the mask plan is for batch {} and {} heads; Q has batch {} and {} heads",
           args.mask_plan->batch,
           args.mask_plan->heads,
           batch,
           heads);
  mask = Contents::layout(arena, setup.mask);
  score = Contents::layout(arena, setup.score);
  mask.fill(setup.mask, args.mask->bound);
  score.fill(setup.score, args.score->bound);
  // Programs see scores in natural units; without one the scale carries log2(e) as well.
  factor = setup.score.used ? static_cast<float>(log2_e) : 1.0f;
  q_scale = static_cast<float>(setup.score.used ? args.scale : args.scale * log2_e);
  // Weights of up to 2^8 are as exact as those below 1, and O is hardly ever multiplied by alpha.
  // The largest score itself is wanted where `max_logit` is.
  if (!spec.max_logit) slack = 8;
  if (setup.dots && !setup.quantised) {
    // Q stays as it is: scaling would round it again. The maximum is taken before the factor, which
    // therefore must be positive.
    const bool late = !setup.score.used && q_scale > 0;
    score_scale = late ? 1.0f : q_scale;
    if (late) factor = q_scale;
    q_scale = 1;
  }
  if (spec.dropout) {
    threshold = philox::dropout_threshold(args.dropout);
    keep_scale = static_cast<float>(1.0 / (1.0 - args.dropout));
  }
}

void clear_rows(std::byte* first, std::int64_t step, std::int64_t count, std::int64_t bytes) {
  if (step == bytes) {
    bytes *= count;
    count = count > 0 ? 1 : 0;
  }
  for (std::int64_t i = 0; i < count; ++i) std::fill_n(first + i * step, bytes, std::byte{0});
}

Executor& executor_of(const Context& context, int workers) {
  Executor& executor = context.executor ? *context.executor : default_executor();
  if (executor.workers() > workers)
    throw Error(Code::invalid_argument,
                Stage::run,
                fmt::format("the executor has {} workers; this plan has scratch for {}: plan with "
                            "this executor in the context",
                            executor.workers(),
                            workers));
  return executor;
}

}  // namespace undivided::cpu
