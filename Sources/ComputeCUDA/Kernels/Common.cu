// What all kernels share.
//
// The sources have no #include: NVRTC compiles them on the machine that runs them, one after the other as a single
// program, and the tests compile them as C++, where KERNEL is defined otherwise. Matrices are row-major; a kernel
// computes every element in one thread or by a tree of fixed shape, so that its bits depend on its arguments alone.

#ifndef KERNEL
#define KERNEL(threads, name, parameters) extern "C" __global__ void __launch_bounds__(threads) name parameters
#endif

#ifndef INFINITY
#define INFINITY __int_as_float(0x7F800000)
#endif

typedef long long i64;
typedef unsigned short bfloat16;

// Threads of a block that reduces a row.
#define ROW_THREADS 256

// The elements that a thread of a one-dimensional grid works on, every grid's width one.
#define FOR_EACH(index, count)                                                                    \
  for (i64 index = (i64)blockIdx.x * blockDim.x + threadIdx.x; index < (count); index += (i64)gridDim.x * blockDim.x)

__device__ __forceinline__ float from_bfloat16(bfloat16 bits) { return __uint_as_float((unsigned)bits << 16); }

// The nearest value, ties to even; NaN stays NaN.
__device__ __forceinline__ bfloat16 to_bfloat16(float value) {
  const unsigned bits = __float_as_uint(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (bfloat16)(bits >> 16 | 0x40u);
  return (bfloat16)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

struct Sum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};

// NaN is passed over.
struct Maximum {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// What the values of a block come to, for all of its threads: a power of two of them, from 32 to 1,024.
// scratch: 32 elements of shared memory
template <class T, class Combine>
__device__ __forceinline__ T block_reduce(T value, T neutral, T *scratch, Combine combine) {
  for (int offset = 16; offset > 0; offset /= 2)
    value = combine(value, __shfl_xor_sync(0xFFFFFFFFu, value, offset));
  const int warps = (blockDim.x + 31) / 32;
  if (warps == 1) return value;
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  value = threadIdx.x % 32 < warps ? scratch[threadIdx.x % 32] : neutral;
  for (int offset = 16; offset > 0; offset /= 2)
    value = combine(value, __shfl_xor_sync(0xFFFFFFFFu, value, offset));
  return value;
}

template <class T>
__device__ __forceinline__ T block_sum(T value, T *scratch) {
  return block_reduce(value, T(0), scratch, Sum());
}

__device__ __forceinline__ float block_maximum(float value, float *scratch) {
  return block_reduce(value, -INFINITY, scratch, Maximum());
}

// The nearest code to a value in units of codes, ties to even.
__device__ __forceinline__ float nearest_code(float value, float maximum_code) {
  return rintf(fminf(fmaxf(value, 0.0f), maximum_code));
}
