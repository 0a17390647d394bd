// SPDX-License-Identifier: Apache-2.0
// A CPU run allocates nothing: malloc and operator new are counted over a thousand runs.
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
  for (int i = 0; i < 1000; ++i) prepared->run(p.args, workspace.data(), context);
  counting = false;
  EXPECT_EQ(calls.load(), 0);
}

TEST(CpuAllocation, TheCounterCounts) {
  calls = 0;
  counting = true;
  delete new int(3);
  std::free(std::malloc(5));
  counting = false;
  EXPECT_GE(calls.load(), 1);
}

TEST(CpuAllocation, RunsAllocateNothing) {
  Context context;
  context.executor = &inline_executor();
  Case c{.batch = 2, .hq = 4, .hkv = 2, .nq = 40, .nk = 70, .kv = KvKind::paged};
  c.options.mask = Mask::parse("k <= q || k % 5 == 0");
  c.options.score = softcap(20.0f);
  c.options.align = Align::end;
  c.options.dropout = 0.1;
  c.options.key_mass = c.options.max_logit = true;
  const Data x = data_of(c);
  Problem p = resolve(x.q, x.kv, c.options);
  const Results r(p, DType::f32, DType::f32);
  r.attach(p.args);
  expect_no_allocation(p, context);

  Problem g = resolve_backward(Rows(r.o), x.q, x.kv, r.o, r.lse, c.options, {});
  const Tensor dq = Tensor::empty_like(x.qt, DType::f32), dk = Tensor::empty_like(x.k, DType::f32),
               dv = Tensor::empty_like(x.v, DType::f32);
  g.args.dq = dq;
  g.args.dk = dk;
  g.args.dv = dv;
  expect_no_allocation(g, context);
}

}  // namespace
}  // namespace undivided::test
