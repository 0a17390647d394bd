// SPDX-License-Identifier: Apache-2.0
// Matrix products by OpenBLAS, one thread a call, spread over our executor.
#pragma once

#include "undivided/nn/matrix.hpp"

namespace undivided::nn {

/// C[m, n] = op(A) op(B) + beta C, all row-major; op transposes when the flag says so. The pieces
/// depend on the shape alone, so the bits do not depend on the number of threads.
template <class T>
void product(const Context& context,
             bool transpose_a,
             bool transpose_b,
             std::int64_t m,
             std::int64_t n,
             std::int64_t k,
             const T* a,
             std::int64_t lda,
             const T* b,
             std::int64_t ldb,
             T beta,
             T* c,
             std::int64_t ldc);

/// Raises Error{resolve} unless the condition holds.
void require(bool condition, const std::string& message);

}  // namespace undivided::nn
