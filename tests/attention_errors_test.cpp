// SPDX-License-Identifier: Apache-2.0
// Claims: every contradiction in a call is refused where it is noticed, with what came, what is
// allowed and the nearest legal choice. Each message is pinned here.
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "undivided/undivided.hpp"

namespace undivided {
namespace {

/// A legal call that a test then spoils.
struct Call {
  Tensor q_data = Tensor::zeros(DType::f32, {2, 4, 6, 8}),
         k_data = Tensor::zeros(DType::f32, {2, 2, 7, 8}),
         v_data = Tensor::zeros(DType::f32, {2, 2, 7, 8});
  Rows q{q_data};
  Kv kv = dense(k_data, v_data);
  Options options;
  Outputs out;
  std::vector<std::int32_t> numbers;

  View ints(std::vector<std::int32_t> values) {
    numbers = std::move(values);
    return view(numbers.data(), {static_cast<std::int64_t>(numbers.size())});
  }
};

struct Row {
  const char* name;
  std::function<void(Call&)> spoil;
  const char* says;
  Stage stage = Stage::resolve;
};

Tensor zeros(std::initializer_list<std::int64_t> shape, DType t = DType::f32) {
  static std::vector<Tensor> alive;
  alive.push_back(Tensor::zeros(t, shape));
  return alive.back();
}

class Refusal : public testing::TestWithParam<Row> {};

TEST_P(Refusal, SaysWhatCameAndWhatIsAllowed) {
  Call call;
  ASSERT_NO_THROW(resolve(call.q, call.kv, call.options)) << "the unspoiled call must be legal";
  GetParam().spoil(call);
  try {
    resolve(call.q, call.kv, call.options, call.out);
    FAIL() << "was accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::invalid_argument);
    EXPECT_EQ(e.stage(), GetParam().stage) << e.what();
    EXPECT_NE(std::string(e.what()).find(GetParam().says), std::string::npos)
        << "said: " << e.what() << "\nwanted: " << GetParam().says;
  }
}

std::vector<Row> data_rows() {
  return {
      {"q_missing", [](Call& c) { c.q = Rows(); }, "Q is not given"},
      {"q_rank",
       [](Call& c) { c.q = zeros({6, 8}); },
       "Q is f32 [6, 8]; [batch, head, token, dim] or [head, token, dim] is expected"},
      {"q_dtype",
       [](Call& c) { c.q = zeros({2, 4, 6, 8}, DType::i32); },
       "Q has dtype i32; f32, f16, bf16 (and f64 for the oracle) are allowed"},
      {"k_missing", [](Call& c) { c.kv.k = {}; }, "K is not given"},
      {"v_missing", [](Call& c) { c.kv.v = {}; }, "V is not given"},
      {"k_rank",
       [](Call& c) { c.kv.k = zeros({7, 8}); },
       "K is f32 [7, 8]; [batch, kv head, token, dim] or [kv head, token, dim] is expected"},
      {"k_dtype",
       [](Call& c) { c.kv.k = zeros({2, 2, 7, 8}, DType::f16); },
       "K has dtype f16 and Q has f32; they must be the same"},
      {"v_dtype",
       [](Call& c) { c.kv.v = zeros({2, 2, 7, 8}, DType::bf16); },
       "V has dtype bf16 and Q has f32; they must be the same"},
      {"k_v_lengths",
       [](Call& c) { c.kv.v = zeros({2, 2, 9, 8}); },
       "K is f32 [2, 2, 7, 8] and V is f32 [2, 2, 9, 8]; all axes but the last must agree"},
      {"dims",
       [](Call& c) { c.kv = dense(zeros({2, 2, 7, 16}), zeros({2, 2, 7, 16})); },
       "Q has head dim 8 and K has 16; they must be equal (V may differ)"},
      {"groups",
       [](Call& c) { c.kv = dense(zeros({2, 3, 7, 8}), zeros({2, 3, 7, 8})); },
       "Q has 4 heads and K has 3; the number of query heads must be a multiple of the KV heads"},
      {"batch",
       [](Call& c) { c.kv = dense(zeros({3, 2, 7, 8}), zeros({3, 2, 7, 8})); },
       "Q has batch 2 and K has 3; they must be equal"},
      {"no_heads", [](Call& c) { c.q = zeros({2, 0, 6, 8}); }, "Q has 0 heads and K has 2"},
      {"dim_zero",
       [](Call& c) {
         c.q = zeros({2, 4, 6, 0});
         c.kv = dense(zeros({2, 2, 7, 0}), zeros({2, 2, 7, 8}));
       },
       "head dim 0 is not allowed"},
      {"q_stride",
       [](Call& c) { c.q.data.stride[3] = 2; },
       "the last stride of Q (f32 [2, 4, 6, 8]) is 2; it must be 1: make a dense copy"},
      {"k_stride", [](Call& c) { c.kv.k.stride[3] = 3; }, "the last stride of K"},
      {"k_device",
       [](Call& c) { c.kv.k.device = {Device::Kind::cuda, 0}; },
       "K is on cuda:0 and Q is on cpu"},
      {"k_lengths_size",
       [](Call& c) { c.kv.lengths = c.ints({1, 2, 3}); },
       "K lengths is i32 [3]; a vector of 2 elements is expected"},
      {"k_lengths_range",
       [](Call& c) { c.kv.lengths = c.ints({7, 8}); },
       "K lengths[1] is 8; 0 to 7 is allowed"},
      {"q_lengths_range",
       [](Call& c) { c.q.lengths = c.ints({-1, 3}); },
       "Q lengths[0] is -1; 0 to 6 is allowed"},
      {"lengths_dtype",
       [](Call& c) { c.kv.lengths = zeros({2}); },
       "K lengths is f32; i32 or i64 is allowed"},
      {"offsets_on_dense",
       [](Call& c) { c.kv.offsets = c.ints({0, 1, 2}); },
       "offsets belong to ragged K and V only"},
      {"table_on_dense",
       [](Call& c) { c.kv.page_table = zeros({2, 1}, DType::i32); },
       "a page table belongs to paged K and V only"},
  };
}

std::vector<Row> packed_rows() {
  const auto ragged_q = [](Call& c, std::vector<std::int32_t> offsets) {
    c.q = ragged(zeros({6, 4, 8}), c.ints(std::move(offsets)));
  };
  const auto ragged_k = [](Call& c, std::vector<std::int32_t> offsets) {
    c.kv = ragged(zeros({14, 2, 8}), zeros({14, 2, 8}), c.ints(std::move(offsets)));
  };
  const auto pages = [](Call& c, std::vector<std::int32_t> lengths) {
    const Tensor pool = zeros({3, 2, 4, 8}), table = zeros({2, 2}, DType::i32);
    c.kv = paged(pool, pool, table, c.ints(std::move(lengths)));
  };
  return {
      {"ragged_q_rank",
       [](Call& c) { c.q = ragged(zeros({2, 4, 6, 8}), c.ints({0, 3, 6})); },
       "ragged Q is f32 [2, 4, 6, 8]; [total, head, dim] is expected"},
      {"ragged_q_begin",
       [=](Call& c) { ragged_q(c, {1, 3, 6}); },
       "Q offsets must begin with 0; it begins with 1"},
      {"ragged_q_order",
       [=](Call& c) { ragged_q(c, {0, 5, 3}); },
       "Q offsets[2] is 3; offsets must ascend and stay within the 6 packed rows"},
      {"ragged_q_total",
       [=](Call& c) { ragged_q(c, {0, 3, 7}); },
       "Q offsets[2] is 7; offsets must ascend and stay within the 6 packed rows"},
      {"ragged_q_lengths",
       [=](Call& c) {
         ragged_q(c, {0, 3, 6});
         c.q.lengths = zeros({2}, DType::i32);
       },
       "ragged Q has offsets; lengths belong to dense rows only"},
      {"ragged_k_offsets",
       [=](Call& c) { ragged_k(c, {0, 7}); },
       "K offsets is i32 [2]; a vector of 3 elements is expected"},
      {"ragged_k_missing",
       [=](Call& c) {
         ragged_k(c, {0, 7, 14});
         c.kv.offsets = {};
       },
       "ragged K and V need offsets"},
      {"ragged_k_lengths",
       [=](Call& c) {
         ragged_k(c, {0, 7, 14});
         c.kv.lengths = zeros({2}, DType::i32);
       },
       "ragged K has offsets; lengths belong to dense and paged K only"},
      {"paged_lengths_missing",
       [=](Call& c) {
         pages(c, {1, 1});
         c.kv.lengths = {};
       },
       "paged K and V need a page table and lengths"},
      {"paged_table_shape",
       [=](Call& c) {
         pages(c, {1, 1});
         c.kv.page_table = zeros({3, 2}, DType::i32);
       },
       "the page table is i32 [3, 2]; [batch 2, max pages] is expected"},
      {"paged_table_dtype",
       [=](Call& c) {
         pages(c, {1, 1});
         c.kv.page_table = zeros({2, 2});
       },
       "the page table is f32; i32 or i64 is allowed"},
      {"paged_length", [=](Call& c) { pages(c, {1, 9}); }, "K lengths[1] is 9; 0 to 8 is allowed"},
      {"paged_page",
       [=](Call& c) {
         pages(c, {5, 1});
         *static_cast<std::int32_t*>(c.kv.page_table.at({0, 1})) = 3;
       },
       "page_table[0, 1] is 3; pages 0 to 2 exist"},
      {"paged_empty_pages",
       [=](Call& c) {
         pages(c, {0, 0});
         c.kv.k = c.kv.v = zeros({3, 2, 0, 8});
       },
       "pages of 0 tokens are not allowed"},
  };
}

std::vector<Row> option_rows() {
  const double inf = std::numeric_limits<double>::infinity();
  return {
      {"align_unsaid",
       [](Call& c) { c.options.mask = causal(); },
       "a mask, score or dropout reads positions and q_len may differ from k_len: say align = "
       "start (first query with first key) or end (last with last), or give origins"},
      {"align_unsaid_for_dropout", [](Call& c) { c.options.dropout = 0.5; }, "say align = start"},
      {"align_twice",
       [](Call& c) {
         c.options.align = Align::end;
         c.options.q_origin = c.ints({0, 0});
       },
       "both align and explicit origins are given; one of them decides"},
      {"origin_size",
       [](Call& c) { c.options.q_origin = c.ints({0}); },
       "q_origin is i32 [1]; a vector of 2 elements is expected"},
      {"scale",
       [=](Call& c) { c.options.scale = inf; },
       "scale is inf; a finite number is expected"},
      {"dropout_one",
       [](Call& c) { c.options.dropout = 1; },
       "dropout is 1; 0 <= p < 1 is allowed"},
      {"dropout_negative",
       [](Call& c) { c.options.dropout = -0.5; },
       "dropout is -0.5; 0 <= p < 1 is allowed"},
      {"sink_shape",
       [](Call& c) { c.options.sink = zeros({2}); },
       "sink is f32 [2]; f32 [4] (one per query head) is expected"},
      {"sink_dtype",
       [](Call& c) { c.options.sink = zeros({4}, DType::f16); },
       "sink is f16 [4]; f32 [4] (one per query head) is expected"},
      {"sink_of_a_partial",
       [](Call& c) {
         c.options.sink = zeros({4});
         c.options.partial = true;
       },
       "a partial result excludes the sink: give the sink to finish()"},
      {"out_dtype",
       [](Call& c) { c.options.out_dtype = DType::f16; },
       "out_dtype is f16; f32 or f32 is allowed for f32 inputs"},
      {"out_dtype_of_a_partial",
       [](Call& c) {
         c.options.partial = true;
         c.options.out_dtype = DType::f16;
       },
       "a partial result is f32; out_dtype f16 cannot hold it"},
      {"o_shape",
       [](Call& c) { c.out.o = zeros({2, 4, 6, 16}); },
       "O is f32 [2, 4, 6, 16]; f32 of shape [2, 4, 6, 8] is expected"},
      {"lse_dtype",
       [](Call& c) { c.out.lse = zeros({2, 4, 6}, DType::f16); },
       "LSE is f16 [2, 4, 6]; f32 of shape [2, 4, 6] is expected"},
      {"max_logit_unasked",
       [](Call& c) { c.out.max_logit = zeros({2, 4}); },
       "a max_logit output is given; ask for it with options.max_logit"},
      {"key_mass_unasked",
       [](Call& c) { c.out.key_mass = zeros({2, 4, 7}); },
       "a key_mass output is given; ask for it with options.key_mass"},
      {"array_too_short",
       [](Call& c) {
         c.options.mask = documents(Array(std::vector<std::int32_t>{1, 2, 3}));
         c.options.align = Align::start;
       },
       "doc",
       Stage::bind},
      {"negative_positions",
       [](Call& c) {
         c.kv = dense(zeros({2, 2, 3, 8}), zeros({2, 2, 3, 8}));
         c.options.mask = documents(Array(std::vector<std::int32_t>(16, 1)));
         c.options.align = Align::end;
       },
       "-3",
       Stage::bind},
      {"integer_overflow",
       [](Call& c) {
         c.options.mask =
             mask([](auto, auto, auto q, auto k) { return q * 1000000000 <= k * 1000000000; });
         c.options.align = Align::start;
       },
       "5000000000",
       Stage::bind},
  };
}

std::string name_of_row(const testing::TestParamInfo<Row>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(Data, Refusal, testing::ValuesIn(data_rows()), name_of_row);
INSTANTIATE_TEST_SUITE_P(Packed, Refusal, testing::ValuesIn(packed_rows()), name_of_row);
INSTANTIATE_TEST_SUITE_P(Option, Refusal, testing::ValuesIn(option_rows()), name_of_row);

// ---- a backward has its own ----

struct BackwardRow {
  const char* name;
  std::function<void(Call&, Rows& dout, View& o, View& lse, BackwardOptions&)> spoil;
  const char* says;
};
class BackwardRefusal : public testing::TestWithParam<BackwardRow> {};

TEST_P(BackwardRefusal, SaysWhatCameAndWhatIsAllowed) {
  Call c;
  const Tensor o = zeros({2, 4, 6, 8}), lse = zeros({2, 4, 6});
  Rows dout(o);
  View o_view = o, lse_view = lse;
  BackwardOptions b;
  ASSERT_NO_THROW(resolve_backward(dout, c.q, c.kv, o_view, lse_view, c.options, b));
  GetParam().spoil(c, dout, o_view, lse_view, b);
  try {
    resolve_backward(dout, c.q, c.kv, o_view, lse_view, c.options, b);
    FAIL() << "was accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.stage(), Stage::resolve);
    EXPECT_NE(std::string(e.what()).find(GetParam().says), std::string::npos) << e.what();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Backward,
    BackwardRefusal,
    testing::Values(
        BackwardRow{"o_missing",
                    [](Call&, Rows&, View& o, View&, BackwardOptions&) { o = {}; },
                    "O of the forward is not given"},
        BackwardRow{"lse_missing",
                    [](Call&, Rows&, View&, View& l, BackwardOptions&) { l = {}; },
                    "LSE of the forward is not given"},
        BackwardRow{"dout_missing",
                    [](Call&, Rows& d, View&, View&, BackwardOptions&) { d = {}; },
                    "the gradient of O is not given"},
        BackwardRow{
            "dout_shape",
            [](Call&, Rows& d, View&, View&, BackwardOptions&) { d = zeros({2, 4, 5, 8}); },
            "the gradient of O is f32 [2, 4, 5, 8]; its shape must be that of f32 [2, 4, 6, 8]"},
        BackwardRow{"dout_dtype",
                    [](Call&, Rows& d, View&, View&, BackwardOptions&) {
                      d = zeros({2, 4, 6, 8}, DType::f16);
                    },
                    "the gradient of O has dtype f16; f32 like O is expected"},
        BackwardRow{"dout_dtype_beside_wide_o",
                    [](Call& c, Rows& d, View&, View&, BackwardOptions&) {
                      for (Tensor* input : {&c.q_data, &c.k_data, &c.v_data})
                        *input = converted(*input, DType::bf16);
                      c.q = Rows(c.q_data);
                      c.kv = dense(c.k_data, c.v_data);
                      c.options.out_dtype = DType::f32;
                      d = zeros({2, 4, 6, 8}, DType::f16);
                    },
                    "the gradient of O has dtype f16; f32 like O, or bf16 like Q, is expected"},
        BackwardRow{
            "partial",
            [](Call& c, Rows&, View&, View&, BackwardOptions&) { c.options.partial = true; },
            "the gradient of a partial result is that of the whole"},
        BackwardRow{
            "gradient_dtype",
            [](Call&, Rows&, View&, View&, BackwardOptions& b) { b.gradient_dtype = DType::bf16; },
            "gradient_dtype is bf16; f32 or f32 is allowed"},
        BackwardRow{
            "dlse_shape",
            [](Call&, Rows&, View&, View&, BackwardOptions& b) { b.dlse = zeros({2, 4, 9}); },
            "the gradient of LSE is f32 [2, 4, 9]; f32 of shape [2, 4, 6] is expected"}),
    [](const auto& test) { return std::string(test.param.name); });

// ---- plans and merges ----

TEST(PlanRefusal, NoBackendListsEveryReason) {
  Call c;
  Problem p = resolve(c.q, c.kv, c.options);
  p.spec.precision.follow = false;
  p.spec.precision.qk = DType::e5m2;
  try {
    plan(p.spec, p.bounds);
    FAIL() << "was planned";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::unsupported);
    EXPECT_EQ(e.stage(), Stage::plan);
    for (const char* word :
         {"no backend can run", "cuda:", "cpu:", "reference:", "allowed:", "got:"})
      EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << e.what();
  }
}

TEST(PlanRefusal, AnExplicitBackendNeverFallsBack) {
  Call c;
  Context cuda;
  cuda.backend = Backend::cuda;
  try {
    attention(c.q, c.kv, c.options, cuda);
    FAIL() << "ran somewhere else";
  } catch (const Error& e) {
    EXPECT_EQ(e.stage(), Stage::plan);
    EXPECT_NE(std::string(e.what()).find("another backend was asked for"), std::string::npos)
        << e.what();
  }
}

TEST(PlanRefusal, RunRefusesWhatThePlanWasNotMadeFor) {
  Call c;
  Problem p = resolve(c.q, c.kv, c.options);
  const Tensor o = zeros({2, 4, 6, 8});
  p.args.o = o;
  const Plan made = plan(p.spec, p.bounds);
  std::vector<std::byte> room(made.workspace() + 256);
  const auto refused = [&](auto&& spoil, const char* says) {
    Args a = p.args;
    spoil(a);
    try {
      made.run(a, room.data());
      ADD_FAILURE() << "ran: " << says;
    } catch (const Error& e) {
      EXPECT_EQ(e.stage(), Stage::run);
      EXPECT_NE(std::string(e.what()).find(says), std::string::npos) << e.what();
    }
  };
  refused([](Args& a) { a.o = {}; }, "O is not given, and this plan needs it");
  refused([](Args& a) { a.q.data = zeros({2, 4, 9, 8}); }, "plan again with larger bounds");
  refused([](Args& a) { a.kv.k = a.kv.v = zeros({2, 2, 8, 8}); },
          "k_len is 8; this plan was made for at most 7");
  refused([](Args& a) { a.q.data = zeros({2, 4, 6, 8}, DType::f16); }, "this plan is for f32");
  refused([](Args& a) { a.kv.k = a.kv.v = zeros({2, 4, 7, 8}); },
          "this plan is for 2 query heads per KV head");
  refused([](Args& a) { a.mask = nullptr; }, "mask and score are not bound");
}

TEST(PlanRefusal, ElementsOfCapturedGradientsHaveABound) {
  Call c;
  c.options.score = alibi(Array(std::vector<float>(4, 0.5f), "slope"));
  c.options.align = Align::start;
  const Tensor o = zeros({2, 4, 6, 8}), lse = zeros({2, 4, 6}), d = zeros({4});
  Problem p = resolve_backward(o, c.q, c.kv, o, lse, c.options, {});
  EXPECT_EQ(p.bounds.captured, 4);
  const Tensor dq = zeros({2, 4, 6, 8}), dk = zeros({2, 2, 7, 8}), dv = zeros({2, 2, 7, 8});
  p.args.dq = dq, p.args.dk = dk, p.args.dv = dv;
  p.args.d_arrays = {d};
  Bounds small = p.bounds;
  small.captured = 3;
  const Plan made = plan(p.spec, small);
  std::vector<std::byte> room(made.workspace() + 256);
  try {
    made.run(p.args, room.data());
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("elements of captured gradients is 4; this plan was made "
                                         "for at most 3"),
              std::string::npos)
        << e.what();
  }
}

TEST(MergeRefusal, PartialsMustFit) {
  const Partial a{zeros({1, 2, 3, 4}), zeros({1, 2, 3})}, b{zeros({1, 2, 5, 4}), zeros({1, 2, 5})};
  const auto says = [](auto&& call, const char* what) {
    try {
      call();
      ADD_FAILURE() << what;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(what), std::string::npos) << e.what();
    }
  };
  says([&] { merge(a, b); },
       "partials have O f32 [1, 2, 3, 4] and f32 [1, 2, 5, 4]; they must have one shape");
  says([&] { merge(a, {zeros({1, 2, 3, 4}, DType::f16), zeros({1, 2, 3})}); },
       "both must be f32: make it with options.partial");
  says([&] { merge(a, {zeros({1, 2, 3, 4}), {}}); }, "partial b has no LSE");
  says([&] { finish(a, zeros({3})); }, "sink is f32 [3]; f32 [2] is expected");
  says([&] { finish(a, {}, DType::i8); }, "dtype is i8; f32, f16 or bf16 is allowed");
}

}  // namespace
}  // namespace undivided
