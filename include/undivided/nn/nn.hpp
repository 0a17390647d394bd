// SPDX-License-Identifier: Apache-2.0
// All of undivided::nn: modules with explicit forward and backward, training and decoding.
#pragma once

#include "undivided/nn/attention.hpp"
#include "undivided/nn/convert.hpp"
#include "undivided/nn/differential.hpp"
#include "undivided/nn/fastformer.hpp"
#include "undivided/nn/layers.hpp"
#include "undivided/nn/matrix.hpp"
#include "undivided/nn/optimize.hpp"
#include "undivided/nn/search.hpp"
#include "undivided/nn/tasks.hpp"
#include "undivided/nn/transformer.hpp"
