// SPDX-License-Identifier: Apache-2.0
// Everything: #include <undivided/undivided.hpp>.
#pragma once

#include "undivided/attention.hpp"
#include "undivided/context.hpp"
#include "undivided/error.hpp"
#include "undivided/expr.hpp"
#include "undivided/mask_formats.hpp"
#include "undivided/mask_plan.hpp"
#include "undivided/plan.hpp"
#include "undivided/sparse.hpp"
#include "undivided/tensor.hpp"
#include "undivided/variants.hpp"
#include "undivided/version.hpp"
