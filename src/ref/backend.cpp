// SPDX-License-Identifier: Apache-2.0
// The oracle's row in the table of backends.
#include "ref/reference.hpp"

namespace undivided::ref {
namespace {

class Oracle final : public Prepared {
 public:
  explicit Oracle(const Spec& spec) : spec_(spec) {
    explanation.backend = "reference";
    explanation.kernel = "reference.f64";
    explanation.tiles = "none";
    explanation.determinism = "invariant";
    explanation.notes = {"float64, three loops: exact and slow"};
  }
  std::size_t workspace() const override { return 0; }
  void run(const Args& args, void*, const Context&) const override {
    if (spec_.op == Operation::forward) return forward(spec_, args);
    if (spec_.op == Operation::backward) return backward(spec_, args);
    merge(spec_, args);
  }

 private:
  Spec spec_;
};

}  // namespace

Support support(const Spec& spec, const Bounds&, const Context&) {
  if (spec.op != Operation::forward && spec.op != Operation::backward &&
      spec.op != Operation::merge)
    return Support::no(
        "the oracle has no such operation", "forward, backward, merge", describe(spec));
  if (!spec.precision.follow)
    return Support::no(
        "the oracle computes in float64", "precision that follows the inputs", "another precision");
  return Support::yes();
}

std::unique_ptr<Prepared> prepare(const Spec& spec, const Bounds&, Device, const Context&) {
  return std::make_unique<Oracle>(spec);
}

}  // namespace undivided::ref
