// SPDX-License-Identifier: Apache-2.0
// Masks and score functions: from the library, traced from lambdas, and parsed from text.
#include <cstdio>
#include <vector>

#include "undivided/undivided.hpp"

namespace ud = undivided;

int main() {
  const std::int64_t n = 12;
  const ud::Tensor q = ud::Tensor::zeros(ud::DType::f32, {1, 2, n, 16});

  // From the library, combined like sets.
  const ud::Mask near = ud::causal() && ud::window(3);
  // Traced once from a lambda over positions; arrays and numbers are captured.
  const ud::Array doc(std::vector<std::int32_t>{0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2}, "doc");
  const ud::Mask same_doc =
      ud::mask([=](auto, auto, auto a, auto b) { return doc[a] == doc[b] && b <= a; });
  // From text: what configuration files and other languages send.
  const ud::Mask stripes = ud::Mask::parse("k <= q && (q - k) % 4 != 1");

  const ud::Array slope(std::vector<float>{0.5f, 0.25f}, "slope");
  const ud::Score score = ud::softcap(20) | ud::alibi(slope);

  for (const auto& [name, mask] :
       {std::pair{"near", near}, {"same document", same_doc}, {"stripes", stripes}}) {
    ud::Options options{.mask = mask, .score = score};
    options.max_logit = true;
    const ud::Forward f = ud::attention(q, q, q, options);
    const auto plan = ud::mask_plan(ud::Rows(q), ud::dense(q, q), options);
    std::printf("%-14s %s\n", name, mask.text().c_str());
    std::printf("%-14s keeps %lld of %lld pairs; largest logit of head 0: %.3f\n",
                "",
                static_cast<long long>(plan->kept_pairs() / 2),
                static_cast<long long>(n * n),
                static_cast<double>(f.max_logit.ptr<float>()[0]));
  }
  std::printf("score          %s\n", score.text().c_str());
  return ud::Mask::parse(same_doc.text(), same_doc.captures()) == same_doc ? 0 : 1;
}
