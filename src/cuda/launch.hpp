// SPDX-License-Identifier: Apache-2.0
// From Args to Params, and from Params to the stream. Nothing here allocates or waits.
#pragma once

#include "cuda/modules.hpp"
#include "cuda/params.hpp"
#include "cuda/spec.hpp"
#include "problem/bound.hpp"
#include "undivided/plan.hpp"

namespace undivided::cuda {

/// Fills what all kernels of a forward or backward share: shapes, lengths, positions, Q, K, V, O,
/// LSE, mask and score contents, dropout. Raises Error{invalid_argument, run} for data that no
/// kernel may see, such as arrays that are still on the host.
void fill_problem(const Spec& spec, const Bounds& bounds, const Args& args, Params& p);
void fill_backward(const Spec& spec, const Args& args, Params& p);
/// Lays out the sums of captured gradients, in elements: p.d_sums, p.d_param_sums, p.sums.
void fill_sums(const Spec& spec, long long* sums, Params& p);
void fill_merge(const Spec& spec, const Args& args, Params& p);
/// The arrays of the mask plan on the device.
void fill_mask_plan(const Args& args, Params& p);

MatrixRef matrix(const View& view, bool packed_rows);
ScalarRef scalars(const View& view, bool packed_rows);
IndexRef indices(const View& view);
int element_type(DType dtype);  ///< ElementType

/// Sets the tile counts of this kernel's grid. sm90: the tiles of all packed sequences are one
/// column, of which each begins at floor(first row / rows of a tile) + its number.
void set_tiles(const KernelSpec& spec, Params& p);
/// Launches blocks of a kernel; none launch nothing. One that `follows` another of the same call is
/// launched while that one ends, where card and driver can do so: all kernels begin with follow().
/// Raises Error{invalid_argument, run} for more blocks than a launch has.
void start(Driver& driver,
           const LoadedKernel& kernel,
           long long blocks,
           void** arguments,
           StreamHandle stream,
           bool follows);
/// The same of this kernel's grid, whose tile counts are set first.
void launch(
    Driver& driver, const LoadedKernel& kernel, Params& p, StreamHandle stream, bool follows);

/// The same for the sm90 family: also says how the copy engine reads Q, K and V, and zeroes the
/// counter of query tiles, where there are more than CTAs, on the stream: a graph replays it.
void launch_sm90(Driver& driver,
                 const LoadedKernel& kernel,
                 Params& p,
                 int multiprocessors,
                 void* counter,
                 StreamHandle stream);

/// The sm90 backward. prepare_rows has zeroed what it adds to.
void launch_backward_sm90(Driver& driver,
                          const LoadedKernel& kernel,
                          Params& p,
                          int multiprocessors,
                          StreamHandle stream,
                          bool follows);

/// Zeroes a float32 or 16-bit view; strided ones take one call a row of the outer axes.
void zero(Driver& driver, const View& view, StreamHandle stream);

}  // namespace undivided::cuda
