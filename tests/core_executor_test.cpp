// SPDX-License-Identifier: Apache-2.0
// Claims about executors: each index once, worker ids in range, failures rethrown, settings read.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "core/environment.hpp"
#include "core_support.hpp"
#include "undivided/context.hpp"
#include "undivided/error.hpp"

namespace undivided {
namespace {

struct Kind {
  const char* name;
  std::shared_ptr<Executor> (*make)(int);
};

class Executors : public testing::TestWithParam<Kind> {};

TEST_P(Executors, RunEachIndexOnceWithAWorkerInRange) {
  for (int threads : {1, 2, 5}) {
    const auto executor = GetParam().make(threads);
    EXPECT_GE(executor->workers(), 1);
    for (std::int64_t n : {0, 1, 3, 1000}) {
      std::vector<std::atomic<int>> hits(static_cast<std::size_t>(n));
      std::atomic<bool> in_range{true};
      executor->parallel_for(n, [&](std::int64_t i, int worker) {
        ++hits[static_cast<std::size_t>(i)];
        if (worker < 0 || worker >= executor->workers()) in_range = false;
      });
      for (const auto& hit : hits) ASSERT_EQ(hit, 1);
      EXPECT_TRUE(in_range);
    }
  }
}

// Scratch memory is indexed by worker id, so no id may be in use twice at one time.
TEST_P(Executors, GiveOneWorkerIdToOneThreadAtATime) {
  const auto executor = GetParam().make(3);
  std::vector<std::atomic<int>> inside(static_cast<std::size_t>(executor->workers()));
  std::atomic<bool> clash{false};
  executor->parallel_for(2000, [&](std::int64_t, int worker) {
    if (inside[static_cast<std::size_t>(worker)]++ != 0) clash = true;
    std::this_thread::yield();
    --inside[static_cast<std::size_t>(worker)];
  });
  EXPECT_FALSE(clash);
}

TEST_P(Executors, RethrowTheFailureOfTheLowestIndexAfterAllHaveRun) {
  const auto executor = GetParam().make(3);
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> ran{0};
    try {
      executor->parallel_for(50, [&](std::int64_t i, int) {
        ++ran;
        if (i % 10 == 7) throw Error(Code::io, Stage::run, std::to_string(i));
      });
      FAIL() << "nothing was thrown";
    } catch (const Error& e) {
      EXPECT_STREQ(e.what(), "7");
    }
    EXPECT_EQ(ran, 50);
  }
}

TEST_P(Executors, MayBeCalledFromTheirOwnTasksAndFromSeveralThreads) {
  const auto executor = GetParam().make(3);
  std::atomic<int> sum{0};
  const auto call = [&] {
    executor->parallel_for(8, [&](std::int64_t, int) {
      executor->parallel_for(4, [&](std::int64_t, int) { ++sum; });
    });
  };
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) callers.emplace_back(call);
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(sum, 4 * 8 * 4);
}

TEST_P(Executors, RefuseAnImpossibleNumberOfThreads) {
  for (int threads : {0, -1, 5000}) {
    if (std::string(GetParam().name) == "inline") return;
    try {
      GetParam().make(threads);
      FAIL();
    } catch (const Error& e) {
      EXPECT_EQ(std::string(e.what()),
                "threads: got " + std::to_string(threads) + "; allowed: 1 to 1024");
    }
  }
}

std::shared_ptr<Executor> make_inline(int) {
  return {&inline_executor(), [](Executor*) {}};
}

INSTANTIATE_TEST_SUITE_P(All,
                         Executors,
                         testing::Values(Kind{"inline", make_inline},
                                         Kind{"default", make_executor},
                                         Kind{"thread", make_thread_executor}),
                         [](const auto& kind) { return std::string(kind.param.name); });

TEST(Executor, TheDefaultOneExistsOnce) { EXPECT_EQ(&default_executor(), &default_executor()); }

class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    ::setenv(name, value, 1);
  }
  ~Variable() { old_.empty() ? ::unsetenv(name_) : ::setenv(name_, old_.c_str(), 1); }

 private:
  const char* name_;
  std::string old_;
};

TEST(Environment, ReadsLegalValuesAndNamesThemOtherwise) {
  {
    const Variable isa("UNDIVIDED_ISA", "avx2"), threads("UNDIVIDED_THREADS", "7");
    EXPECT_EQ(environment::isa(), "avx2");
    EXPECT_EQ(environment::threads(), 7);
  }
  for (const char* wrong : {"0", "-1", "two", "7x", "99999999999"}) {
    const Variable threads("UNDIVIDED_THREADS", wrong);
    EXPECT_EQ(refusal([] { environment::threads(); }),
              "UNDIVIDED_THREADS=" + std::string(wrong) + " is not legal; allowed: 1 to 1024");
  }
  const Variable isa("UNDIVIDED_ISA", "sse9");
  EXPECT_EQ(refusal([] { environment::isa(); }),
            "UNDIVIDED_ISA=sse9 is not legal; allowed: scalar, avx2, avx512, avx512_bf16, amx");
}

TEST(Environment, FindsTheCacheFolder) {
  const Variable cache("UNDIVIDED_CACHE", ""), xdg("XDG_CACHE_HOME", ""), home("HOME", "/h");
  EXPECT_EQ(environment::cache_folder(), "/h/.cache/undivided");
  const Variable own("UNDIVIDED_CACHE", "/c");
  EXPECT_EQ(environment::cache_folder(), "/c");
}

}  // namespace
}  // namespace undivided
