// SPDX-License-Identifier: Apache-2.0
// merge and finish: rows of two normalised partial results, weighted by their LSE; the second may
// be a sink, which has weight and no value. (Rabe and Staats 2021, section 3.)
#include "cpu/merge.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/describe.hpp"
#include "cpu/isa.hpp"
#include "undivided/error.hpp"

namespace undivided::cpu {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t rows_per_task = 64;

class Merge final : public Prepared {
 public:
  Merge(const Spec& spec, const Bounds& bounds, const Context& context)
      : spec_(spec),
        kernels_(&chosen_kernels()),
        workers_(std::max(default_executor().workers(),
                          context.executor ? context.executor->workers() : 1)) {
    explanation.backend = "cpu";
    explanation.kernel = fmt::format("merge.{}.f32.d{}", kernels_->name, spec.dv);
    explanation.tiles = fmt::format("{} rows", rows_per_task);
    explanation.determinism = "invariant";
    const double elements = static_cast<double>(bounds.total_q * bounds.kv_heads) * spec.dv;
    explanation.flops = 3 * elements;
    explanation.bytes = elements * (8.0 + static_cast<double>(size_of(spec.out_dtype)));
  }
  std::size_t workspace() const override { return 0; }

  void run(const Args& args, void*, const Context& context) const override {
    for (const auto& [name, v] : {std::pair{"a.o", &args.a_o},
                                  {"a.lse", &args.a_lse},
                                  {"b.o", &args.b_o},
                                  {"b.lse", &args.b_lse},
                                  {"LSE", &args.lse},
                                  {"sink", &args.sink}})
      want_dtype(name, *v, DType::f32);
    want_dtype("O", args.o, spec_.out_dtype);
    const bool ragged = spec_.rows == RowKind::ragged;
    const std::int64_t batch = ragged ? 1 : args.o.size(0), heads = args.o.size(1);
    const std::int64_t rows = ragged ? args.o.size(0) : args.o.size(2);
    const std::int64_t chunks = (rows + rows_per_task - 1) / rows_per_task;
    executor_of(context, workers_).parallel_for(batch * heads * chunks, [&](std::int64_t t, int) {
      const std::int64_t b = t / chunks / heads, h = t / chunks % heads;
      const std::int64_t first = t % chunks * rows_per_task;
      for (std::int64_t i = first; i < std::min(rows, first + rows_per_task); ++i)
        row(args, b, h, i);
    });
  }

 private:
  void row(const Args& args, std::int64_t b, std::int64_t h, std::int64_t i) const {
    const Sequence s;
    const auto lse_of = [&](const View& v) -> double {
      return v ? static_cast<double>(*row_scalar(spec_, v, s, b, h, i)) : -infinity;
    };
    const double x = lse_of(args.a_lse);
    const double y =
        spec_.sink
            ? static_cast<double>(static_cast<const float*>(args.sink.data)[h * args.sink.step(0)])
            : lse_of(args.b_lse);
    const double top = std::max(x, y);
    const double lse =
        top == -infinity ? top : top + std::log(std::exp(x - top) + std::exp(y - top));
    if (args.lse) *row_scalar(spec_, args.lse, s, b, h, i) = static_cast<float>(lse);
    float sum[512] = {};
    const auto add = [&](const View& v, double part) {
      if (!v || part == -infinity) return;
      const auto weight = static_cast<float>(std::exp(part - lse));
      const auto* o = reinterpret_cast<const float*>(row_address(spec_, v, s, b, h, i));
      for (int c = 0; c < spec_.dv; ++c) sum[c] += weight * o[c];
    };
    add(args.a_o, x);
    add(args.b_o, y);
    kernels_->store_row(
        sum, 1.0f, args.o.dtype, spec_.dv, row_address(spec_, args.o, s, b, h, i), Write::over);
  }

  Spec spec_;
  const Kernels* kernels_;
  int workers_;
};

}  // namespace

std::unique_ptr<Prepared> prepare_merge(const Spec& spec,
                                        const Bounds& bounds,
                                        const Context& context) {
  return std::make_unique<Merge>(spec, bounds, context);
}

}  // namespace undivided::cpu
