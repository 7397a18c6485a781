#include "outlier_sweeps.h"
#include "dispatch.h"
#include "nearest_code.h"

QE_DISPATCH
void qe_rounding_remainders(
    size_t columns, const float *restrict values, qe_line line, float zero_code, float maximum_code,
    float *restrict remainders) {
#pragma clang fp contract(fast)
  const float inverse_scale = 1.0f / line.scale;
  for (size_t j = 0; j < columns; j++) {
    const float code = nearest_code(values[j] * inverse_scale + zero_code, maximum_code);
    remainders[j] = values[j] - (line.scale * (code - line.zero_point) + line.offset);
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
