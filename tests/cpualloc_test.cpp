// SPDX-License-Identifier: Apache-2.0
// A CPU run allocates nothing: malloc and operator new are counted over 200 runs.
#include <dlfcn.h>

#include <atomic>
#include <new>

#include "cpu_support.hpp"

namespace {
std::atomic<bool> counting{false};
std::atomic<std::int64_t> calls{0};
void note() {
  if (counting.load(std::memory_order_relaxed)) calls.fetch_add(1, std::memory_order_relaxed);
}
}  // namespace

// Every C++ allocation of the program comes through here; the C ones are seen by the hook below.
void* operator new(std::size_t n) {
  note();
  if (void* p = std::malloc(n ? n : 1)) return p;
  throw std::bad_alloc();
}
void* operator new[](std::size_t n) { return operator new(n); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define UNDIVIDED_SANITIZED
#endif
#endif
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(UNDIVIDED_SANITIZED)
extern "C" void* __libc_malloc(std::size_t);
extern "C" void* malloc(std::size_t n) {
  note();
  return __libc_malloc(n);
}
#endif

namespace undivided::test {
namespace {

void expect_no_allocation(Problem p, const Context& context) {
  const auto prepared = cpu::prepare(p.spec, p.bounds, cpu_device, context);
  std::vector<std::byte> workspace(prepared->workspace() + 64);
  prepared->run(p.args, workspace.data(), context);
  calls = 0;
  counting = true;
  for (int i = 0; i < 200; ++i) prepared->run(p.args, workspace.data(), context);
  counting = false;
  EXPECT_EQ(calls.load(), 0);
}

TEST(CpuAllocationCounter, Counts) {
  calls = 0;
  counting = true;
  delete new int(3);
  std::free(std::malloc(5));
  counting = false;
  EXPECT_GE(calls.load(), 1);
}

/// Forward and backward of a case, on every instruction set of this processor.
void expect_runs_allocate_nothing(const Case& c, bool backward) {
  Context context;
  context.executor = &inline_executor();
  for (const std::string& isa : cpu::available_isas()) {
    SCOPED_TRACE(isa + " " + std::string(name_of(c.dtype)));
    const ForcedIsa forced(isa);
    const Data x = data_of(c);
    Problem p = resolve(x.q, x.kv, c.options);
    const Results r(p, c.dtype, DType::f32);
    r.attach(p.args);
    expect_no_allocation(p, context);
    if (!backward) continue;
    Problem g = resolve_backward(Rows(r.o), x.q, x.kv, r.o, r.lse, c.options, {});
    const Tensor dq = Tensor::empty_like(x.qt, c.dtype), dk = Tensor::empty_like(x.k, c.dtype),
                 dv = Tensor::empty_like(x.v, c.dtype);
    g.args.dq = dq;
    g.args.dk = dk;
    g.args.dv = dv;
    expect_no_allocation(g, context);
  }
}

class CpuAllocation : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(All,
                         CpuAllocation,
                         testing::Values(DType::f32, DType::f16, DType::bf16),
                         [](const auto& test) { return std::string(name_of(test.param)); });

TEST_P(CpuAllocation, PagesMasksScoresAndDropoutAllocateNothing) {
  Case c{
      .dtype = GetParam(), .batch = 2, .hq = 4, .hkv = 2, .nq = 40, .nk = 70, .kv = KvKind::paged};
  c.options.mask = Mask::parse("k <= q || k % 5 == 0");
  c.options.score = softcap(20.0f);
  c.options.align = Align::end;
  c.options.dropout = 0.1;
  c.options.key_mass = c.options.max_logit = true;
  expect_runs_allocate_nothing(c, true);
}

TEST_P(CpuAllocation, PlainAndRaggedAllocateNothing) {
  Case c{.dtype = GetParam(), .batch = 2, .nq = 40, .nk = 70};
  c.options.mask = causal();
  c.options.align = Align::end;
  expect_runs_allocate_nothing(c, true);
  c.rows = RowKind::ragged;
  c.kv = KvKind::ragged;
  expect_runs_allocate_nothing(c, true);
}

TEST_P(CpuAllocation, ScoresOfInt8AllocateNothing) {
  for (const DType pv : {DType::bf16, DType::f32}) {
    Case c{.dtype = GetParam(), .batch = 2, .hq = 4, .hkv = 2, .nq = 40, .nk = 70};
    c.kv = KvKind::paged;
    c.options.precision = {DType::i8, pv, false};
    c.options.mask = causal();
    c.options.align = Align::end;
    c.options.key_mass = true;
    expect_runs_allocate_nothing(c, false);
  }
}

TEST_P(CpuAllocation, DecodeAllocatesNothing) {
  for (const KvKind kv : {KvKind::dense, KvKind::paged})
    for (const std::int64_t group : {1, 4}) {
      Case c{
          .dtype = GetParam(), .batch = 2, .hq = 2 * group, .hkv = 2, .nq = 1, .nk = 300, .kv = kv};
      c.options.align = Align::end;
      expect_runs_allocate_nothing(c, false);
    }
}

}  // namespace
}  // namespace undivided::test
