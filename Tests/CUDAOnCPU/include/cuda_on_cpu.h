// CUDA's driver, NVRTC and cuBLAS on the host, for tests of the CUDA backend on machines without a GPU.
//
// Kernels are the backend's own sources, compiled as C++. Everything happens at once, so what is missing
// between streams or before a download does not show here. What does show: addresses that the host or a
// kernel must not touch, memory that nobody wrote, barriers that not all threads reach, results that depend
// on the order of threads.
#ifndef QUANTEASE_CUDA_ON_CPU_H
#define QUANTEASE_CUDA_ON_CPU_H

#include <stddef.h>

#include "cuda_libraries.h"

#ifdef __cplusplus
extern "C" {
#endif

#pragma clang assume_nonnull begin

/// Fills in all functions. There is one device, "CPU", of compute capability 9.0, with driver and
/// libraries 13.0.
///
/// A thread needs a current context, as on a device. Memory is counted in units of 256 bytes. A device
/// address is not an address of the host: touching it is a crash. What is a programmer's error on a device,
/// where it often passes unnoticed (ranges outside of an allocation, a free of what is not allocated), ends
/// the process with a message.
void qe_cuda_on_cpu(qe_cuda_libraries *libraries);

// What follows holds for the process: tests that use it must not run beside others that launch kernels.

/// The order in which blocks, and threads between barriers, run: 0 forward, 1 backward, above that a
/// shuffle's seed.
void qe_cuda_on_cpu_set_order(int order);

/// The device's memory, 2⁴⁰ bytes unless set. Allocations beyond it return `qe_cuda_out_of_memory`.
void qe_cuda_on_cpu_set_memory(size_t bytes);

/// The launch that comes `countdown`-th from now returns `error`, and so does every later call of the driver
/// until `qe_cuda_on_cpu_reset`; those of cuBLAS return 13. Frees are carried out none the less. 0 takes it
/// back.
void qe_cuda_on_cpu_fail_launch(long countdown, int error);

/// Back to no failure, order 0 and all of the memory.
void qe_cuda_on_cpu_reset(void);

/// How many kernels this process has run.
long qe_cuda_on_cpu_launches(void);

#pragma clang assume_nonnull end

#ifdef __cplusplus
}
#endif

#endif
