#include "nearest_plane.h"

#include "dispatch.h"
#include "nearest_code.h"

// Both forms; the compiler knows in each whether there are outliers.
INLINED void nearest_plane_block(
    size_t rows, size_t columns, const float *restrict factor, size_t factor_stride,
    const int32_t *group_of, qe_grid grid, const float *restrict weights, int has_outliers,
    const float *restrict is_outlier, float *restrict feedback, float *restrict errors,
    float *restrict codes, float *restrict remainders) {
#pragma clang fp contract(fast)
  for (size_t k = columns; k-- > 0;) {
    const float *scale = grid.scales + (size_t)group_of[k] * rows;
    const float *inverse_scale = grid.inverse_scales + (size_t)group_of[k] * rows;
    const float *offset = grid.offsets + (size_t)group_of[k] * rows;
    const float *zero_code = grid.zero_codes + (size_t)group_of[k] * rows;
    const float *zero_point = grid.zero_points + (size_t)group_of[k] * rows;
    const float *weight = weights + k * rows;
    float *error = errors + k * rows;
    for (size_t r = 0; r < rows; r++) {
      const float target = weight[r] + feedback[k * rows + r];
      const float code = nearest_code(target * inverse_scale[r] + zero_code[r], grid.maximum_code);
      const float value = scale[r] * (code - zero_point[r]) + offset[r];
      codes[k * rows + r] = code;
      error[r] = weight[r] - value;
      if (has_outliers) {
        const float remainder = target - value;
        remainders[k * rows + r] = remainder;
        error[r] -= is_outlier[k * rows + r] * remainder;
      }
    }
    for (size_t before = 0; before < k; before++) {
      const float coefficient = factor[before * factor_stride + k];
      float *restrict destination = feedback + before * rows;
      for (size_t r = 0; r < rows; r++) destination[r] += coefficient * error[r];
    }
  }
}

QE_DISPATCH
void qe_nearest_plane_block(
    size_t rows, size_t columns, const float *factor, size_t factor_stride, const int32_t *group_of,
    qe_grid grid, const float *weights, float *feedback, float *errors, float *codes) {
  nearest_plane_block(
      rows, columns, factor, factor_stride, group_of, grid, weights, 0, NULL, feedback, errors, codes, NULL);
}

QE_DISPATCH
void qe_nearest_plane_outliers_block(
    size_t rows, size_t columns, const float *factor, size_t factor_stride, const int32_t *group_of,
    qe_grid grid, const float *weights, const float *is_outlier, float *feedback, float *errors,
    float *codes, float *remainders) {
  nearest_plane_block(
      rows, columns, factor, factor_stride, group_of, grid, weights, 1, is_outlier, feedback, errors, codes,
      remainders);
}
