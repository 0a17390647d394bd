// SPDX-License-Identifier: Apache-2.0
// Names of the error codes, stages and backends.
#include "undivided/error.hpp"

#include "undivided/context.hpp"

namespace undivided {

const char* name_of(Code code) {
  switch (code) {
    case Code::invalid_argument:
      return "invalid_argument";
    case Code::unsupported:
      return "unsupported";
    case Code::out_of_memory:
      return "out_of_memory";
    case Code::io:
      return "io";
    case Code::driver:
      return "driver";
  }
  return "?";
}

const char* name_of(Stage stage) {
  switch (stage) {
    case Stage::parse:
      return "parse";
    case Stage::bind:
      return "bind";
    case Stage::resolve:
      return "resolve";
    case Stage::plan:
      return "plan";
    case Stage::run:
      return "run";
  }
  return "?";
}

const char* name_of(Backend backend) {
  switch (backend) {
    case Backend::automatic:
      return "auto";
    case Backend::reference:
      return "reference";
    case Backend::cpu:
      return "cpu";
    case Backend::cuda:
      return "cuda";
  }
  return "?";
}

}  // namespace undivided
