// SPDX-License-Identifier: Apache-2.0
// What a mask may not be, and what the refusal says.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "undivided/undivided.hpp"

namespace undivided {
namespace {

using ::testing::HasSubstr;

struct Row {
  const char* name;
  std::function<void()> act;
  Stage stage;
  const char* says;
};

Tensor rows(std::int64_t tokens) {
  Tensor t = Tensor::empty(DType::f32, {1, 2, tokens, 8});
  std::fill_n(t.ptr<float>(), t.count(), 0.5f);
  return t;
}

void attend(const Mask& m, std::int64_t tokens = 100) {
  const Tensor q = rows(tokens);
  attention(q, q, q, {.mask = m});
}

Array ids(std::size_t n) { return Array(std::vector<std::int32_t>(n), "ids"); }

Captures with(const Array& a) { return {{a}, {}}; }

class MaskRefusal : public ::testing::TestWithParam<Row> {};

TEST_P(MaskRefusal, names_the_fault_and_what_is_allowed) {
  try {
    GetParam().act();
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.stage(), GetParam().stage) << e.what();
    EXPECT_THAT(e.what(), HasSubstr(GetParam().says));
  }
}

const std::vector<Row> refusals{
    {"short_array",
     [] { attend(documents(ids(99))); },
     Stage::bind,
     "may reach [0, 99], but the extent is 99: allowed are 0 to 98"},
    {"index_from_a_difference",
     [] { attend(Mask::parse("ids[q - k] == 0", with(ids(100)))); },
     Stage::bind,
     "index `q - k` of array \"ids\" may reach [-99, 99]"},
    {"index_from_a_float",
     [] { attend(Mask::parse("ids[trunc(exp(float(q)))] == 0", with(ids(100)))); },
     Stage::bind,
     "may reach [-2147483648, 2147483647]"},
    {"index_from_an_array",
     [] {
       attend(
           Mask::parse("ids[ids[k]] == 0", with(Array(std::vector<std::int32_t>(100, -1), "ids"))));
     },
     Stage::bind,
     "may reach [-1, -1]"},
    {"empty_array",
     [] { attend(Mask::parse("ids[0] == 0", with(ids(0)))); },
     Stage::bind,
     "has no elements"},
    {"product_that_overflows",
     [] { attend(Mask::parse("q * k * 1000000 < 5")); },
     Stage::bind,
     "which leaves int32; allowed are -2147483648 to 2147483647"},
    {"divisor_that_may_be_zero",
     [] { attend(Mask::parse("k / q < 3")); },
     Stage::bind,
     "may divide by zero"},
    {"integer_as_mask", [] { Mask::parse("q - k"); }, Stage::parse, "bool"},
    {"float_as_mask", [] { Mask::parse("exp(float(q))"); }, Stage::parse, "bool"},
    {"traced_integer_as_mask",
     [] { mask([](auto, auto, auto q, auto k) { return q - k; }); },
     Stage::parse,
     "bool"},
    {"score_in_a_mask", [] { Mask::parse("score > 0.5"); }, Stage::parse, "score"},
    {"int64_array", [] { Array(Tensor::zeros(DType::i64, {4}), "ids"); }, Stage::bind, "i64"},
    {"array_of_rank_zero", [] { Array(View{}, "ids"); }, Stage::bind, "rank"},
    {"float_documents",
     [] { documents(Array(std::vector<float>(100), "ids")); },
     Stage::bind,
     "documents(id) wants i32 [tokens] or [batch, tokens]"},
    {"documents_of_rank_three",
     [] { documents(Array(Tensor::zeros(DType::i32, {1, 2, 3}), "ids")); },
     Stage::bind,
     "documents(id) wants i32 [tokens] or [batch, tokens]"},
    {"index_of_another_rank",
     [] { Mask::parse("ids[q, k] == 0", with(ids(100))); },
     Stage::parse,
     "has 1 axis, but is indexed by 2"},
    {"undeclared_array", [] { Mask::parse("doc[q] == doc[k]"); }, Stage::parse, "doc"},
    {"unbound_array",
     [] { attend(Mask::parse("array doc: i32[1]; doc[q] == doc[k]")); },
     Stage::bind,
     "reads array 'doc', which is not bound"},
    {"declared_with_another_type",
     [] { attend(Mask::parse("array ids: f32[1]; ids[q] < 0.5", with(ids(100)))); },
     Stage::parse,
     "ids"},
};

INSTANTIATE_TEST_SUITE_P(Table, MaskRefusal, ::testing::ValuesIn(refusals), [](const auto& i) {
  return i.param.name;
});

// ---- arrays that change ----

struct Changing {
  Tensor data = Tensor::zeros(DType::i32, {200});
  Array id{data, "doc"};
  Tensor x = rows(200);
  Options options{.mask = documents(id)};

  std::int64_t pairs() { return mask_plan(Rows(x), dense(x, x), options)->kept_pairs(); }
  void set(int size) {
    for (int i = 0; i < 200; ++i) data.ptr<std::int32_t>()[i] = i / size;
  }
};

TEST(ChangingArrays, a_new_version_is_planned_again) {
  Changing c;
  c.set(200);
  EXPECT_EQ(c.pairs(), 2 * 200 * 200);
  c.set(50);
  c.id.touch();
  EXPECT_EQ(c.pairs(), 2 * 4 * 50 * 50);
  const auto kept = mask_plan(Rows(c.x), dense(c.x, c.x), c.options);
  EXPECT_EQ(mask_plan(Rows(c.x), dense(c.x, c.x), c.options), kept) << "unchanged: not made again";
}

TEST(ChangingArrays, a_new_version_is_proved_again) {
  const Tensor data = Tensor::zeros(DType::i32, {100});
  Array at(data, "at");
  const Mask m = Mask::parse("at[at[k]] <= q", {{at}, {}});
  attend(m);
  data.ptr<std::int32_t>()[7] = 100;
  at.touch();
  EXPECT_THAT(
      [&] { attend(m); },
      ::testing::ThrowsMessage<Error>(HasSubstr("may reach [0, 100], but the extent is 100")));
}

TEST(ChangingArrays, run_refuses_a_plan_that_is_out_of_date) {
  Changing c;
  c.set(50);
  Problem p = resolve(Rows(c.x), dense(c.x, c.x), c.options);
  const Tensor o = Tensor::zeros(DType::f32, {1, 2, 200, 8});
  p.args.o = o;
  p.spec.mask_plan = true;
  p.args.mask_plan = mask_plan(Rows(c.x), dense(c.x, c.x), c.options);
  const Plan made = plan(p.spec, p.bounds);
  std::vector<std::byte> room(made.workspace() + 256);
  made.run(p.args, room.data());
  c.id.touch();
  EXPECT_THAT([&] { made.run(p.args, room.data()); },
              ::testing::ThrowsMessage<Error>(
                  HasSubstr("array 'doc' has changed since the mask plan was made")));
  p.args.mask_plan = mask_plan(Rows(c.x), dense(c.x, c.x), c.options);
  made.run(p.args, room.data());
  p.args.mask_plan = mask_plan(Rows(c.x), dense(c.x, c.x), {.mask = prefix(5)});
  EXPECT_THAT([&] { made.run(p.args, room.data()); },
              ::testing::ThrowsMessage<Error>(HasSubstr("it belongs to another mask")));
}

}  // namespace
}  // namespace undivided
