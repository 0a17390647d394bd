// SPDX-License-Identifier: Apache-2.0
// Claims about training: reverse is learned in its budget, clipping and averaging do what they say,
// and a run that is killed at any moment ends with the bits of one that never was.
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "nn_support.hpp"
#include "reduced.hpp"

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
  if (reduced_grid()) {  // the same steps, too few to learn
    for (int step = 0; step < 20; ++step) last = trainer.step();
    EXPECT_TRUE(std::isfinite(last));
    return;
  }
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

// A child trains with a checkpoint at each step. After `saves` of them its life ends: with torn_at,
// when the next save has written so many bytes; without, by a kill from outside somewhere in the
// next step or its save. It waits for the kill, so the speed of the machine plays no part.
struct Life {
  std::int64_t saves;
  rlim_t torn_at;
};

[[noreturn]] void train(const TrainOptions& options,
                        const std::string& checkpoint,
                        const std::string& model,
                        const Life* life,
                        int report) {
  try {
    Trainer trainer(options, alone());
    if (fs::exists(checkpoint)) trainer.resume(checkpoint);
    for (std::int64_t saves = 0; !trainer.finished(); ++saves) {
      if (life && saves == life->saves) {
        if (life->torn_at) {
          const rlimit no_core{0, 0}, size{life->torn_at, life->torn_at};
          ::signal(SIGXFSZ, SIG_DFL);
          ::setrlimit(RLIMIT_CORE, &no_core);
          ::setrlimit(RLIMIT_FSIZE, &size);
        } else if (::write(report, "s", 1) != 1) {
          ::_exit(8);
        }
      }
      if (life && saves > life->saves) {
        if (!life->torn_at) ::sleep(600);  // the kill comes
        ::_exit(9);
      }
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
  const std::string want = (folder / "want.safetensors").string();
  whole.step();
  whole.save(want);
  const rlim_t bytes = fs::file_size(want);  // later checkpoints are larger
  while (!whole.finished()) whole.step();
  whole.use_average();
  whole.save_model(want);

  const Life lives[] = {{0, 0},
                        {0, 1},
                        {2, 0},
                        {1, 1000},
                        {3, bytes / 2},
                        {0, 0},
                        {1, bytes - 1},
                        {2, 0},
                        {1, 0},
                        {0, bytes / 3}};
  for (std::size_t i = 0; i <= std::size(lives); ++i) {
    const Life* life = i < std::size(lives) ? lives + i : nullptr;
    int report[2];
    ASSERT_EQ(::pipe(report), 0);
    const pid_t child = ::fork();
    if (child == 0) train(options, checkpoint, model, life, report[1]);
    ::close(report[1]);
    char byte = 0;  // end of file: the child has ended by itself
    if (::read(report[0], &byte, 1) == 1) ::kill(child, SIGKILL);
    ::close(report[0]);
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_FALSE(WIFEXITED(status) && WEXITSTATUS(status) == 7) << "a torn checkpoint was read";
    if (!life) {
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
      break;
    }
    ASSERT_TRUE(WIFSIGNALED(status)) << i;
    EXPECT_EQ(WTERMSIG(status), life->torn_at ? SIGXFSZ : SIGKILL) << i;
    bool torn = false;
    for (const auto& file : fs::directory_iterator(folder))
      torn |= file.path().extension() == ".tmp" && file.file_size() == life->torn_at;
    EXPECT_TRUE(torn || !life->torn_at) << "life " << i << " did not end in the middle of a save";
  }
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
