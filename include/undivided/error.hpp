// SPDX-License-Identifier: Apache-2.0
// One error type. A message says what came, what is allowed, and the nearest legal choice.
#pragma once

#include <stdexcept>
#include <string>

namespace undivided {

/// What kind of failure this is.
enum class Code {
  invalid_argument,  ///< the request contradicts itself or the data
  unsupported,       ///< legal, but no candidate backend can do it
  out_of_memory,     ///< host or device memory ran out
  io,                ///< a file is missing, truncated, or not what it claims to be
  driver,            ///< an operating system, CUDA driver or compiler call failed
};

/// Where it was noticed.
enum class Stage {
  parse,    ///< reading text or a file
  bind,     ///< attaching arrays and parameters to a mask or score program
  resolve,  ///< turning a call into a problem: every user error
  plan,     ///< choosing and preparing a backend
  run,      ///< executing; an asynchronous CUDA error that surfaces later says so
};

const char* name_of(Code code);
const char* name_of(Stage stage);

/// The only exception type thrown by the library.
class Error : public std::runtime_error {
 public:
  Error(Code code, Stage stage, const std::string& message)
      : std::runtime_error(message), code_(code), stage_(stage) {}
  Code code() const { return code_; }
  Stage stage() const { return stage_; }

 private:
  Code code_;
  Stage stage_;
};

}  // namespace undivided
