// The calls of CUDA's driver, NVRTC and cuBLAS that this project makes, looked up at run time.
//
// The declarations are this project's own, from the libraries' documented interfaces: nothing of CUDA is needed to
// build, and programs depend on no CUDA library. Every call returns 0 for success.
#ifndef QUANTEASE_CUDA_LIBRARIES_H
#define QUANTEASE_CUDA_LIBRARIES_H

#include <stddef.h>
#include <stdint.h>

#pragma clang assume_nonnull begin

/// An address in a device's memory.
typedef unsigned long long qe_device_address;

typedef struct qe_cuda_context_object *qe_cuda_context;
typedef struct qe_cuda_stream_object *qe_cuda_stream;
typedef struct qe_cuda_module_object *qe_cuda_module;
typedef struct qe_cuda_kernel_object *qe_cuda_kernel;
typedef struct qe_cuda_pool_object *qe_cuda_pool;
typedef struct qe_nvrtc_program_object *qe_nvrtc_program;
typedef struct qe_cublas_handle_object *qe_cublas_handle;

/// What a device has (CUdevice_attribute).
enum {
  qe_attribute_multiprocessors = 16,
  qe_attribute_compute_capability_major = 75,
  qe_attribute_compute_capability_minor = 76,
  qe_attribute_memory_pools = 115,
};

/// What a memory pool keeps and has lent (CUmemPool_attribute).
enum {
  qe_pool_release_threshold = 4,
  qe_pool_used_now = 7,
  qe_pool_used_at_most = 8,
};

/// Results (CUresult) that are told apart.
enum {
  qe_cuda_out_of_memory = 2,
  qe_cuda_no_device = 100,
};

/// Element types (cudaDataType).
enum { qe_type_float32 = 0, qe_type_bfloat16 = 14 };

/// How products are computed (cublasComputeType_t): sums are fp32; operands in fp32 as they are, or rounded to TF32.
enum { qe_compute_float32 = 68, qe_compute_float32_pedantic = 69, qe_compute_tf32 = 77 };

/// cublasOperation_t, cublasFillMode_t, cublasSideMode_t, cublasDiagType_t
enum { qe_as_it_is = 0, qe_transposed = 1 };
enum { qe_lower = 0, qe_upper = 1 };
enum { qe_left = 0, qe_right = 1 };
enum { qe_non_unit = 0, qe_unit = 1 };

/// The functions, by the names that their libraries have for them.
typedef struct {
  // Driver
  int (*cuInit)(unsigned flags);
  int (*cuDriverGetVersion)(int *version);
  int (*cuGetErrorName)(int error, const char *_Nullable *_Nonnull text);
  int (*cuGetErrorString)(int error, const char *_Nullable *_Nonnull text);
  int (*cuDeviceGetCount)(int *count);
  int (*cuDeviceGet)(int *device, int ordinal);
  int (*cuDeviceGetName)(char *name, int length, int device);
  int (*cuDeviceGetAttribute)(int *value, int attribute, int device);
  int (*cuDeviceTotalMem_v2)(size_t *bytes, int device);
  int (*cuDevicePrimaryCtxRetain)(qe_cuda_context _Nullable *_Nonnull context, int device);
  int (*cuDevicePrimaryCtxRelease_v2)(int device);
  int (*cuCtxSetCurrent)(qe_cuda_context context);
  int (*cuMemGetInfo_v2)(size_t *free, size_t *total);
  int (*cuDeviceGetDefaultMemPool)(qe_cuda_pool _Nullable *_Nonnull pool, int device);
  int (*cuMemPoolSetAttribute)(qe_cuda_pool pool, int attribute, void *value);
  int (*cuMemPoolGetAttribute)(qe_cuda_pool pool, int attribute, void *value);
  int (*cuMemAllocAsync)(qe_device_address *address, size_t bytes, qe_cuda_stream stream);
  int (*cuMemFreeAsync)(qe_device_address address, qe_cuda_stream stream);
  int (*cuMemHostAlloc)(void *_Nullable *_Nonnull memory, size_t bytes, unsigned flags);
  int (*cuMemFreeHost)(void *memory);
  int (*cuMemcpyHtoDAsync_v2)(qe_device_address to, const void *from, size_t bytes, qe_cuda_stream stream);
  int (*cuMemcpyDtoHAsync_v2)(void *to, qe_device_address from, size_t bytes, qe_cuda_stream stream);
  int (*cuMemcpyDtoDAsync_v2)(qe_device_address to, qe_device_address from, size_t bytes, qe_cuda_stream stream);
  int (*cuMemsetD32Async)(qe_device_address to, unsigned value, size_t count, qe_cuda_stream stream);
  int (*cuStreamCreate)(qe_cuda_stream _Nullable *_Nonnull stream, unsigned flags);
  int (*cuStreamSynchronize)(qe_cuda_stream stream);
  int (*cuModuleLoadData)(qe_cuda_module _Nullable *_Nonnull module, const void *image);
  int (*cuModuleGetFunction)(qe_cuda_kernel _Nullable *_Nonnull kernel, qe_cuda_module module, const char *name);
  int (*cuLaunchKernel)(
      qe_cuda_kernel kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
      unsigned block_z, unsigned shared_bytes, qe_cuda_stream stream, void *_Nullable *_Nonnull parameters,
      void *_Nullable *_Nullable extra);

  // NVRTC
  int (*nvrtcVersion)(int *major, int *minor);
  const char *_Nonnull (*_Nonnull nvrtcGetErrorString)(int error);
  int (*nvrtcCreateProgram)(
      qe_nvrtc_program _Nullable *_Nonnull program, const char *source, const char *_Nullable name, int headers,
      const char *_Nullable const *_Nullable texts, const char *_Nullable const *_Nullable names);
  int (*nvrtcCompileProgram)(qe_nvrtc_program program, int count, const char *_Nullable const *_Nullable options);
  int (*nvrtcGetProgramLogSize)(qe_nvrtc_program program, size_t *size);
  int (*nvrtcGetProgramLog)(qe_nvrtc_program program, char *text);
  int (*nvrtcGetCUBINSize)(qe_nvrtc_program program, size_t *size);
  int (*nvrtcGetCUBIN)(qe_nvrtc_program program, char *image);
  int (*nvrtcDestroyProgram)(qe_nvrtc_program _Nullable *_Nonnull program);

  // cuBLAS
  int (*cublasCreate_v2)(qe_cublas_handle _Nullable *_Nonnull handle);
  int (*cublasGetVersion_v2)(qe_cublas_handle handle, int *version);
  int (*cublasSetStream_v2)(qe_cublas_handle handle, qe_cuda_stream stream);
  int (*cublasSetWorkspace_v2)(qe_cublas_handle handle, qe_device_address workspace, size_t bytes);
  const char *_Nonnull (*_Nonnull cublasGetStatusString)(int status);
  /// C ← α op(A) op(B) + β C, matrices by columns.
  int (*cublasGemmEx)(
      qe_cublas_handle handle, int a_operation, int b_operation, int m, int n, int k, const void *alpha,
      qe_device_address a, int a_type, int a_stride, qe_device_address b, int b_type, int b_stride, const void *beta,
      qe_device_address c, int c_type, int c_stride, int compute_type, int algorithm);
  /// The same for several, every operand so many elements further than the one before.
  int (*cublasGemmStridedBatchedEx)(
      qe_cublas_handle handle, int a_operation, int b_operation, int m, int n, int k, const void *alpha,
      qe_device_address a, int a_type, int a_stride, long long a_step, qe_device_address b, int b_type, int b_stride,
      long long b_step, const void *beta, qe_device_address c, int c_type, int c_stride, long long c_step, int count,
      int compute_type, int algorithm);
  /// B ← α op(A)⁻¹ B, or α B op(A)⁻¹, for a triangle A, by columns.
  int (*cublasStrsm_v2)(
      qe_cublas_handle handle, int side, int triangle, int operation, int diagonal, int m, int n, const float *alpha,
      qe_device_address a, int a_stride, qe_device_address b, int b_stride);
} qe_cuda_libraries;

/// What opening the libraries came to.
typedef enum {
  qe_cuda_opened,
  /// There is no libcuda.so.1: no NVIDIA driver.
  qe_cuda_no_driver,
  qe_cuda_no_nvrtc,
  qe_cuda_no_cublas,
  /// A library lacks a function: it is too old, or too new.
  qe_cuda_missing_function,
} qe_cuda_opening;

/// Opens the driver's library and fills in its functions.
/// - message: 512 bytes, which get the loader's words on what is missing
qe_cuda_opening qe_cuda_open_driver(qe_cuda_libraries *libraries, char *message);

/// Opens NVRTC in the first of some folders that has it. An empty folder stands for the loader's own search.
qe_cuda_opening qe_cuda_open_nvrtc(
    const char *_Nullable const *_Nonnull folders, size_t count, qe_cuda_libraries *libraries, char *message);

/// The same for cuBLAS.
/// - folder: gets the index of the folder that has it
qe_cuda_opening qe_cuda_open_cublas(
    const char *_Nullable const *_Nonnull folders, size_t count, qe_cuda_libraries *libraries, char *message,
    size_t *folder);

#pragma clang assume_nonnull end

#endif
