#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>

#include "device.h"
#include "machine.h"

namespace cuda_on_cpu {
namespace {

constexpr int driver_version = 13000;
constexpr size_t page_bytes = 4096;
// What the compiler gives and a module is loaded from.
constexpr char image[4] = "CPU";

// Handles lead nowhere: there is one of each.
char context_object, pool_object, stream_object, module_object;
uint64_t release_threshold = 0;
std::set<void *> host_allocations;

template <class Handle>
Handle handle_of(char &object) {
  return reinterpret_cast<Handle>(&object);
}

struct Result {
  int number;
  const char *name, *text;
};
constexpr Result results[] = {
    {success, "CUDA_SUCCESS", "no error"},
    {invalid_value, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {out_of_memory, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {not_initialized, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {no_device, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {invalid_device, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {invalid_image, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {invalid_context, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {not_found, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {illegal_address, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {launch_out_of_resources, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
     "too many resources requested for launch"},
    {launch_failed, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
};

int result_text(int error, const char **text, const char *Result::*member) {
  for (const Result &result : results) {
    if (result.number != error) continue;
    *text = result.*member;
    return success;
  }
  *text = nullptr;
  return invalid_value;
}

void fill_devices(qe_cuda_libraries &libraries) {
  libraries.cuInit = [](unsigned flags) {
    const Call call(Call::nothing);
    if (call.error != success) return call.error;
    if (flags != 0) return +invalid_value;
    device.initialized = true;
    return +success;
  };
  libraries.cuDriverGetVersion = [](int *version) {
    const Call call(Call::nothing);
    *version = driver_version;
    return call.error;
  };
  libraries.cuGetErrorName = [](int error, const char **text) {
    return result_text(error, text, &Result::name);
  };
  libraries.cuGetErrorString = [](int error, const char **text) {
    return result_text(error, text, &Result::text);
  };
  libraries.cuDeviceGetCount = [](int *count) {
    const Call call(Call::initialization);
    *count = 1;
    return call.error;
  };
  libraries.cuDeviceGet = [](int *number, int ordinal) {
    const Call call(Call::initialization);
    if (call.error != success) return call.error;
    *number = 0;
    return ordinal == 0 ? +success : +invalid_device;
  };
  libraries.cuDeviceGetName = [](char *name, int length, int) {
    const Call call(Call::initialization);
    if (call.error != success) return call.error;
    if (length <= 0) return +invalid_value;
    snprintf(name, static_cast<size_t>(length), "CPU");
    return +success;
  };
  libraries.cuDeviceGetAttribute = [](int *value, int attribute, int) {
    const Call call(Call::initialization);
    if (call.error != success) return call.error;
    switch (attribute) {
      case qe_attribute_multiprocessors: *value = 4; return +success;
      case qe_attribute_compute_capability_major: *value = 9; return +success;
      case qe_attribute_compute_capability_minor: *value = 0; return +success;
      case qe_attribute_memory_pools: *value = 1; return +success;
      default: return +invalid_value;
    }
  };
  libraries.cuDeviceTotalMem_v2 = [](size_t *bytes, int) {
    const Call call(Call::initialization);
    *bytes = device.memory;
    return call.error;
  };
  libraries.cuDevicePrimaryCtxRetain = [](qe_cuda_context *context, int) {
    const Call call(Call::initialization);
    *context = handle_of<qe_cuda_context>(context_object);
    return call.error;
  };
  libraries.cuDevicePrimaryCtxRelease_v2 = [](int) {
    const Call call(Call::initialization);
    return call.error;
  };
  libraries.cuCtxSetCurrent = [](qe_cuda_context context) {
    const Call call(Call::initialization);
    if (call.error != success) return call.error;
    if (context != nullptr && context != handle_of<qe_cuda_context>(context_object)) return +invalid_context;
    has_context = context != nullptr;
    return +success;
  };
}

void fill_allocation(qe_cuda_libraries &libraries) {
  libraries.cuMemGetInfo_v2 = [](size_t *free, size_t *total) {
    const Call call(Call::context);
    *total = device.memory;
    *free = device.memory - std::min(device.memory, memory::used());
    return call.error;
  };
  libraries.cuDeviceGetDefaultMemPool = [](qe_cuda_pool *pool, int) {
    const Call call(Call::initialization);
    *pool = handle_of<qe_cuda_pool>(pool_object);
    return call.error;
  };
  libraries.cuMemPoolSetAttribute = [](qe_cuda_pool, int attribute, void *value) {
    const Call call(Call::initialization);
    if (call.error != success) return call.error;
    uint64_t number;
    memcpy(&number, value, sizeof number);
    if (attribute == qe_pool_release_threshold)
      release_threshold = number;
    else if (attribute == qe_pool_used_at_most && number == 0)
      memory::reset_peak();
    else
      return +invalid_value;
    return +success;
  };
  libraries.cuMemPoolGetAttribute = [](qe_cuda_pool, int attribute, void *value) {
    const Call call(Call::initialization);
    if (call.error != success) return call.error;
    uint64_t number;
    switch (attribute) {
      case qe_pool_release_threshold: number = release_threshold; break;
      case qe_pool_used_now: number = memory::used(); break;
      case qe_pool_used_at_most: number = memory::peak(); break;
      default: return +invalid_value;
    }
    memcpy(value, &number, sizeof number);
    return +success;
  };
  libraries.cuMemAllocAsync = [](qe_device_address *address, size_t bytes, qe_cuda_stream) {
    const Call call(Call::context);
    return call.error != success ? call.error : memory::allocate(address, bytes);
  };
  libraries.cuMemFreeAsync = [](qe_device_address address, qe_cuda_stream) {
    const Call call(Call::context);
    // After a failure, too: tests that come later count what is in use.
    if (call.error == success || device.failure != success) memory::free(address);
    return call.error;
  };
  libraries.cuMemHostAlloc = [](void **pointer, size_t bytes, unsigned) {
    const Call call(Call::context);
    if (call.error != success) return call.error;
    if (bytes == 0) return +invalid_value;
    if (posix_memalign(pointer, page_bytes, bytes) != 0) return +out_of_memory;
    host_allocations.insert(*pointer);
    return +success;
  };
  libraries.cuMemFreeHost = [](void *pointer) {
    const Call call(Call::context);
    if (call.error != success && device.failure == success) return call.error;
    if (host_allocations.erase(pointer) == 0) complain("cuMemFreeHost: %p is not allocated", pointer);
    free(pointer);
    return call.error;
  };
}

void fill_copies(qe_cuda_libraries &libraries) {
  libraries.cuMemcpyHtoDAsync_v2 = [](qe_device_address to, const void *from, size_t bytes, qe_cuda_stream) {
    const Call call(Call::context);
    if (call.error != success || bytes == 0) return call.error;
    memory::require_host(from, "cuMemcpyHtoDAsync");
    memcpy(memory::at(to, bytes, 1, "cuMemcpyHtoDAsync"), from, bytes);
    return +success;
  };
  libraries.cuMemcpyDtoHAsync_v2 = [](void *to, qe_device_address from, size_t bytes, qe_cuda_stream) {
    const Call call(Call::context);
    if (call.error != success || bytes == 0) return call.error;
    memory::require_host(to, "cuMemcpyDtoHAsync");
    memcpy(to, memory::at(from, bytes, 1, "cuMemcpyDtoHAsync"), bytes);
    return +success;
  };
  libraries.cuMemcpyDtoDAsync_v2 = [](qe_device_address to, qe_device_address from, size_t bytes,
                                      qe_cuda_stream) {
    const Call call(Call::context);
    if (call.error != success || bytes == 0) return call.error;
    if (to < from + bytes && from < to + bytes) complain("cuMemcpyDtoDAsync: the ranges overlap");
    memcpy(
        memory::at(to, bytes, 1, "cuMemcpyDtoDAsync"), memory::at(from, bytes, 1, "cuMemcpyDtoDAsync"),
        bytes);
    return +success;
  };
  libraries.cuMemsetD32Async = [](qe_device_address to, unsigned value, size_t count, qe_cuda_stream) {
    const Call call(Call::context);
    if (call.error != success || count == 0) return call.error;
    void *first = memory::at(to, count * sizeof value, sizeof value, "cuMemsetD32Async");
    std::fill_n(static_cast<unsigned *>(first), count, value);
    return +success;
  };
}

/// What a device would refuse.
bool is_launchable(const machine::Kernel &kernel, dim3 grid, dim3 block) {
  const auto within = [](dim3 size, size_t x, size_t y, size_t z) {
    return size.x >= 1 && size.y >= 1 && size.z >= 1 && size.x <= x && size.y <= y && size.z <= z;
  };
  return within(grid, 0x7FFF'FFFF, 65535, 65535) && within(block, 1024, 1024, 64) &&
         block.x * block.y * block.z <= kernel.most_threads;
}

int launch(
    machine::Kernel &kernel, dim3 grid, dim3 block, unsigned shared_bytes, void **parameters, void **extra) {
  if (!is_launchable(kernel, grid, block) || extra != nullptr) return invalid_value;
  if (shared_bytes != 0)
    complain("%s is launched with dynamic shared memory, which kernels here lack", kernel.name);
  if (device.launches_until_failure > 0 && --device.launches_until_failure == 0)
    return device.failure = device.failure_to_come;
  kernel.take(parameters);
  machine::launch(kernel, grid, block, device.order);
  ++device.launches;
  return success;
}

void fill_launching(qe_cuda_libraries &libraries) {
  libraries.cuStreamCreate = [](qe_cuda_stream *stream, unsigned) {
    const Call call(Call::context);
    *stream = handle_of<qe_cuda_stream>(stream_object);
    return call.error;
  };
  libraries.cuStreamSynchronize = [](qe_cuda_stream) { return Call(Call::context).error; };
  libraries.cuModuleLoadData = [](qe_cuda_module *loaded, const void *data) {
    const Call call(Call::context);
    if (call.error != success) return call.error;
    if (strncmp(static_cast<const char *>(data), image, sizeof image) != 0) return +invalid_image;
    *loaded = handle_of<qe_cuda_module>(module_object);
    return +success;
  };
  libraries.cuModuleGetFunction = [](qe_cuda_kernel *kernel, qe_cuda_module, const char *name) {
    const Call call(Call::context);
    if (call.error != success) return call.error;
    auto *found = machine::Kernel::find(name);
    if (found == nullptr) return +not_found;
    *kernel = reinterpret_cast<qe_cuda_kernel>(found);
    return +success;
  };
  libraries.cuLaunchKernel = [](qe_cuda_kernel kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                                qe_cuda_stream, void **parameters, void **extra) {
    const Call call(Call::context);
    if (call.error != success) return call.error;
    return launch(
        *reinterpret_cast<machine::Kernel *>(kernel), {grid_x, grid_y, grid_z}, {block_x, block_y, block_z},
        shared_bytes, parameters, extra);
  };
}

}  // namespace

void fill_driver(qe_cuda_libraries &libraries) {
  fill_devices(libraries);
  fill_allocation(libraries);
  fill_copies(libraries);
  fill_launching(libraries);
}

void fill_compiler(qe_cuda_libraries &libraries) {
  libraries.nvrtcVersion = [](int *major, int *minor) {
    *major = 13;
    *minor = 0;
    return +success;
  };
  libraries.nvrtcGetErrorString = [](int error) {
    return error == success ? "NVRTC_SUCCESS" : "NVRTC_ERROR";
  };
  libraries.nvrtcCreateProgram = [](qe_nvrtc_program *program, const char *, const char *, int,
                                    const char *const *, const char *const *) {
    static char object;
    *program = handle_of<qe_nvrtc_program>(object);
    return +success;
  };
  libraries.nvrtcCompileProgram = [](qe_nvrtc_program, int, const char *const *) { return +success; };
  libraries.nvrtcGetProgramLogSize = [](qe_nvrtc_program, size_t *size) {
    *size = 1;
    return +success;
  };
  libraries.nvrtcGetProgramLog = [](qe_nvrtc_program, char *text) {
    *text = 0;
    return +success;
  };
  libraries.nvrtcGetCUBINSize = [](qe_nvrtc_program, size_t *size) {
    *size = sizeof image;
    return +success;
  };
  libraries.nvrtcGetCUBIN = [](qe_nvrtc_program, char *to) {
    memcpy(to, image, sizeof image);
    return +success;
  };
  libraries.nvrtcDestroyProgram = [](qe_nvrtc_program *program) {
    *program = nullptr;
    return +success;
  };
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

void qe_cuda_on_cpu(qe_cuda_libraries *libraries) {
  fill_driver(*libraries);
  fill_compiler(*libraries);
  fill_blas(*libraries);
}

void qe_cuda_on_cpu_set_order(int order) {
  const std::lock_guard guard(device.lock);
  device.order = order;
}

void qe_cuda_on_cpu_set_memory(size_t bytes) {
  const std::lock_guard guard(device.lock);
  device.memory = bytes;
}

void qe_cuda_on_cpu_fail_launch(long countdown, int error) {
  const std::lock_guard guard(device.lock);
  device.launches_until_failure = countdown;
  device.failure_to_come = error;
}

void qe_cuda_on_cpu_reset(void) {
  const std::lock_guard guard(device.lock);
  const Device fresh;
  device.order = fresh.order;
  device.memory = fresh.memory;
  device.launches_until_failure = fresh.launches_until_failure;
  device.failure = fresh.failure;
}

long qe_cuda_on_cpu_launches(void) {
  const std::lock_guard guard(device.lock);
  return device.launches;
}
