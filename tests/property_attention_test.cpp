// SPDX-License-Identifier: Apache-2.0
// Claims that hold for every problem: order of keys, splitting, sharing, packing and paging change
// nothing but rounding.
#include <numeric>

#include "property_support.hpp"

namespace undivided::property {
namespace {

TEST(Property, TheOrderOfKeysDoesNotMatter) {
  EXPECT_TRUE(rc::check([] {
    const Data p(Shape::any());
    const auto order = *rc::gen::container<std::vector<int>>(static_cast<std::size_t>(p.s.nk),
                                                             rc::gen::inRange(0, 1 << 20));
    std::vector<int> at(order.size());
    std::iota(at.begin(), at.end(), 0);
    std::sort(at.begin(), at.end(), [&](int a, int b) {
      return std::pair(order[static_cast<std::size_t>(a)], a) <
             std::pair(order[static_cast<std::size_t>(b)], b);
    });
    const Tensor k = Tensor::empty_like(p.k, DType::f32), v = Tensor::empty_like(p.v, DType::f32);
    for (int j = 0; j < p.s.nk; ++j) {
      const int from = at[static_cast<std::size_t>(j)];
      copy(p.k.sliced(2, from, from + 1), k.sliced(2, j, j + 1));
      copy(p.v.sliced(2, from, from + 1), v.sliced(2, j, j + 1));
    }
    const Forward a = attention(p.q, p.k, p.v), b = attention(p.q, k, v);
    RC_ASSERT(distance(a.o, b.o) < tolerance);
    RC_ASSERT(distance(a.lse, b.lse) < tolerance);
  }));
}

TEST(Property, PartsOfTheKeysMergeToTheWhole) {
  EXPECT_TRUE(rc::check([] {
    const Data p(Shape::any());
    const int cut = between(0, p.s.nk), cut2 = between(cut, p.s.nk);
    const Tensor sink = random_tensor(DType::f32, {p.s.heads}, a_seed());
    Options whole{.mask = any_mask(), .sink = sink};
    std::vector<std::int32_t> q_origin(static_cast<std::size_t>(p.s.batch), between(0, 40));
    whole.q_origin = view(q_origin.data(), {p.s.batch});
    const auto part = [&](int begin, int end) {
      Options o = whole;
      o.sink = {};
      o.partial = true;
      std::vector<std::int32_t> origin(static_cast<std::size_t>(p.s.batch), begin);
      o.k_origin = view(origin.data(), {p.s.batch});
      const Forward f = attention(p.q, p.k.sliced(2, begin, end), p.v.sliced(2, begin, end), o);
      return Partial{f.o, f.lse};
    };
    const Partial a = part(0, cut), b = part(cut, cut2), c = part(cut2, p.s.nk);
    const Forward f = attention(p.q, p.k, p.v, whole);
    const Partial left = finish(merge(merge(a, b), c), sink);
    const Partial right = finish(merge(a, merge(b, c)), sink);
    RC_ASSERT(distance(f.o, left.o) < tolerance);
    RC_ASSERT(distance(f.lse, left.lse) < tolerance);
    RC_ASSERT(distance(left.o, right.o) < tolerance);
    RC_ASSERT(distance(left.lse, right.lse) < tolerance);
  }));
}

TEST(Property, APartWithoutKeysIsTheUnitOfMerging) {
  EXPECT_TRUE(rc::check([] {
    const Data p(Shape::any(40));
    const Forward f = attention(p.q, p.k, p.v, {.partial = true});
    const Forward none =
        attention(p.q, p.k.sliced(2, 0, 0), p.v.sliced(2, 0, 0), {.partial = true});
    const Partial a{f.o, f.lse}, unit{none.o, none.lse};
    RC_ASSERT(distance(merge(a, unit).o, f.o) == 0);
    RC_ASSERT(distance(merge(unit, a).o, f.o) == 0);
    RC_ASSERT(distance(merge(unit, a).lse, f.lse) == 0);
    RC_ASSERT(distance(merge(unit, unit).lse, none.lse) == 0);
  }));
}

TEST(Property, ABandIsTheSameWhenNobodyRecognisesIt) {
  EXPECT_TRUE(rc::check([] {
    const Data p(Shape::any());
    const int l = between(0, 90), r = between(0, 90);
    const Mask traced = mask([=](auto, auto, auto q, auto k) {
      return select(q - k <= l, k - q <= r, Expr(false));  // not a conjunction of bounds by shape
    });
    const Align align = any_align();
    const Forward a = attention(p.q, p.k, p.v, {.mask = window(l, r), .align = align});
    const Forward b = attention(p.q, p.k, p.v, {.mask = traced, .align = align});
    RC_ASSERT(distance(a.o, b.o) < tolerance);
    RC_ASSERT(distance(a.lse, b.lse) < tolerance);
  }));
}

TEST(Property, SharedHeadsAreRepeatedHeads) {
  EXPECT_TRUE(rc::check([] {
    const Data p(Shape::any());
    const Tensor k = Tensor::empty(DType::f32, {p.s.batch, p.s.heads, p.s.nk, p.s.d}),
                 v = Tensor::empty(DType::f32, {p.s.batch, p.s.heads, p.s.nk, p.s.dv});
    for (int h = 0; h < p.s.heads; ++h) {
      const int from = h / (p.s.heads / p.s.kv_heads);
      copy(p.k.sliced(1, from, from + 1), k.sliced(1, h, h + 1));
      copy(p.v.sliced(1, from, from + 1), v.sliced(1, h, h + 1));
    }
    const Options o{.mask = any_mask(), .align = any_align()};
    const Forward a = attention(p.q, p.k, p.v, o), b = attention(p.q, k, v, o);
    RC_ASSERT(distance(a.o, b.o) < tolerance);
    RC_ASSERT(distance(a.lse, b.lse) < tolerance);
  }));
}

TEST(Property, ChunksOfQueriesAreTheWhole) {
  EXPECT_TRUE(rc::check([] {
    const Data p(Shape::any());
    const Options o{.mask = any_mask(), .align = any_align()};
    const Forward f = attention(p.q, p.k, p.v, o);
    const int cut = between(0, p.s.nq);
    const int first = *o.align == Align::end ? p.s.nk - p.s.nq : 0;
    for (const auto& [begin, end] : {std::pair{0, cut}, {cut, p.s.nq}}) {
      Options part{.mask = o.mask};
      std::vector<std::int32_t> origin(static_cast<std::size_t>(p.s.batch), first + begin);
      part.q_origin = view(origin.data(), {p.s.batch});
      const Forward one = attention(p.q.sliced(2, begin, end), p.k, p.v, part);
      RC_ASSERT(distance(one.o, f.o.sliced(2, begin, end)) < tolerance);
      RC_ASSERT(distance(one.lse, f.lse.sliced(2, begin, end)) < tolerance);
    }
  }));
}

TEST(Property, PagesAreTheDenseKeys) {
  EXPECT_TRUE(rc::check([] {
    const Data p(Shape::any());
    const int size = between(1, 70), per = (p.s.nk + size - 1) / size, pages = p.s.batch * per + 2;
    const check::Buffer k(DType::f32, {pages, p.s.kv_heads, size, p.s.d}, "padded");
    const check::Buffer v(DType::f32, {pages, p.s.kv_heads, size, p.s.dv}, "padded");
    const int step = *rc::gen::suchThat(rc::gen::inRange(1, pages + 1),
                                        [&](int s) { return std::gcd(s, pages) == 1; });
    std::vector<std::int32_t> table, lengths(static_cast<std::size_t>(p.s.batch), p.s.nk);
    for (int b = 0; b < p.s.batch; ++b)
      for (int i = 0; i < per; ++i) {
        const int page = (b * per + i) * step % pages, end = std::min(p.s.nk, (i + 1) * size);
        table.push_back(page);
        copy(p.k.selected(0, b).sliced(1, i * size, end),
             k.view().selected(0, page).sliced(1, 0, end - i * size));
        copy(p.v.selected(0, b).sliced(1, i * size, end),
             v.view().selected(0, page).sliced(1, 0, end - i * size));
      }
    const Options o{.mask = any_mask(), .align = any_align()};
    const Forward a = attention(p.q, p.k, p.v, o);
    const Forward b = attention(
        Rows(p.q),
        undivided::paged(
            k, v, view(table.data(), {p.s.batch, per}), view(lengths.data(), {p.s.batch})),
        o);
    RC_ASSERT(distance(a.o, b.o) < tolerance);
    RC_ASSERT(distance(a.lse, b.lse) < tolerance);
  }));
}

TEST(Property, PackedSequencesAreOneByOne) {
  EXPECT_TRUE(rc::check([] {
    const int batch = between(1, 5), heads = 2, d = 16;
    std::vector<std::int32_t> at_q{0}, at_k{0};
    for (int b = 0; b < batch; ++b) {
      at_q.push_back(at_q.back() + between(0, 70));
      at_k.push_back(at_k.back() + between(0, 70));
    }
    const Tensor q = random_tensor(DType::f32, {at_q.back(), heads, d}, a_seed()),
                 k = random_tensor(DType::f32, {at_k.back(), heads, d}, a_seed()),
                 v = random_tensor(DType::f32, {at_k.back(), heads, d}, a_seed());
    const Options o{.mask = any_mask(), .align = any_align()};
    const Forward all = attention(
        ragged(q, view(at_q.data(), {batch + 1})), ragged(k, v, view(at_k.data(), {batch + 1})), o);
    for (std::size_t b = 0; b < static_cast<std::size_t>(batch); ++b) {
      const auto part = [&](const View& t, const std::vector<std::int32_t>& at) {
        return t.sliced(0, at[b], at[b + 1]).permuted({1, 0, 2});
      };
      const Forward one = attention(part(q, at_q), part(k, at_k), part(v, at_k), o);
      RC_ASSERT(distance(one.o, part(all.o, at_q)) < tolerance);
      RC_ASSERT(distance(one.lse, all.lse.sliced(1, at_q[b], at_q[b + 1])) < tolerance);
    }
  }));
}

TEST(Property, AMaskedKeyMayHoldAnything) {
  EXPECT_TRUE(rc::check([] {
    const Data p(Shape::any());
    const int hidden = between(0, p.s.nk - 1);
    const Options o{.mask = mask([=](auto, auto, auto, auto k) { return k != hidden; }),
                    .align = Align::start};
    const Forward a = attention(p.q, p.k, p.v, o);
    for (int b = 0; b < p.s.batch; ++b)
      for (int h = 0; h < p.s.kv_heads; ++h)
        for (int d = 0; d < std::min(p.s.d, p.s.dv); ++d) {
          *static_cast<float*>(p.k.at({b, h, hidden, d})) = 100;
          *static_cast<float*>(p.v.at({b, h, hidden, d})) = -1e6f;
        }
    const Forward b = attention(p.q, p.k, p.v, o);
    RC_ASSERT(distance(a.o, b.o) < tolerance);
    RC_ASSERT(distance(a.lse, b.lse) < tolerance);
  }));
}

TEST(Property, AMaskPlanIsItsBruteForce) {
  EXPECT_TRUE(rc::check([] {
    const int nq = between(1, 300), nk = between(1, 300), heads = 2;
    const Mask m = any_mask();
    const Align align = any_align();
    const Tensor q = Tensor::zeros(DType::f32, {1, heads, nq, 8}),
                 k = Tensor::zeros(DType::f32, {1, heads, nk, 8});
    const auto plan = mask_plan(Rows(q), dense(k, k), {.mask = m, .align = align});
    // V = 1 and equal scores: with key_mass asked for, LSE = log(number of keys).
    const Forward f = reference(Rows(q), dense(k, k), {.mask = m, .align = align});
    double pairs = 0, empty_rows = 0;
    for (std::int64_t i = 0; i < f.lse.count(); ++i) {
      pairs += std::exp(f.lse.ptr<double>()[i]);
      empty_rows += std::isinf(f.lse.ptr<double>()[i]);
    }
    RC_ASSERT(plan->kept_pairs() == std::llround(pairs));
    double counted = 0;
    for (int h = 0; h < heads; ++h) {
      const MaskPlan::Entry& e = plan->entry(0, h);
      counted += static_cast<double>(e.rows_without_key);
      RC_ASSERT(e.empty + e.partial + e.full == std::int64_t{e.q_blocks} * e.k_blocks);
    }
    RC_ASSERT(counted == empty_rows);
  }));
}

}  // namespace
}  // namespace undivided::property
