// Sweeps of the solvers over linears that keep outliers beside their codes.
#ifndef QUANTEASE_OUTLIER_SWEEPS_H
#define QUANTEASE_OUTLIER_SWEEPS_H

#include <stddef.h>
#include <stdint.h>

#include "grid_sweeps.h"

// remainders_j = w_j - ŵ_j of the nearest codes
//   zero_code  the code, whole or not, that stands for 0
void qe_rounding_remainders(
    size_t columns, const float *values, qe_line line, float zero_code, float maximum_code, float *remainders);

// x_j ← weights_j x_j²
void qe_weigh_squares(size_t count, const float *weights, float *x);

// Writes the indices of the values that are at least `threshold`, and returns how many there are.
//   indices  room for `count`
size_t qe_indices_at_least(size_t count, const float *values, float threshold, uint32_t *indices);

#endif
