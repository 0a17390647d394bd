// SPDX-License-Identifier: Apache-2.0
// Claims about training: reverse is learned in its budget, clipping and averaging do what they say,
// and a run that is killed at any moment ends with the bits of one that never was.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "nn_support.hpp"

namespace undivided::nn {
namespace {

namespace fs = std::filesystem;

std::string bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
Context alone() {
  Context c;
  c.executor = &inline_executor();
  return c;
}

TEST(NnTrain, ReverseIsLearnedWithinAMinute) {
  const std::clock_t start = std::clock();
  Trainer trainer({}, alone());
  double last = 0;
  while (!trainer.finished()) last = trainer.step();
  EXPECT_GE(trainer.exact(500), .99);
  EXPECT_LE(last, .56);
  EXPECT_GE(last, .537);  // below the entropy of smoothed targets something is wrong
  trainer.use_average();
  EXPECT_GE(trainer.exact(500), .99);
#ifdef NDEBUG
  EXPECT_LE(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC, 60);
#else
  (void)start;
#endif
}

// A child trains with a checkpoint at each step; it is killed and started again until it is done.
TEST(NnTrain, AKilledRunEndsWithTheSameBits) {
  const fs::path folder =
      fs::temp_directory_path() / ("undivided-kill-" + std::to_string(::getpid()));
  fs::create_directories(folder);
  const std::string checkpoint = (folder / "run.safetensors").string(),
                    model = (folder / "model.safetensors").string();
  TrainOptions options;
  options.steps = 24;
  options.batch = 8;
  options.dropout = .1;
  options.snapshots = 3;
  Trainer whole(options, alone());
  while (!whole.finished()) whole.step();
  whole.use_average();
  const std::string want = (folder / "want.safetensors").string();
  whole.save_model(want);

  int kills = 0;
  std::uint64_t delay = 12345;
  for (int life = 0; life < 200 && !fs::exists(model); ++life) {
    const pid_t child = ::fork();
    if (child == 0) {
      try {
        Trainer trainer(options, alone());
        if (fs::exists(checkpoint)) trainer.resume(checkpoint);
        while (!trainer.finished()) {
          trainer.step();
          trainer.save(checkpoint);
        }
        trainer.use_average();
        trainer.save_model(model);
      } catch (...) {
        ::_exit(7);
      }
      ::_exit(0);
    }
    delay = delay * 6364136223846793005u + 1442695040888963407u;
    ::usleep(static_cast<useconds_t>(20000 + (delay >> 33) % (life < 8 ? 60000 : 1000000)));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_FALSE(WIFEXITED(status) && WEXITSTATUS(status) == 7) << "a torn checkpoint was read";
    kills += WIFSIGNALED(status);
  }
  EXPECT_GT(kills, 3);
  ASSERT_TRUE(fs::exists(model));
  EXPECT_EQ(bytes_of(model), bytes_of(want));
  fs::remove_all(folder);
}

TEST(NnTrain, ThreadsDoNotChangeTheBits) {
  TrainOptions options;
  options.steps = 4;
  const auto two = make_thread_executor(2);
  Context shared;
  shared.executor = two.get();
  Trainer a(options, alone()), b(options, shared);
  while (!a.finished()) EXPECT_EQ(a.step(), b.step());
}

TEST(NnTrain, GradientsAreClippedToTheirCommonNorm) {
  Parameter<double> p({2, 2});
  p.grad = {3, 0, 0, 4};
  const ParameterList<double> list = {{"p", &p}};
  EXPECT_DOUBLE_EQ(clip_gradients(list, 10), 5);
  EXPECT_DOUBLE_EQ(p.grad[0], 3);
  EXPECT_DOUBLE_EQ(clip_gradients(list, 1), 5);
  EXPECT_NEAR(p.grad[0], .6, 1e-15);
}

TEST(NnTrain, AdamTakesTheStepOfItsFormula) {
  Parameter<double> p({1, 1}, 2);
  Adam<double> adam({{"p", &p}}, {.9, .98, 1e-9, .5});
  p.grad = {3};
  adam.step(.1);  // the first step is the rate times the sign, after the decay
  EXPECT_NEAR(p.value[0], 2 * (1 - .05) - .1, 1e-8);
  EXPECT_EQ(p.grad[0], 0);
}

TEST(NnTrain, AverageOfFilesIsTheMean) {
  const fs::path folder =
      fs::temp_directory_path() / ("undivided-mean-" + std::to_string(::getpid()));
  fs::create_directories(folder);
  Parameter<float> p({3}, 1);
  const ParameterList<float> list = {{"p", &p}};
  std::vector<std::string> files;
  for (const float x : {1.f, 2.f, 6.f}) {
    p.value.assign(3, x);
    files.push_back((folder / (std::to_string(files.size()) + ".safetensors")).string());
    save_parameters(files.back(), list);
  }
  average_files(files, files[0]);
  load_parameters(files[0], list);
  EXPECT_FLOAT_EQ(p.value[2], 3);
  fs::remove_all(folder);
}

TEST(NnTrain, TestPairsAreUnseen) {
  for (const std::string& name : task_names()) {
    const auto task = make_task(name);
    std::set<std::string> seen;
    for (std::uint64_t i = 0; i < 10000; ++i) seen.insert(task->training(1, i).source);
    for (std::uint64_t i = 0; i < 500; ++i) EXPECT_FALSE(seen.count(task->test(i).source)) << name;
    EXPECT_GT(seen.size(), 8000u) << name;
  }
}

}  // namespace
}  // namespace undivided::nn
