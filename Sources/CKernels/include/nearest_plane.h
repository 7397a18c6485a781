// Nearest-plane rounding of a chunk of rows, [columns][rows], as the other blocked sweeps.
#ifndef QUANTEASE_NEAREST_PLANE_H
#define QUANTEASE_NEAREST_PLANE_H

#include "grid_sweeps.h"

// Nearest plane inside a block of `columns` columns, last to first.
//   factor        [columns][factor_stride], the unit upper triangular factor of the block
//   group_of      [columns], the group of each column
//   weights       [columns][rows]
//   feedback      [columns][rows], what the columns after the block add; changed
//   errors        [columns][rows], W - Ŵ; written
//   codes         [columns][rows], written
void qe_nearest_plane_block(
    size_t rows, size_t columns, const float *factor, size_t factor_stride, const int32_t *group_of,
    qe_grid grid, const float *weights, float *feedback, float *errors, float *codes);

// The same with outliers, which keep what rounding leaves and so pass no error on.
//   is_outlier  [columns][rows], 1 or 0
//   remainders  [columns][rows], what rounding leaves of each column's moved target; written for all
void qe_nearest_plane_outliers_block(
    size_t rows, size_t columns, const float *factor, size_t factor_stride, const int32_t *group_of,
    qe_grid grid, const float *weights, const float *is_outlier, float *feedback, float *errors,
    float *codes, float *remainders);

#endif
