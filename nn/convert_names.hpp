// SPDX-License-Identifier: Apache-2.0
// How other libraries name the projections of attention, and where Q, K and V lie in them.
#pragma once

#include <string>
#include <vector>

#include "nn/convert_files.hpp"

namespace undivided::nn {

/// A tensor of one attention. `parts` says whose output features lie along `axis`, in this order:
/// "q", "k", "v", "kv", "qkv", and "o" for the output projection.
struct Slab {
  std::string tensor, leaf, parts;
  bool bias = false;
  int axis = 0;
};

enum class AttentionKind : std::uint8_t { self, cross, encoder };

struct AttentionNames {
  std::string prefix;  // with the dot at its end
  AttentionKind kind = AttentionKind::self;
  std::int64_t layer = 0;
  std::vector<Slab> slabs;

  const Slab* find(char part, bool bias) const;
  bool has(char part) const { return find(part, false) != nullptr; }
};

/// The attentions of a checkpoint, all in one layout. `layout` is "auto" or a name, and becomes the
/// name. Raises Error{resolve} if none or several fit, or if tensors are missing.
std::vector<AttentionNames> find_attentions(const SourceCheckpoint& source, std::string& layout);

}  // namespace undivided::nn
