// SPDX-License-Identifier: Apache-2.0
// A CUDA driver that only remembers: what would be launched, copied and allocated, without a GPU.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda/driver.hpp"
#include "cuda/params.hpp"

namespace undivided::cuda::fake {

struct Launch {
  void* function;
  unsigned blocks, threads, shared;
  void* stream;
  Params params;
  std::vector<std::uintptr_t> mapped;  // where the tensors begin that its maps describe
};
/// What the fake cuTensorMapEncodeTiled writes. A kernel of the sm90 family has three of them
/// first.
struct alignas(64) Map {
  std::uintptr_t begin, rest[15];
};
struct State {
  int version = 13000, devices = 1, major = 9, minor = 0, multiprocessors = 132;
  Result init = 0, load = 0, launch = 0;
  std::string missing;          // a function that the library lacks
  std::deque<Launch> launches;  // tests hold on to one while more are added
  std::vector<std::pair<DevicePtr, std::size_t>> zeroed;
  int modules = 0;
  bool maps = false;  // launches have maps after the parameters
};
/// Launches may come from several threads.
inline std::mutex& lock() {
  static std::mutex m;
  return m;
}
/// The contexts of this thread, the current one last.
inline std::vector<ContextHandle>& contexts() {
  thread_local std::vector<ContextHandle> stack;
  return stack;
}
inline State& state() {
  static State s;
  return s;
}

template <class... A>
Result ok(A...) {
  return 0;
}
inline Result error_name(Result r, const char** out) {
  *out = r == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS"
         : r == 2 ? "CUDA_ERROR_OUT_OF_MEMORY"
                  : "CUDA_ERROR_X";
  return 0;
}
inline Result error_string(Result r, const char** out) {
  *out = r == 700 ? "an illegal memory access was encountered"
         : r == 2 ? "out of memory"
                  : "something failed";
  return 0;
}
inline Result init(unsigned) { return state().init; }
inline Result version(int* out) { return *out = state().version, 0; }
inline Result device_count(int* out) { return *out = state().devices, 0; }
inline Result device_get(int* out, int i) { return *out = i, 0; }
inline Result device_name(char* out, int size, int) {
  std::strncpy(out, "Fake 9000", static_cast<std::size_t>(size));
  return 0;
}
inline Result device_attribute(int* out, int which, int) {
  const State& s = state();
  *out = which == 75   ? s.major
         : which == 76 ? s.minor
         : which == 16 ? s.multiprocessors
         : which == 97 ? 227 * 1024
         : which == 13 ? 1980000
         : which == 36 ? 2619000
         : which == 37 ? 5120
                       : 1;
  return 0;
}
inline Result device_memory(std::size_t* out, int) { return *out = std::size_t{80} << 30, 0; }
inline Result pointer_of(void** out, int) { return *out = &state(), 0; }
inline Result current(ContextHandle* out) {
  return *out = contexts().empty() ? nullptr : contexts().back(), 0;
}
inline Result push(ContextHandle context) { return contexts().push_back(context), 0; }
inline Result pop(ContextHandle* out) {
  *out = contexts().back();
  return contexts().pop_back(), 0;
}
inline Result module_load(ModuleHandle* out, const void*) {
  *out = reinterpret_cast<void*>(static_cast<std::uintptr_t>(++state().modules));
  return state().load;
}
inline Result module_function(FunctionHandle* out, ModuleHandle module, const char*) {
  return *out = module, 0;
}
inline Result function_get(int* out, int, FunctionHandle) { return *out = 64, 0; }
inline Result function_set(FunctionHandle, int, int) { return 0; }
inline Result unload(ModuleHandle) { return 0; }
inline Result zeroes(DevicePtr at, unsigned char, std::size_t bytes, StreamHandle) {
  state().zeroed.emplace_back(at, bytes);
  return 0;
}
inline Result launch(FunctionHandle f,
                     unsigned x,
                     unsigned,
                     unsigned,
                     unsigned threads,
                     unsigned,
                     unsigned,
                     unsigned shared,
                     StreamHandle stream,
                     void** arguments,
                     void**) {
  Launch made{f, x, threads, shared, stream, *static_cast<Params*>(arguments[0]), {}};
  if (state().maps)
    for (int i = 0; i < 3; ++i) made.mapped.push_back(static_cast<Map*>(arguments[1])[i].begin);
  const std::lock_guard guard(lock());
  state().launches.push_back(std::move(made));
  return state().launch;
}
inline Result launch_config(const LaunchConfig* c,
                            FunctionHandle f,
                            void** arguments,
                            void** extra) {
  const bool overlaps = c->attribute_count == 1 &&
                        c->attributes->id == LaunchAttribute::stream_order_by_program &&
                        c->attributes->value.on == 1;
  if (!overlaps) return 1;
  return launch(
      f, c->grid[0], 1, 1, c->block[0], 1, 1, c->shared_memory, c->stream, arguments, extra);
}
inline Result zeroes_words(DevicePtr at, unsigned, std::size_t words, StreamHandle) {
  const std::lock_guard guard(lock());
  state().zeroed.emplace_back(at, 4 * words);
  return 0;
}
inline Result encode(void* map,
                     int,
                     unsigned,
                     void* begin,
                     const std::uint64_t*,
                     const std::uint64_t*,
                     const std::uint32_t*,
                     const std::uint32_t*,
                     int,
                     int,
                     int,
                     int) {
  *static_cast<Map*>(map) = {reinterpret_cast<std::uintptr_t>(begin), {}};
  return 0;
}
inline Result allocate(DevicePtr* out, std::size_t bytes, StreamHandle) {
  return *out = reinterpret_cast<DevicePtr>(std::aligned_alloc(256, (bytes + 255) / 256 * 256)), 0;
}
inline Result release(DevicePtr p, StreamHandle) {
  std::free(reinterpret_cast<void*>(p));
  return 0;
}
inline Result not_capturing(StreamHandle, int* out) { return *out = 0, 0; }

inline void* resolve(const char* name) {
  if (state().missing == name) return nullptr;
  const auto at = [](auto* f) { return reinterpret_cast<void*>(f); };
  static const std::unordered_map<std::string, void*> table{
      {"cuGetErrorName", at(&error_name)},
      {"cuGetErrorString", at(&error_string)},
      {"cuInit", at(&init)},
      {"cuDriverGetVersion", at(&version)},
      {"cuDeviceGetCount", at(&device_count)},
      {"cuDeviceGet", at(&device_get)},
      {"cuDeviceGetName", at(&device_name)},
      {"cuDeviceGetAttribute", at(&device_attribute)},
      {"cuDeviceTotalMem_v2", at(&device_memory)},
      {"cuDeviceGetDefaultMemPool", at(&pointer_of)},
      {"cuDevicePrimaryCtxRetain", at(&pointer_of)},
      {"cuCtxGetCurrent", at(&current)},
      {"cuCtxPushCurrent_v2", at(&push)},
      {"cuCtxPopCurrent_v2", at(&pop)},
      {"cuModuleLoadData", at(&module_load)},
      {"cuModuleGetFunction", at(&module_function)},
      {"cuModuleUnload", at(&unload)},
      {"cuFuncGetAttribute", at(&function_get)},
      {"cuFuncSetAttribute", at(&function_set)},
      {"cuMemsetD8Async", at(&zeroes)},
      {"cuMemsetD32Async", at(&zeroes_words)},
      {"cuTensorMapEncodeTiled", at(&encode)},
      {"cuLaunchKernel", at(&launch)},
      {"cuLaunchKernelEx", at(&launch_config)},
      {"cuMemAllocAsync", at(&allocate)},
      {"cuMemFreeAsync", at(&release)},
      {"cuStreamIsCapturing", at(&not_capturing)},
      {"cuStreamSynchronize", at(&ok<StreamHandle>)},
      {"cuMemPoolSetAttribute", at(&ok<MemoryPoolHandle, int, void*>)},
      {"cuMemcpyHtoDAsync_v2", at(&ok<DevicePtr, const void*, std::size_t, StreamHandle>)},
      {"cuMemcpyDtoHAsync_v2", at(&ok<void*, DevicePtr, std::size_t, StreamHandle>)},
      {"cuMemcpyDtoDAsync_v2", at(&ok<DevicePtr, DevicePtr, std::size_t, StreamHandle>)},
  };
  const auto found = table.find(name);
  // No test calls the rest.
  return found == table.end() ? at(&ok<>) : found->second;
}

}  // namespace undivided::cuda::fake
