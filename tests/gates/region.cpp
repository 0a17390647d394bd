// SPDX-License-Identifier: Apache-2.0
// Runs attention kernels inside a region whose instructions can be counted, one thread, plan and
// data made before.
//
//   gate_region [--planted]              every case, for callgrind --toggle-collect=gate_region
//   gate_region [--planted] --step TEXT  the cases with TEXT in their name, with the trap flag set:
//                                        "count case"
//   gate_region --isas                   the instruction sets of this processor
//
// UNDIVIDED_ISA chooses the kernels. --planted makes the softmax tile work twice.
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string_view>
#include <vector>

#include "cpu_support.hpp"

using namespace undivided;
using namespace undivided::test;

namespace {

/// Works twice, whatever its arguments are; only the count is looked at.
template <class F>
struct Twice;
template <class... A>
struct Twice<void (*)(A...)> {
  static inline void (*right)(A...) = nullptr;
  static void call(A... a) {
    right(a...);
    right(a...);
  }
};
using Slow = Twice<decltype(cpu::Kernels::softmax)>;

/// The table lies in read-only memory, and its functions are called through it.
void plant() {
  const cpu::Kernels& table = cpu::chosen_kernels();
  Slow::right = table.softmax;
  const auto size = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto at = reinterpret_cast<std::uintptr_t>(&table), from = at / size * size;
  const auto to = (at + sizeof table + size - 1) / size * size;
  if (::mprotect(reinterpret_cast<void*>(from), to - from, PROT_READ | PROT_WRITE) != 0) {
    std::perror("mprotect");
    std::exit(1);
  }
  const auto slow = &Slow::call;
  std::memcpy(reinterpret_cast<char*>(at) + offsetof(cpu::Kernels, softmax), &slow, sizeof slow);
}

struct Ready {
  Data data;
  Results results;
  Problem problem;
  std::unique_ptr<Prepared> prepared;
  std::vector<std::byte> workspace;
  Tensor dq, dk, dv;
};

void make(Ready& r, const Case& c, bool backward, const Context& context) {
  r.data = data_of(c);
  r.problem = resolve(r.data.q, r.data.kv, c.options);
  r.results = Results(r.problem, c.dtype, DType::f32);
  r.results.attach(r.problem.args);
  const auto prepare = [&] {
    r.prepared = cpu::prepare(r.problem.spec, r.problem.bounds, cpu_device, context);
    r.workspace.resize(r.prepared->workspace() + 64);
    r.prepared->run(r.problem.args, r.workspace.data(), context);
  };
  prepare();
  if (!backward) return;
  r.problem = resolve_backward(
      Rows(r.results.o), r.data.q, r.data.kv, r.results.o, r.results.lse, c.options, {});
  r.problem.args.dq = r.dq = Tensor::empty_like(r.data.qt, c.dtype);
  r.problem.args.dk = r.dk = Tensor::empty_like(r.data.k, c.dtype);
  r.problem.args.dv = r.dv = Tensor::empty_like(r.data.v, c.dtype);
  prepare();
}

std::atomic<long> steps;

/// Counts the instructions of `work` by the trap flag: a signal after each, in this thread, so that
/// a busy system is not asked to switch to another process and back. 0: no signal came.
long stepped(const std::function<void()>& work) {
  struct sigaction count{}, before{};
  count.sa_handler = [](int) { steps.fetch_add(1, std::memory_order_relaxed); };
  ::sigaction(SIGTRAP, &count, &before);
  steps = 0;
  // The flags are changed on the stack, past the red zone.
  __asm__ volatile(
      "lea -128(%%rsp), %%rsp; pushfq; orq $0x100, (%%rsp); popfq; lea 128(%%rsp), %%rsp" ::
          : "memory", "cc");
  work();
  __asm__ volatile(
      "lea -128(%%rsp), %%rsp; pushfq; andq $-0x101, (%%rsp); popfq; lea 128(%%rsp), %%rsp" ::
          : "memory", "cc");
  ::sigaction(SIGTRAP, &before, nullptr);
  return steps;
}

}  // namespace

extern "C" __attribute__((noinline)) void gate_region(const Ready* r, const Context* context) {
  r->prepared->run(r->problem.args, const_cast<std::byte*>(r->workspace.data()), *context);
}

int main(int argc, char** argv) try {
  bool planted = false;
  const char* step = nullptr;
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    planted |= word == "--planted";
    if (word == "--step" && i + 1 < argc) step = argv[++i];
    if (word == "--isas") {
      for (const std::string& isa : cpu::available_isas()) std::printf("%s\n", isa.c_str());
      return 0;
    }
  }
  if (planted) plant();
  Context context;
  context.executor = &inline_executor();
  Options plain, causal_alibi, int8;
  int8.precision = {DType::i8, DType::bf16, false};
  plain.align = causal_alibi.align = Align::end;
  causal_alibi.mask = causal();
  causal_alibi.score = alibi(Array(std::vector<float>{0.5f}, "slope"));
  struct Row {
    const char* name;
    Case c;
    bool backward;
  };
  const auto shape = [](DType t, int group, int nq, int nk, const Options& options) {
    return Case{.dtype = t,
                .hq = group,
                .hkv = 1,
                .nq = nq,
                .nk = nk,
                .d = 64,
                .dv = 64,
                .options = options};
  };
  const Row rows[] = {
      {"forward f32", shape(DType::f32, 1, 32, 64, plain), false},
      {"forward bf16", shape(DType::bf16, 1, 32, 64, plain), false},
      {"forward f32 causal alibi", shape(DType::f32, 1, 16, 32, causal_alibi), false},
      {"backward f32", shape(DType::f32, 1, 16, 32, plain), true},
      {"forward bf16 i8", shape(DType::bf16, 1, 32, 64, int8), false},
      {"decode bf16", shape(DType::bf16, 4, 1, 64, plain), false},
  };
  for (const Row& row : rows) {
    if (step && !std::strstr(row.name, step)) continue;
    Ready r;
    make(r, row.c, row.backward, context);
    if (!step) {
      std::printf("%s\n", row.name);
      gate_region(&r, &context);
      continue;
    }
    const long count = stepped([&] { gate_region(&r, &context); });
    if (count == 0) {
      std::printf("single steps refused\n");
      return 77;
    }
    std::printf("%ld %s\n", count, row.name);
    std::fflush(stdout);
    if (planted) break;  // one case is enough to see it
  }
  return 0;
} catch (const Error& e) {
  std::printf("ISA absent: %s\n", e.what());
  return 77;
}
