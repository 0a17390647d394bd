// SPDX-License-Identifier: Apache-2.0
// Cuts a product into row blocks and hands them to the executor.
#include "nn/blas.hpp"

#include <cblas.h>

#include <algorithm>
#include <type_traits>

#include "undivided/error.hpp"

namespace undivided::nn {
namespace {

// A threaded OpenBLAS would spin on cores that belong to the executor.
void one_thread() {
  static const bool done = [] {
    openblas_set_num_threads(1);
    return true;
  }();
  (void)done;
}

}  // namespace

void require(bool condition, const std::string& message) {
  if (!condition) throw Error(Code::invalid_argument, Stage::resolve, message);
}

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
             std::int64_t ldc) {
  if (m == 0 || n == 0) return;
  one_thread();
  const auto part = [&](std::int64_t from, std::int64_t rows) {
    const T* at = a + from * (transpose_a ? 1 : lda);
    T* to = c + from * ldc;
    const auto ta = transpose_a ? CblasTrans : CblasNoTrans;
    const auto tb = transpose_b ? CblasTrans : CblasNoTrans;
    const auto i = [](std::int64_t x) { return static_cast<blasint>(x); };
    if constexpr (std::is_same_v<T, float>)
      cblas_sgemm(
          CblasRowMajor, ta, tb, i(rows), i(n), i(k), 1.f, at, i(lda), b, i(ldb), beta, to, i(ldc));
    else
      cblas_dgemm(
          CblasRowMajor, ta, tb, i(rows), i(n), i(k), 1., at, i(lda), b, i(ldb), beta, to, i(ldc));
  };
  // About 8 MFLOP a block pays for a hand-over.
  constexpr std::int64_t grain = 4 << 20;
  std::int64_t rows =
      std::max<std::int64_t>(32, (grain / std::max<std::int64_t>(1, n * k) + 31) / 32 * 32);
  if (rows >= m) {
    part(0, m);
    return;
  }
  Executor& executor = context.executor ? *context.executor : default_executor();
  executor.parallel_for((m + rows - 1) / rows,
                        [&](std::int64_t i, int) { part(i * rows, std::min(rows, m - i * rows)); });
}

template decltype(product<float>) product<float>;
template decltype(product<double>) product<double>;

}  // namespace undivided::nn
