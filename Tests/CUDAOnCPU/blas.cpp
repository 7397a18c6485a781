#include <cblas.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "device.h"

namespace cuda_on_cpu {
namespace {

constexpr int version = 130000;

/// cublasStatus_t
enum : int {
  status_not_initialized = 1,
  status_invalid_value = 7,
  status_execution_failed = 13,
  status_not_supported = 15,
};

char handle_object;

int status_of(const Call &call, const void *handle) {
  if (device.failure != success) return status_execution_failed;
  return call.error != success || handle != &handle_object ? +status_not_initialized : +success;
}

void use_one_thread() {
  static std::once_flag once;
  std::call_once(once, [] { openblas_set_num_threads(1); });
}

size_t size_of(int type) { return type == qe_type_bfloat16 ? 2 : 4; }

/// A matrix by columns, as stored.
struct Operand {
  qe_device_address address;
  int type, rows, columns, stride;
  long long step;

  bool is_valid() const { return stride >= std::max(1, rows); }

  /// The first element of the one that comes `number`-th, all of which must be allocated.
  const void *elements(int number, const char *user) const {
    const size_t count =
        (static_cast<size_t>(columns) - 1) * static_cast<size_t>(stride) + static_cast<size_t>(rows);
    // Steps backward wrap around and arrive where they should.
    const qe_device_address first = address + static_cast<qe_device_address>(number * step) * size_of(type);
    return memory::at(first, count * size_of(type), size_of(type), user);
  }
};

float float_of(uint16_t bits) {
  const uint32_t word = uint32_t{bits} << 16;
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}

/// To the ten bits that TF32 has after the point, ties to even.
float rounded_to_tf32(float value) {
  constexpr uint32_t dropped = 13;
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7F80'0000) == 0x7F80'0000) return value;
  bits += (1u << (dropped - 1)) - 1 + (bits >> dropped & 1);
  bits &= ~((1u << dropped) - 1);
  memcpy(&value, &bits, sizeof value);
  return value;
}

/// An operand's elements as the product takes them: in place, or converted and then without gaps.
struct Factor {
  std::vector<float> converted;
  const float *elements;
  int stride;

  Factor(const Operand &operand, const void *stored, int compute_type)
      : elements(static_cast<const float *>(stored)), stride(operand.stride) {
    const bool is_rounded = compute_type == qe_compute_tf32;
    if (operand.type == qe_type_float32 && !is_rounded) return;
    stride = operand.rows;
    converted.resize(static_cast<size_t>(operand.rows) * static_cast<size_t>(operand.columns));
    auto next = converted.begin();
    for (int column = 0; column < operand.columns; ++column) {
      const size_t first = static_cast<size_t>(column) * static_cast<size_t>(operand.stride);
      if (operand.type == qe_type_bfloat16) {
        const auto *from = static_cast<const uint16_t *>(stored) + first;
        next = std::transform(from, from + operand.rows, next, float_of);
      } else {
        const auto *from = static_cast<const float *>(stored) + first;
        next = std::transform(from, from + operand.rows, next, rounded_to_tf32);
      }
    }
    elements = converted.data();
  }
};

/// C ← α op(A) op(B) + β C, several times.
struct Products {
  int a_operation, b_operation, m, n, k;
  const void *alpha, *beta;
  Operand a, b, c;
  int count, compute_type;

  int run(const char *user) const {
    if (const int status = check(); status != success) return status;
    if (m == 0 || n == 0 || count == 0) return success;
    use_one_thread();
    for (int number = 0; number < count; ++number) multiply(number, user);
    return success;
  }

 private:
  int check() const {
    const auto is_operation = [](int operation) {
      return operation >= qe_as_it_is && operation <= qe_transposed;
    };
    if (!is_operation(a_operation) || !is_operation(b_operation) || m < 0 || n < 0 || k < 0 || count < 0)
      return status_invalid_value;
    if (alpha == nullptr || beta == nullptr || !a.is_valid() || !b.is_valid() || !c.is_valid())
      return status_invalid_value;
    const bool is_bfloat16 = a.type == qe_type_bfloat16;
    const bool is_single = compute_type == qe_compute_float32 || compute_type == qe_compute_float32_pedantic;
    if (a.type != b.type || c.type != qe_type_float32 || (!is_bfloat16 && a.type != qe_type_float32) ||
        (!is_single && (compute_type != qe_compute_tf32 || is_bfloat16)))
      return status_not_supported;
    return success;
  }

  void multiply(int number, const char *user) const {
    const auto added = *static_cast<const float *>(beta);
    auto *result = static_cast<float *>(const_cast<void *>(c.elements(number, user)));
    for (int column = 0; column < n; ++column) {
      float *first = result + static_cast<size_t>(column) * static_cast<size_t>(c.stride);
      // 0 makes even NaN 0.
      std::transform(
          first, first + m, first, [added](float value) { return added == 0 ? 0 : added * value; });
    }
    if (k == 0) return;
    const Factor left(a, a.elements(number, user), compute_type);
    const Factor right(b, b.elements(number, user), compute_type);
    cblas_sgemm(
        CblasColMajor, a_operation == qe_transposed ? CblasTrans : CblasNoTrans,
        b_operation == qe_transposed ? CblasTrans : CblasNoTrans, m, n, k, *static_cast<const float *>(alpha),
        left.elements, left.stride, right.elements, right.stride, 1, result, c.stride);
  }
};

int solve(
    int side, int triangle, int operation, int diagonal, int m, int n, const float *alpha, const Operand &a,
    const Operand &b) {
  const auto is_flag = [](int value) { return value == 0 || value == 1; };
  if (!is_flag(side) || !is_flag(triangle) || !is_flag(operation) || !is_flag(diagonal) || m < 0 || n < 0)
    return status_invalid_value;
  if (alpha == nullptr || !a.is_valid() || !b.is_valid()) return status_invalid_value;
  if (m == 0 || n == 0) return success;
  use_one_thread();
  cblas_strsm(
      CblasColMajor, side == qe_left ? CblasLeft : CblasRight, triangle == qe_lower ? CblasLower : CblasUpper,
      operation == qe_transposed ? CblasTrans : CblasNoTrans, diagonal == qe_unit ? CblasUnit : CblasNonUnit,
      m, n, *alpha, static_cast<const float *>(a.elements(0, "cublasStrsm")), a.stride,
      static_cast<float *>(const_cast<void *>(b.elements(0, "cublasStrsm"))), b.stride);
  return success;
}

/// The matrix whose op has so many rows and columns.
Operand operand(
    qe_device_address address, int type, int operation, int rows, int columns, int stride,
    long long step = 0) {
  if (operation != qe_as_it_is) std::swap(rows, columns);
  return {address, type, rows, columns, stride, step};
}

}  // namespace

void fill_blas(qe_cuda_libraries &libraries) {
  libraries.cublasCreate_v2 = [](qe_cublas_handle *handle) {
    const Call call(Call::context);
    *handle = reinterpret_cast<qe_cublas_handle>(&handle_object);
    return status_of(call, *handle);
  };
  libraries.cublasGetVersion_v2 = [](qe_cublas_handle handle, int *number) {
    const Call call(Call::context);
    *number = version;
    return status_of(call, handle);
  };
  libraries.cublasSetStream_v2 = [](qe_cublas_handle handle, qe_cuda_stream) {
    const Call call(Call::context);
    return status_of(call, handle);
  };
  libraries.cublasSetWorkspace_v2 = [](qe_cublas_handle handle, qe_device_address workspace, size_t bytes) {
    const Call call(Call::context);
    const int status = status_of(call, handle);
    if (status == success && bytes != 0) memory::at(workspace, bytes, 256, "cublasSetWorkspace");
    return status;
  };
  libraries.cublasGetStatusString = [](int status) {
    switch (status) {
      case success: return "success";
      case status_not_initialized: return "the library was not initialized";
      case status_invalid_value: return "an unsupported value or parameter was passed to the function";
      case status_execution_failed: return "the GPU program failed to execute";
      case status_not_supported: return "the functionality requested is not supported";
      default: return "unknown error";
    }
  };
  libraries.cublasGemmEx = [](qe_cublas_handle handle, int a_operation, int b_operation, int m, int n, int k,
                              const void *alpha, qe_device_address a, int a_type, int a_stride,
                              qe_device_address b, int b_type, int b_stride, const void *beta,
                              qe_device_address c, int c_type, int c_stride, int compute_type, int) {
    const Call call(Call::context);
    if (const int status = status_of(call, handle); status != success) return status;
    const Products products{
        a_operation,
        b_operation,
        m,
        n,
        k,
        alpha,
        beta,
        operand(a, a_type, a_operation, m, k, a_stride),
        operand(b, b_type, b_operation, k, n, b_stride),
        operand(c, c_type, qe_as_it_is, m, n, c_stride),
        1,
        compute_type};
    return products.run("cublasGemmEx");
  };
  libraries.cublasGemmStridedBatchedEx =
      [](qe_cublas_handle handle, int a_operation, int b_operation, int m, int n, int k, const void *alpha,
         qe_device_address a, int a_type, int a_stride, long long a_step, qe_device_address b, int b_type,
         int b_stride, long long b_step, const void *beta, qe_device_address c, int c_type, int c_stride,
         long long c_step, int count, int compute_type, int) {
        const Call call(Call::context);
        if (const int status = status_of(call, handle); status != success) return status;
        const Products products{
            a_operation,
            b_operation,
            m,
            n,
            k,
            alpha,
            beta,
            operand(a, a_type, a_operation, m, k, a_stride, a_step),
            operand(b, b_type, b_operation, k, n, b_stride, b_step),
            operand(c, c_type, qe_as_it_is, m, n, c_stride, c_step),
            count,
            compute_type};
        return products.run("cublasGemmStridedBatchedEx");
      };
  libraries.cublasStrsm_v2 = [](qe_cublas_handle handle, int side, int triangle, int operation, int diagonal,
                                int m, int n, const float *alpha, qe_device_address a, int a_stride,
                                qe_device_address b, int b_stride) {
    const Call call(Call::context);
    if (const int status = status_of(call, handle); status != success) return status;
    const int size = side == qe_left ? m : n;
    return solve(
        side, triangle, operation, diagonal, m, n, alpha,
        operand(a, qe_type_float32, qe_as_it_is, size, size, a_stride),
        operand(b, qe_type_float32, qe_as_it_is, m, n, b_stride));
  };
}

}  // namespace cuda_on_cpu
