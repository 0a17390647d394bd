// SPDX-License-Identifier: Apache-2.0
// From programs and a kernel spec to the whole text of a kernel.
#pragma once

#include <string>

#include "cuda/cache.hpp"
#include "cuda/spec.hpp"
#include "undivided/plan.hpp"

namespace undivided::cuda {

/// Generated `struct Mask` and `struct Score`; empty: the built-in ones.
struct Policies {
  std::string mask, score;
};
/// Text for the programs that kernels of this spec read. Band and full masks, plans with bits
/// and the plain score need none.
Policies policies_of(const Spec& spec);

/// How the kernels see the spec's mask.
MaskKind mask_kind(const Spec& spec);
bool asks_program(const Spec& spec);  // about single pairs
bool plain_score(const Spec& spec);

/// Replaces each #include of an embedded file by its text, once: what is compiled is one readable
/// file, and a hash of it covers everything. Another include is an error.
std::string expand_includes(const std::string& text);

KernelSource source_of(const KernelSpec& spec, const Policies& policies, int arch);

}  // namespace undivided::cuda
