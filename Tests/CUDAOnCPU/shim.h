// CUDA's language for a C++ compiler. Kernels stand in a namespace of their own within `cuda_on_cpu`.
//
// To be included after everything else: it defines CUDA's keywords.
#pragma once
#include <math.h>
#include <stdlib.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "machine.h"

#define __global__
#define __device__ [[maybe_unused]]
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Blocks run one after the other, so one copy will do. It gets a section of its own to be filled before each
// block.
#define __shared__ static __attribute__((section("qe_shared")))

#define KERNEL(most_threads, name, parameters)                                         \
  static void name parameters;                                                         \
  static ::cuda_on_cpu::machine::KernelOf<name> kernel_of_##name(#name, most_threads); \
  static void name parameters

namespace cuda_on_cpu {

// Vectors, aligned as on a device.

#define VECTOR_2(type, element, bytes) \
  struct alignas(bytes) type {         \
    element x, y;                      \
  };                                   \
  inline type make_##type(element x, element y) { return {x, y}; }
#define VECTOR_4(type, element, bytes) \
  struct alignas(bytes) type {         \
    element x, y, z, w;                \
  };                                   \
  inline type make_##type(element x, element y, element z, element w) { return {x, y, z, w}; }
VECTOR_2(float2, float, 8)
VECTOR_4(float4, float, 16)
VECTOR_2(int2, int, 8)
VECTOR_4(int4, int, 16)
VECTOR_2(uint2, unsigned, 8)
VECTOR_4(uint4, unsigned, 16)
VECTOR_4(ushort4, unsigned short, 8)
VECTOR_4(uchar4, unsigned char, 4)
VECTOR_2(double2, double, 16)
#undef VECTOR_2
#undef VECTOR_4

// Numbers and their bits

namespace machine {
template <class To, class From>
inline To bits_of(From value) {
  static_assert(sizeof(To) >= sizeof(From));
  To bits{};
  memcpy(&bits, &value, sizeof value);
  return bits;
}
}  // namespace machine

inline unsigned __float_as_uint(float value) { return machine::bits_of<unsigned>(value); }
inline float __uint_as_float(unsigned value) { return machine::bits_of<float>(value); }
inline int __float_as_int(float value) { return machine::bits_of<int>(value); }
inline float __int_as_float(int value) { return machine::bits_of<float>(value); }
inline long long __double_as_longlong(double value) { return machine::bits_of<long long>(value); }
inline double __longlong_as_double(long long value) { return machine::bits_of<double>(value); }
inline int __float2int_rn(float value) { return static_cast<int>(rintf(value)); }

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }
inline int __clzll(long long value) {
  return value == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(value));
}

// Arithmetic. The rest of what kernels call is the C library's.

inline float rsqrtf(float value) { return 1.0f / sqrtf(value); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fsqrt_rn(float value) { return sqrtf(value); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }

template <class A, class B>
inline std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return static_cast<T>(fmin(a, b));
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B>
inline std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return static_cast<T>(fmax(a, b));
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

// Memory

template <class T>
inline T __ldg(const T *address) {
  return *address;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace machine {
/// Threads take turns at barriers only, so what stands between them is atomic. Floats are left out: their
/// sums would depend on the order of threads.
template <class T, class Change>
inline T change(T *address, Change change) {
  static_assert(
      std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long>,
      "atomics are for int, unsigned and unsigned long long");
  const T before = *address;
  *address = change(before);
  return before;
}
template <class T>
struct Given {
  using Type = T;
};
template <class T>
using Exactly = typename Given<T>::Type;
}  // namespace machine

template <class T>
inline T atomicAdd(T *address, machine::Exactly<T> value) {
  return machine::change(address, [value](T before) { return static_cast<T>(before + value); });
}
template <class T>
inline T atomicMin(T *address, machine::Exactly<T> value) {
  return machine::change(address, [value](T before) { return std::min(before, value); });
}
template <class T>
inline T atomicMax(T *address, machine::Exactly<T> value) {
  return machine::change(address, [value](T before) { return std::max(before, value); });
}
template <class T>
inline T atomicOr(T *address, machine::Exactly<T> value) {
  return machine::change(address, [value](T before) { return before | value; });
}

// Barriers, shuffles and votes. The last two parameters are the caller's place in the source.

#define PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(PLACE) { machine::wait_at_barrier(file, line); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, PLACE) {
  machine::wait_for_warp(machine::Operation::synchronization, mask, 0, 0, file, line);
}

namespace machine {
/// From a lane of the same section of `width` lanes, or from oneself where there is none.
template <class T>
inline T exchange(unsigned mask, T value, long long source, int width, const char *file, int line) {
  static_assert(
      std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "shuffles are for 4 or 8 bytes");
  const long long me = lane(), first = me & -static_cast<long long>(width);
  const long long from = source >= first && source < first + width ? source : me;
  const uint64_t got = wait_for_warp(
      Operation::exchange, mask, bits_of<uint64_t>(value), static_cast<unsigned>(from), file, line);
  T result;
  memcpy(&result, &got, sizeof result);
  return result;
}
}  // namespace machine

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, PLACE) {
  const int first = static_cast<int>(machine::lane()) & -width;
  return machine::exchange(mask, value, first + (source & (width - 1)), width, file, line);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, PLACE) {
  return machine::exchange(
      mask, value, static_cast<long long>(machine::lane()) + distance, width, file, line);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, PLACE) {
  return machine::exchange(
      mask, value, static_cast<long long>(machine::lane()) - distance, width, file, line);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, PLACE) {
  return machine::exchange(mask, value, static_cast<int>(machine::lane()) ^ lanes, width, file, line);
}

inline unsigned __ballot_sync(unsigned mask, int vote, PLACE) {
  return static_cast<unsigned>(
      machine::wait_for_warp(machine::Operation::ballot, mask, vote != 0, 0, file, line));
}
inline int __any_sync(unsigned mask, int vote, PLACE) { return __ballot_sync(mask, vote, file, line) != 0; }
inline int __all_sync(unsigned mask, int vote, PLACE) { return __ballot_sync(mask, !vote, file, line) == 0; }

#undef PLACE

}  // namespace cuda_on_cpu
