// SPDX-License-Identifier: Apache-2.0
// The CUDA driver, opened at run time: one table of checked and counted calls, and its devices.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace undivided::cuda {

using Result = int;               // CUresult
using DevicePtr = std::uint64_t;  // CUdeviceptr
using ContextHandle = void*;      // CUcontext
using StreamHandle = void*;       // CUstream
using EventHandle = void*;        // CUevent
using ModuleHandle = void*;       // CUmodule
using FunctionHandle = void*;     // CUfunction
using GraphHandle = void*;        // CUgraph
using GraphExecHandle = void*;    // CUgraphExec
using MemoryPoolHandle = void*;   // CUmemoryPool

inline constexpr Result out_of_memory_result = 2;

/// CUlaunchAttribute and CUlaunchConfig.
struct LaunchAttribute {
  static constexpr int stream_order_by_program = 6;  // ..._PROGRAMMATIC_STREAM_SERIALIZATION
  int id = 0, padding = 0;
  union {
    int on;
    char room[64];
  } value{};
};
struct LaunchConfig {
  unsigned grid[3] = {1, 1, 1}, block[3] = {1, 1, 1}, shared_memory = 0;
  StreamHandle stream = nullptr;
  LaunchAttribute* attributes = nullptr;
  unsigned attribute_count = 0;
};

/// What a call does, for the tests that count: `run` may make only launches and queries.
enum class CallKind : std::uint8_t { query, memory, module, synchronise, copy, launch, other };
inline constexpr std::size_t call_kinds = 7;
const char* name_of(CallKind kind);

class Driver;

/// One entry of the table: a function found by name. Calling it counts, checks and throws.
class Entry {
 public:
  const char* name() const { return name_; }
  bool found() const { return address_ != nullptr; }
  std::uint64_t calls() const { return calls_.load(std::memory_order_relaxed); }

 protected:
  Entry(Driver& owner, const char* name, CallKind kind, bool required);
  void* address_ = nullptr;
  mutable std::atomic<std::uint64_t> calls_{0};

  friend class Driver;
  Driver* owner_;
  const char* name_;
  CallKind kind_;
  bool required_;
};

template <class... A>
class Call : public Entry {
 public:
  Call(Driver& owner, const char* name, CallKind kind, bool required = true)
      : Entry(owner, name, kind, required) {}
  inline void operator()(A... args) const;  ///< raises Error{driver, run}
  Result raw(A... args) const {
    calls_.fetch_add(1, std::memory_order_relaxed);
    return reinterpret_cast<Result (*)(A...)>(address_)(args...);
  }
};

/// What kernels and the cost model need to know of a device.
struct DeviceInfo {
  int index = 0;
  int handle = 0;  // CUdevice
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  int shared_memory = 0;  // bytes a block may opt into
  int l2_bytes = 0;
  std::size_t memory = 0;
  double bandwidth = 0;     // bytes/s of the memory interface, from its clock and width
  double tensor_flops = 0;  // f16 products with f32 sums, dense, from the clock
  bool memory_pools = false;
  ContextHandle context = nullptr;  // its primary context, kept for the life of the process
  int arch() const { return major * 10 + minor; }
};

class Driver {
 public:
  /// Finds a function by its name in the library, or null.
  using Resolve = std::function<void*(const char*)>;
  /// Any library that answers: tests bring their own. Raises Error{unsupported, plan} with the
  /// reason when it cannot be used.
  explicit Driver(Resolve resolve);

  const std::vector<DeviceInfo>& devices() const { return devices_; }
  const DeviceInfo& device(int index) const;  ///< raises Error{invalid_argument, plan}
  int version() const { return version_; }    // 13000 is 13.0

  std::uint64_t calls(CallKind kind) const;
  std::map<std::string, std::uint64_t> calls() const;  ///< by name
  /// Throws unless result is success; says what failed, and that it may come from earlier work.
  void check(Result result, const char* call) const;
  bool capturing(StreamHandle stream) const;

 private:
  friend class Entry;
  std::vector<Entry*> entries_;  // first: the calls below add themselves
  std::vector<DeviceInfo> devices_;
  int version_ = 0;
  void read_devices();

 public:
  using K = CallKind;
  Call<Result, const char**> cuGetErrorName{*this, "cuGetErrorName", K::query};
  Call<Result, const char**> cuGetErrorString{*this, "cuGetErrorString", K::query};
  Call<unsigned> cuInit{*this, "cuInit", K::query};
  Call<int*> cuDriverGetVersion{*this, "cuDriverGetVersion", K::query};
  Call<int*> cuDeviceGetCount{*this, "cuDeviceGetCount", K::query};
  Call<int*, int> cuDeviceGet{*this, "cuDeviceGet", K::query};
  Call<char*, int, int> cuDeviceGetName{*this, "cuDeviceGetName", K::query};
  Call<int*, int, int> cuDeviceGetAttribute{*this, "cuDeviceGetAttribute", K::query};
  Call<std::size_t*, int> cuDeviceTotalMem{*this, "cuDeviceTotalMem_v2", K::query};
  Call<MemoryPoolHandle*, int> cuDeviceGetDefaultMemPool{
      *this, "cuDeviceGetDefaultMemPool", K::query};
  Call<MemoryPoolHandle, int, void*> cuMemPoolSetAttribute{
      *this, "cuMemPoolSetAttribute", K::other};
  Call<ContextHandle*, int> cuDevicePrimaryCtxRetain{*this, "cuDevicePrimaryCtxRetain", K::other};
  Call<ContextHandle*> cuCtxGetCurrent{*this, "cuCtxGetCurrent", K::query};
  Call<ContextHandle> cuCtxPushCurrent{*this, "cuCtxPushCurrent_v2", K::other};
  Call<ContextHandle*> cuCtxPopCurrent{*this, "cuCtxPopCurrent_v2", K::other};
  Call<> cuCtxSynchronize{*this, "cuCtxSynchronize", K::synchronise};
  Call<std::size_t*, std::size_t*> cuMemGetInfo{*this, "cuMemGetInfo_v2", K::query};
  Call<DevicePtr*, std::size_t> cuMemAlloc{*this, "cuMemAlloc_v2", K::memory};
  Call<DevicePtr> cuMemFree{*this, "cuMemFree_v2", K::memory};
  Call<DevicePtr*, std::size_t, StreamHandle> cuMemAllocAsync{*this, "cuMemAllocAsync", K::memory};
  Call<DevicePtr, StreamHandle> cuMemFreeAsync{*this, "cuMemFreeAsync", K::memory};
  Call<DevicePtr, const void*, std::size_t, StreamHandle> cuMemcpyHtoDAsync{
      *this, "cuMemcpyHtoDAsync_v2", K::copy};
  Call<void*, DevicePtr, std::size_t, StreamHandle> cuMemcpyDtoHAsync{
      *this, "cuMemcpyDtoHAsync_v2", K::copy};
  Call<DevicePtr, DevicePtr, std::size_t, StreamHandle> cuMemcpyDtoDAsync{
      *this, "cuMemcpyDtoDAsync_v2", K::copy};
  Call<DevicePtr, unsigned char, std::size_t, StreamHandle> cuMemsetD8Async{
      *this, "cuMemsetD8Async", K::launch};
  Call<DevicePtr, unsigned, std::size_t, StreamHandle> cuMemsetD32Async{
      *this, "cuMemsetD32Async", K::launch};
  Call<StreamHandle*, unsigned> cuStreamCreate{*this, "cuStreamCreate", K::other};
  Call<StreamHandle> cuStreamDestroy{*this, "cuStreamDestroy_v2", K::other};
  Call<StreamHandle> cuStreamSynchronize{*this, "cuStreamSynchronize", K::synchronise};
  Call<StreamHandle, int*> cuStreamIsCapturing{*this, "cuStreamIsCapturing", K::query};
  Call<StreamHandle, int> cuStreamBeginCapture{*this, "cuStreamBeginCapture_v2", K::other};
  Call<StreamHandle, GraphHandle*> cuStreamEndCapture{*this, "cuStreamEndCapture", K::other};
  Call<GraphExecHandle*, GraphHandle, unsigned long long> cuGraphInstantiate{
      *this, "cuGraphInstantiateWithFlags", K::other};
  Call<GraphExecHandle, StreamHandle> cuGraphLaunch{*this, "cuGraphLaunch", K::launch};
  Call<GraphExecHandle> cuGraphExecDestroy{*this, "cuGraphExecDestroy", K::other};
  Call<GraphHandle> cuGraphDestroy{*this, "cuGraphDestroy", K::other};
  // map, type, rank, base, extents, strides in bytes, box, steps, interleave, swizzle, L2, fill
  Call<void*,
       int,
       unsigned,
       void*,
       const std::uint64_t*,
       const std::uint64_t*,
       const std::uint32_t*,
       const std::uint32_t*,
       int,
       int,
       int,
       int>
      cuTensorMapEncodeTiled{*this, "cuTensorMapEncodeTiled", K::query, false};
  Call<EventHandle*, unsigned> cuEventCreate{*this, "cuEventCreate", K::other};
  Call<EventHandle> cuEventDestroy{*this, "cuEventDestroy_v2", K::other};
  Call<EventHandle, StreamHandle> cuEventRecord{*this, "cuEventRecord", K::launch};
  Call<EventHandle> cuEventSynchronize{*this, "cuEventSynchronize", K::synchronise};
  Call<float*, EventHandle, EventHandle> cuEventElapsedTime{*this, "cuEventElapsedTime", K::query};
  Call<ModuleHandle*, const void*> cuModuleLoadData{*this, "cuModuleLoadData", K::module};
  Call<ModuleHandle> cuModuleUnload{*this, "cuModuleUnload", K::module};
  Call<FunctionHandle*, ModuleHandle, const char*> cuModuleGetFunction{
      *this, "cuModuleGetFunction", K::module};
  Call<int*, int, FunctionHandle> cuFuncGetAttribute{*this, "cuFuncGetAttribute", K::module};
  Call<FunctionHandle, int, int> cuFuncSetAttribute{*this, "cuFuncSetAttribute", K::module};
  Call<int*, FunctionHandle, int, std::size_t> cuOccupancyMaxActiveBlocks{
      *this, "cuOccupancyMaxActiveBlocksPerMultiprocessor", K::query};
  Call<FunctionHandle,
       unsigned,
       unsigned,
       unsigned,
       unsigned,
       unsigned,
       unsigned,
       unsigned,
       StreamHandle,
       void**,
       void**>
      cuLaunchKernel{*this, "cuLaunchKernel", K::launch};
  Call<const LaunchConfig*, FunctionHandle, void**, void**> cuLaunchKernelEx{
      *this, "cuLaunchKernelEx", K::launch, false};
};

template <class... A>
void Call<A...>::operator()(A... args) const {
  const Result result = raw(args...);
  if (result != 0) [[unlikely]]
    owner_->check(result, name_);
}

/// Can CUDA be used here, and if not, why and what would help?
struct Availability {
  bool ok = false;
  std::string reason;  // "no CUDA driver: libcuda.so.1: cannot open shared object file"
};
Availability availability();  ///< never throws
bool available();
/// The process's driver, opened at first use. Raises Error{unsupported, plan} with the reason.
Driver& driver();

/// Makes a device's primary context current for a scope, unless it is: one query then.
class DeviceScope {
 public:
  DeviceScope(Driver& driver, int device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  Driver& driver_;
  bool pushed_;
};

}  // namespace undivided::cuda
