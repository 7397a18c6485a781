#include "outlier_sweeps.h"
#include "dispatch.h"
#include "nearest_code.h"

QE_DISPATCH
void qe_nearest_plane_outliers_block(
    size_t rows, size_t columns, const float *restrict factor, size_t factor_stride,
    const int32_t *group_of, qe_grid grid, const float *restrict weights,
    const float *restrict is_outlier, float *restrict feedback, float *restrict errors,
    float *restrict codes, float *restrict remainders) {
#pragma clang fp contract(fast)
  for (size_t k = columns; k-- > 0;) {
    const float *scale = grid.scales + (size_t)group_of[k] * rows;
    const float *inverse_scale = grid.inverse_scales + (size_t)group_of[k] * rows;
    const float *zero_point = grid.zero_points + (size_t)group_of[k] * rows;
    const float *weight = weights + k * rows;
    float *error = errors + k * rows;
    for (size_t r = 0; r < rows; r++) {
      const float target = weight[r] + feedback[k * rows + r];
      const float code = nearest_code(target * inverse_scale[r] + zero_point[r], grid.maximum_code);
      const float value = scale[r] * (code - zero_point[r]);
      const float remainder = target - value;
      codes[k * rows + r] = code;
      remainders[k * rows + r] = remainder;
      error[r] = weight[r] - value - is_outlier[k * rows + r] * remainder;
    }
    for (size_t before = 0; before < k; before++) {
      const float coefficient = factor[before * factor_stride + k];
      float *restrict destination = feedback + before * rows;
      for (size_t r = 0; r < rows; r++) destination[r] += coefficient * error[r];
    }
  }
}

QE_DISPATCH
void qe_rounding_remainders(
    size_t columns, const float *restrict values, float scale, float zero_point, float maximum_code,
    float *restrict remainders) {
#pragma clang fp contract(fast)
  const float inverse_scale = 1.0f / scale;
  for (size_t j = 0; j < columns; j++) {
    const float code = nearest_code(values[j] * inverse_scale + zero_point, maximum_code);
    remainders[j] = values[j] - scale * (code - zero_point);
  }
}

QE_DISPATCH
void qe_weigh_squares(size_t count, const float *restrict weights, float *restrict x) {
  for (size_t j = 0; j < count; j++) x[j] = weights[j] * (x[j] * x[j]);
}

enum { scan_width = 64 };

QE_DISPATCH
size_t qe_indices_at_least(
    size_t count, const float *restrict values, float threshold, uint32_t *restrict indices) {
  size_t found = 0;
  for (size_t start = 0; start < count; start += scan_width) {
    const size_t end = start + scan_width < count ? start + scan_width : count;
    // Few values pass: look at all of a stretch at once first.
    uint32_t passes = 0;
    for (size_t i = start; i < end; i++) passes |= values[i] >= threshold;
    if (!passes) continue;
    for (size_t i = start; i < end; i++) {
      if (values[i] >= threshold) indices[found++] = (uint32_t)i;
    }
  }
  return found;
}
