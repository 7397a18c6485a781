// Sweeps of the solvers over the columns of a linear.
//
// Two layouts: the blocked sweeps keep a chunk of rows transposed, [columns][rows], so that one instruction
// moves many rows and what lies outside the block is a matrix product; the sparse sweep works on one row,
// [columns], so that a coordinate that moves costs one contiguous update and one that stays almost nothing.
#ifndef QUANTEASE_GRID_SWEEPS_H
#define QUANTEASE_GRID_SWEEPS_H

#include <stddef.h>
#include <stdint.h>

// What codes stand for: s (q - z) + o, where z or o is 0.
typedef struct {
  float scale, zero_point, offset;
} qe_line;

// The grids of a chunk of rows: such lines at [group][row], the group of a column by `group_of`.
typedef struct {
  const float *scales;
  const float *inverse_scales;
  const float *zero_points;
  const float *offsets;
  const float *zero_codes;  // the codes, whole or not, that stand for 0
  float maximum_code;
} qe_grid;

// One coordinate descent step for every column of a block, first to last; returns how many values moved.
//   gram              [columns][gram_stride], the block's diagonal part of the Gram matrix
//   inverse_diagonal  [columns], 1 / Σ_jj, 0 for a dead column
//   gradient          [columns][rows], (W - Ŵ) Σ of the block; changed
//   approximation     [columns][rows], Ŵ; changed
//   errors            [columns][rows], W - Ŵ; changed
//   is_quantizing     0 leaves values off the grid
size_t qe_descend_block(
    size_t rows, size_t columns, const float *gram, size_t gram_stride, const float *inverse_diagonal,
    const int32_t *group_of, qe_grid grid, int is_quantizing, float *gradient, float *approximation,
    float *errors);

// One coordinate descent pass over a row that already lies on its grid; returns how many codes moved.
//   gram      [columns][columns]
//   steps     [columns], 1 / (Σ_jj s_j), 0 for a dead column
//   scales    [columns]
//   codes     [columns], changed
//   gradient  [columns], (w - ŵ) Σ, kept up to date
size_t qe_descend_row(
    size_t columns, const float *gram, const float *steps, const float *scales, float maximum_code,
    float *codes, float *gradient);

// Σ weights_j (w_j - s (q_j - z))² over `columns` columns, q_j the nearest code: what rounding to this grid costs
// when every column's error counts with its own weight. A sum that reaches `limit` may be left unfinished.
float qe_weighted_rounding_error(
    size_t columns, const float *values, const float *weights, float scale, float zero_point,
    float maximum_code, float limit);

// What pair moves know of the columns' neighbours.
typedef struct {
  size_t count;            // neighbours of a column
  const int32_t *columns;  // [columns][count], as a rule those most correlated
  const float *gram;       // [columns][count], their entries in the column's row of the Gram matrix, in falling magnitude
  const float *diagonal;   // [columns][count], their diagonal entries
} qe_neighbours;

// One pass of pair moves over a row: a column steps to its second nearest code where a neighbour's step makes up
// for more than that costs; returns how many pairs moved.
//   gram           [columns][columns]
//   scales         [columns]
//   largest_scale  the largest of them
//   codes          [columns], changed
//   gradient       [columns], (w - ŵ) Σ, kept up to date
size_t qe_descend_pairs_row(
    size_t columns, qe_neighbours neighbours, const float *gram, const float *scales,
    float largest_scale, float maximum_code, float *codes, float *gradient);

// The index of the first of the smallest values; `count` where there is none but NaN.
size_t qe_index_of_smallest(size_t count, const float *values);

// One step of a Cholesky factorisation with pivoting: the row of R behind its pivot.
//   columns    those behind the pivot
//   before     rows of R whose products the matrix to be factorised still holds
//   factor     the first of them at the pivot's column, the others each `stride` on
//   row        [columns], that part of the pivot's row of the matrix; becomes the row of R
//   remaining  [columns], the variance left of every column; the row's squares are taken off
void qe_cholesky_row(
    size_t columns, size_t before, size_t stride, const float *factor, float pivot, float *row, float *remaining);

// x ← x / divisor
void qe_divide(size_t count, float divisor, float *x);

// The nearest code of every weight.
void qe_round(
    size_t columns, const float *weights, float scale, float zero_point, float maximum_code,
    float *codes);

// ŵ_j, what the codes stand for; both may be the same memory.
void qe_dequantize(size_t columns, const float *codes, qe_line line, float *weights);

// Σ_j (w_j - ŵ_j) g_j
double qe_row_objective(
    size_t columns, const float *weights, const float *codes, qe_line line, const float *gradient);

// Σ a_i
double qe_sum(size_t count, const float *a);

// Σ a_i b_i
double qe_dot(size_t count, const float *a, const float *b);

// y ← y + α x
void qe_axpy(size_t count, float alpha, const float *x, float *y);

// Row k of the destination is row order[k] of the source.
void qe_reorder_rows(
    size_t rows, size_t columns, const float *source, const int32_t *order, float *destination);

// [rows][columns] → [columns][rows]
void qe_transpose(
    size_t rows, size_t columns, const float *source, size_t source_stride, float *destination,
    size_t destination_stride);

#endif
