#include "cuda_libraries.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

enum { message_size = 512, path_size = 1024, latest = 13, earliest = 12 };

static void *open_library(const char *folder, const char *name, char *message) {
  char path[path_size + 64];
  if (*folder) {
    snprintf(path, sizeof path, "%s/%s", folder, name);
  } else {
    snprintf(path, sizeof path, "%s", name);
  }
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) snprintf(message, message_size, "%s", dlerror());
  return library;
}

// The newest version that a folder has.
static void *open_versioned(const char *folder, const char *stem, char *message) {
  for (int version = latest; version >= earliest; version--) {
    char name[64];
    snprintf(name, sizeof name, "%s.so.%d", stem, version);
    void *library = open_library(folder, name, message);
    if (library) return library;
  }
  return NULL;
}

static void *find(void *library, const char *name, char *message, int *missing) {
  void *function = dlsym(library, name);
  if (!function && !*missing) {
    *missing = 1;
    snprintf(message, message_size, "%s", dlerror());
  }
  return function;
}

// NVRTC opens its built-in headers by their bare name, which the loader's search does not find in a folder of its own: a
// library that is open already is found.
static void open_builtins(const char *folder) {
  if (!*folder) return;
  char ignored[message_size];
  for (int version = latest; version >= earliest; version--) {
    for (int minor = 9; minor >= 0; minor--) {
      char name[64];
      snprintf(name, sizeof name, "libnvrtc-builtins.so.%d.%d", version, minor);
      if (open_library(folder, name, ignored)) return;
    }
  }
}

#define FIND(library, name)                                                            \
  do {                                                                                 \
    void *function = find(library, #name, message, &missing);                          \
    memcpy(&libraries->name, &function, sizeof function);                              \
  } while (0)

static void find_driver(void *driver, qe_cuda_libraries *libraries, char *message, int *result) {
  int missing = 0;
  FIND(driver, cuInit);
  FIND(driver, cuDriverGetVersion);
  FIND(driver, cuGetErrorName);
  FIND(driver, cuGetErrorString);
  FIND(driver, cuDeviceGetCount);
  FIND(driver, cuDeviceGet);
  FIND(driver, cuDeviceGetName);
  FIND(driver, cuDeviceGetAttribute);
  FIND(driver, cuDeviceTotalMem_v2);
  FIND(driver, cuDevicePrimaryCtxRetain);
  FIND(driver, cuDevicePrimaryCtxRelease_v2);
  FIND(driver, cuCtxSetCurrent);
  FIND(driver, cuMemGetInfo_v2);
  FIND(driver, cuDeviceGetDefaultMemPool);
  FIND(driver, cuMemPoolSetAttribute);
  FIND(driver, cuMemPoolGetAttribute);
  FIND(driver, cuMemAllocAsync);
  FIND(driver, cuMemFreeAsync);
  FIND(driver, cuMemHostAlloc);
  FIND(driver, cuMemFreeHost);
  FIND(driver, cuMemcpyHtoDAsync_v2);
  FIND(driver, cuMemcpyDtoHAsync_v2);
  FIND(driver, cuMemcpyDtoDAsync_v2);
  FIND(driver, cuMemsetD32Async);
  FIND(driver, cuStreamCreate);
  FIND(driver, cuStreamSynchronize);
  FIND(driver, cuModuleLoadData);
  FIND(driver, cuModuleGetFunction);
  FIND(driver, cuLaunchKernel);
  *result = missing;
}

static void find_nvrtc(void *nvrtc, qe_cuda_libraries *libraries, char *message, int *result) {
  int missing = 0;
  FIND(nvrtc, nvrtcVersion);
  FIND(nvrtc, nvrtcGetErrorString);
  FIND(nvrtc, nvrtcCreateProgram);
  FIND(nvrtc, nvrtcCompileProgram);
  FIND(nvrtc, nvrtcGetProgramLogSize);
  FIND(nvrtc, nvrtcGetProgramLog);
  FIND(nvrtc, nvrtcGetCUBINSize);
  FIND(nvrtc, nvrtcGetCUBIN);
  FIND(nvrtc, nvrtcDestroyProgram);
  *result = missing;
}

static void find_cublas(void *cublas, qe_cuda_libraries *libraries, char *message, int *result) {
  int missing = 0;
  FIND(cublas, cublasCreate_v2);
  FIND(cublas, cublasGetVersion_v2);
  FIND(cublas, cublasSetStream_v2);
  FIND(cublas, cublasSetWorkspace_v2);
  FIND(cublas, cublasGetStatusString);
  FIND(cublas, cublasGemmEx);
  FIND(cublas, cublasGemmStridedBatchedEx);
  FIND(cublas, cublasStrsm_v2);
  *result = missing;
}

qe_cuda_opening qe_cuda_open_driver(qe_cuda_libraries *libraries, char *message) {
  void *driver = open_library("", "libcuda.so.1", message);
  if (!driver) return qe_cuda_no_driver;
  int missing = 0;
  find_driver(driver, libraries, message, &missing);
  return missing ? qe_cuda_missing_function : qe_cuda_opened;
}

qe_cuda_opening qe_cuda_open_nvrtc(
    const char *const *folders, size_t count, qe_cuda_libraries *libraries, char *message) {
  int missing = 0;
  for (size_t index = 0; index < count; index++) {
    void *nvrtc = open_versioned(folders[index], "libnvrtc", message);
    if (!nvrtc) continue;
    open_builtins(folders[index]);
    find_nvrtc(nvrtc, libraries, message, &missing);
    return missing ? qe_cuda_missing_function : qe_cuda_opened;
  }
  return qe_cuda_no_nvrtc;
}

qe_cuda_opening qe_cuda_open_cublas(
    const char *const *folders, size_t count, qe_cuda_libraries *libraries, char *message, size_t *folder) {
  int missing = 0;
  for (size_t index = 0; index < count; index++) {
    // cuBLAS needs its other half, which lies beside it.
    open_versioned(folders[index], "libcublasLt", message);
    void *cublas = open_versioned(folders[index], "libcublas", message);
    if (!cublas) continue;
    *folder = index;
    find_cublas(cublas, libraries, message, &missing);
    return missing ? qe_cuda_missing_function : qe_cuda_opened;
  }
  return qe_cuda_no_cublas;
}
