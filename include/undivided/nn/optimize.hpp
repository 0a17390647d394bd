// SPDX-License-Identifier: Apache-2.0
// Loss, Adam, learning-rate schedules, clipping, averaging and checkpoints.
#pragma once

#include <map>

#include "undivided/nn/matrix.hpp"

namespace undivided::nn {

/// Who gets the smoothed share eps. `uniform`: every token, target included (torch). `others`: the
/// V - 1 other tokens, minus the constant entropy so that the minimum is 0 (tensor2tensor).
/// `others_but_padding`: the V - 2 tokens that are neither the target nor id 0, as a KL divergence
/// (The Annotated Transformer).
enum class Smoothing : std::uint8_t { uniform, others, others_but_padding };

template <class T>
struct Loss {
  double mean = 0;          ///< over counted tokens
  std::int64_t tokens = 0;  ///< with a target >= 0
  Matrix<T> gradient;       ///< of the mean, with respect to the logits
};
/// Cross entropy in nats. A negative target is not counted.
template <class T>
Loss<T> cross_entropy(const Matrix<T>& logits,
                      const std::vector<std::int32_t>& targets,
                      double eps = 0,
                      Smoothing form = Smoothing::uniform);

/// lr(s) = factor * D^-.5 * min(s^-.5, s * warmup^-1.5), from step 1. With `total` > 0 the rate
/// goes down linearly to 0 over the last `decay` of the steps.
struct Noam {
  std::int64_t features = 512;
  std::int64_t warmup = 4000;
  double factor = 1;
  std::int64_t total = 0;
  double decay = .6;
  double at(std::int64_t step) const;
};

struct AdamOptions {
  double beta1 = .9, beta2 = .98, eps = 1e-9;
  double weight_decay = 0;  ///< decoupled; matrices only
};
/// Adam (Kingma and Ba 2015) with bias correction.
template <class T>
class Adam {
 public:
  Adam(ParameterList<T> parameters, AdamOptions options = {});
  /// Uses the gradients and clears them.
  void step(double rate);
  std::int64_t steps = 0;
  std::vector<std::vector<T>> first, second;  ///< moments, in the order of the parameters
  const ParameterList<T>& parameters() const { return parameters_; }

 private:
  ParameterList<T> parameters_;
  AdamOptions options_;
};

/// Scales all gradients so that their common L2 norm is at most `most`; returns the norm before.
template <class T>
double clip_gradients(const ParameterList<T>& parameters, double most);

/// The mean of parameters over time.
template <class T>
struct Average {
  std::int64_t count = 0;
  std::vector<std::vector<T>> mean;
  void add(const ParameterList<T>& parameters);
  void assign_to(const ParameterList<T>& parameters) const;
};

/// Parameters as safetensors under their own names. The file appears whole or not at all.
template <class T>
void save_parameters(const std::string& path,
                     const ParameterList<T>& parameters,
                     const std::map<std::string, std::string>& metadata = {});
/// Strict: raises Error{io, resolve} that lists missing and unexpected names and wrong shapes, and
/// then changes nothing. Returns the metadata.
template <class T>
std::map<std::string, std::string> load_parameters(const std::string& path,
                                                   const ParameterList<T>& parameters);
/// The mean of several parameter files, written to `out` with the metadata of the last.
void average_files(const std::vector<std::string>& paths, const std::string& out);
std::map<std::string, std::string> read_metadata(const std::string& path);

/// All that a run needs to go on exactly: parameters, both moments, the running average, and the
/// losses so far for its curve.
template <class T>
void save_checkpoint(const std::string& path,
                     const Adam<T>& adam,
                     const Average<T>& average,
                     const std::vector<float>& losses,
                     std::map<std::string, std::string> metadata);
template <class T>
std::map<std::string, std::string> load_checkpoint(const std::string& path,
                                                   Adam<T>& adam,
                                                   Average<T>& average,
                                                   std::vector<float>& losses);

}  // namespace undivided::nn
