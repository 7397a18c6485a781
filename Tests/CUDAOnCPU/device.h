// The device that all calls share: its memory, its failures, one lock.
#pragma once
#include <cstddef>
#include <cstdint>
#include <mutex>

#include "include/cuda_on_cpu.h"

namespace cuda_on_cpu {

/// Results (CUresult).
enum : int {
  success = 0,
  invalid_value = 1,
  out_of_memory = qe_cuda_out_of_memory,
  not_initialized = 3,
  no_device = qe_cuda_no_device,
  invalid_device = 101,
  invalid_image = 200,
  invalid_context = 201,
  not_found = 500,
  illegal_address = 700,
  launch_out_of_resources = 701,
  launch_failed = 719,
};

/// Prints and aborts: for what is a programmer's error.
[[noreturn, gnu::format(printf, 1, 2)]] void complain(const char *format, ...);

/// Settings and failures; all under `lock`.
struct Device {
  std::mutex lock;
  bool initialized = false;
  int order = 0;
  size_t memory = size_t{1} << 40;
  long launches = 0;
  long launches_until_failure = 0;
  int failure_to_come = success;
  int failure = success;
};
extern Device device;

/// The calling thread's context.
extern thread_local bool has_context;

/// A call of the driver: holds the lock, and knows whether the device can be used.
class Call {
  std::lock_guard<std::mutex> guard{device.lock};

 public:
  enum Needs { nothing, initialization, context };
  const int error;
  explicit Call(Needs needs)
      : error(
            device.failure != success                 ? device.failure
            : needs != nothing && !device.initialized ? not_initialized
            : needs == context && !has_context        ? invalid_context
                                                      : success) {}
};

/// What stands in memory that nobody wrote: a NaN as a float, an improbable number otherwise.
constexpr uint32_t unwritten = 0x7FC0DEAD;

namespace memory {

/// Results in `out_of_memory` where it does not fit.
int allocate(qe_device_address *address, size_t bytes);
void free(qe_device_address address);
/// Bytes in use.
size_t used();
/// The most that was in use since `reset_peak`.
size_t peak();
void reset_peak();

/// The host's address of a range, which must lie in one live allocation.
/// - user: who asks, for the message
/// - alignment: what the address must be divisible by
void *at(qe_device_address address, size_t bytes, size_t alignment, const char *user);
/// Traps where the host's memory is meant and a device's address is given.
void require_host(const void *pointer, const char *user);
/// Says where a host's address lies relative to the allocations. Async-signal-safe enough for a last message.
void describe(const void *pointer, char *text, size_t length);

}  // namespace memory

/// Fill in their part of the table.
void fill_driver(qe_cuda_libraries &libraries);
void fill_compiler(qe_cuda_libraries &libraries);
void fill_blas(qe_cuda_libraries &libraries);

}  // namespace cuda_on_cpu
