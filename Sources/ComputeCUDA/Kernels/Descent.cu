// Sweeps over blocks of columns. A block of threads is a warp that has 32 rows, a thread a row; what the block's moves do to
// the columns outside of it is a matrix product, which the caller makes of the changes.

#define SWEEP_ROWS 32
#define SWEEP_COLUMNS 128
#define SWEEP_WINDOW 32

// A row a line; one element more, so that a column's are in different banks.
typedef float Tile[SWEEP_ROWS][SWEEP_COLUMNS + 1];

// Copies the first columns of some rows, as many as there are, together: neighbouring threads take neighbouring elements.
__device__ __forceinline__ void load_tile(Tile &tile, const float *x, i64 stride, int width, i64 rows) {
  for (int line = 0; line < SWEEP_ROWS && line < rows; line++)
    for (int column = threadIdx.x; column < width; column += SWEEP_ROWS) tile[line][column] = x[line * stride + column];
}

__device__ __forceinline__ void store_tile(const Tile &tile, float *x, i64 stride, int width, i64 rows) {
  for (int line = 0; line < SWEEP_ROWS && line < rows; line++)
    for (int column = threadIdx.x; column < width; column += SWEEP_ROWS) x[line * stride + column] = tile[line][column];
}

// One coordinate descent step for every column of a block, first to last.
//
// values: what moves, `[rows, stride]` from the block's first column on: codes where `are_codes`, else Ŵ
// is_quantizing: 0 leaves Ŵ off the grid
// held: entries that stay, a byte each, as `values`; or null
// gradient: (W − Ŵ) Σ, as `values`; not changed, as the product with the changes covers the block's own columns
// changes: of Ŵ, `[rows, changes_stride]`, written
KERNEL(SWEEP_ROWS, descend_block,
       (float *values, const unsigned char *held, const float *gradient, i64 stride, const float *gram, i64 gram_stride,
        const float *inverse_diagonal, const float *scales, const float *shifts, int has_offsets, i64 groups, int first_column,
        int per_group, float maximum_code, int are_codes, int is_quantizing, float *changes, i64 changes_stride,
        int width, i64 rows, unsigned long long *moved)) {
  __shared__ Tile residuals;
  __shared__ float coefficients[SWEEP_WINDOW][SWEEP_COLUMNS];
  const int lane = threadIdx.x;
  const i64 first_row = (i64)blockIdx.x * SWEEP_ROWS, row = first_row + lane;
  const bool is_live = row < rows;
  load_tile(residuals, gradient + first_row * stride, stride, width, rows - first_row);
  unsigned mine = 0;
  for (int start = 0; start < width; start += SWEEP_WINDOW) {
    const int window = width - start < SWEEP_WINDOW ? width - start : SWEEP_WINDOW;
    __syncthreads();
    for (int line = 0; line < SWEEP_WINDOW; line++)
      for (int column = lane; column < width; column += SWEEP_ROWS)
        coefficients[line][column] = line < window ? gram[(start + line) * gram_stride + column] : 0.0f;
    __syncthreads();
    float change[SWEEP_WINDOW], residual[SWEEP_WINDOW];
#pragma unroll
    for (int j = 0; j < SWEEP_WINDOW; j++)
      residual[j] = is_live && j < window ? residuals[lane][start + j] : 0.0f;
#pragma unroll
    for (int j = 0; j < SWEEP_WINDOW; j++) {
      change[j] = 0.0f;
      if (is_live && j < window) {
        const i64 index = row * stride + start + j;
        if (!held || !held[index]) {
          const i64 place = row * groups + (first_column + start + j) / per_group;
          const float scale = scales[place], shift = shifts[place];
          const float old = values[index], step = residual[j] * inverse_diagonal[start + j];
          float best;
          if (are_codes) {
            best = nearest_code(old + step / scale, maximum_code);
            change[j] = (best - old) * scale;
          } else {
            best = old + step;
            if (is_quantizing) 
              best = grid_value(grid_code(best, scale, shift, has_offsets, maximum_code), scale, shift, has_offsets);
            change[j] = best - old;
          }
          if (best != old) {
            values[index] = best;
            mine++;
          }
        }
      }
#pragma unroll
      for (int k = j + 1; k < SWEEP_WINDOW; k++) residual[k] = fmaf(-coefficients[j][start + k], change[j], residual[k]);
    }
    for (int column = start + SWEEP_WINDOW; column < width; column++) {
      float sum = residuals[lane][column];
#pragma unroll
      for (int j = 0; j < SWEEP_WINDOW; j++) sum = fmaf(-coefficients[j][column], change[j], sum);
      residuals[lane][column] = sum;
    }
    // The block's columns of `residuals` have been used up, and take the changes.
#pragma unroll
    for (int j = 0; j < SWEEP_WINDOW; j++)
      if (j < window) residuals[lane][start + j] = change[j];
  }
  __syncthreads();
  store_tile(residuals, changes + first_row * changes_stride, changes_stride, width, rows - first_row);
  for (int offset = 16; offset > 0; offset /= 2) mine += __shfl_xor_sync(0xFFFFFFFFu, mine, offset);
  if (lane == 0 && mine) atomicAdd(moved, (unsigned long long)mine);
}

// Nearest plane inside a block, last column to first, in the factor's order.
//
// weights, codes, remainders: `[rows, columns]` as stored; `order` has the column of every position
// factor: the block's part of R with unit diagonal
// feedback: what later positions add, `[rows, feedback_stride]` from the block's first position on
// errors: `[rows, errors_stride]`, as feedback; written
// held: a byte an entry as stored, 1 for outliers, which pass on no error of their own; or null, as `remainders`
KERNEL(SWEEP_ROWS, nearest_plane_block,
       (const float *weights, float *codes, float *remainders, const unsigned char *held, i64 columns, const int *order,
        const float *factor, i64 factor_stride, const float *scales, const float *shifts, int has_offsets,
        i64 groups, int per_group, float maximum_code, const float *feedback, i64 feedback_stride, float *errors, i64 errors_stride,
        int width, i64 rows)) {
  __shared__ Tile tile;
  __shared__ float coefficients[SWEEP_WINDOW][SWEEP_COLUMNS];
  const int lane = threadIdx.x;
  const i64 first_row = (i64)blockIdx.x * SWEEP_ROWS, row = first_row + lane;
  const bool is_live = row < rows;
  load_tile(tile, feedback + first_row * feedback_stride, feedback_stride, width, rows - first_row);
  const int windows = (width + SWEEP_WINDOW - 1) / SWEEP_WINDOW;
  for (int start = (windows - 1) * SWEEP_WINDOW; start >= 0; start -= SWEEP_WINDOW) {
    const int window = width - start < SWEEP_WINDOW ? width - start : SWEEP_WINDOW;
    __syncthreads();
    // Column start + line of the factor, whose elements say what that position's error asks of earlier ones.
    for (int column = 0; column < start + window; column++)
      if (lane < window) coefficients[lane][column] = factor[column * factor_stride + start + lane];
    __syncthreads();
    float error[SWEEP_WINDOW], added[SWEEP_WINDOW];
#pragma unroll
    for (int j = 0; j < SWEEP_WINDOW; j++) added[j] = is_live && j < window ? tile[lane][start + j] : 0.0f;
#pragma unroll
    for (int j = SWEEP_WINDOW - 1; j >= 0; j--) {
      error[j] = 0.0f;
      if (is_live && j < window) {
        const int column = order[start + j];
        const i64 index = row * columns + column;
        const i64 place = row * groups + column / per_group;
        const float scale = scales[place], shift = shifts[place];
        const float target = weights[index] + added[j];
        const float code = grid_code(target, scale, shift, has_offsets, maximum_code);
        const float remainder = target - grid_value(code, scale, shift, has_offsets);
        codes[index] = code;
        if (remainders) remainders[index] = remainder;
        error[j] = held && held[index] ? -added[j] : remainder - added[j];
      }
#pragma unroll
      for (int k = 0; k < j; k++)
        if (j < window) added[k] = fmaf(coefficients[j][start + k], error[j], added[k]);
    }
    for (int column = 0; column < start; column++) {
      float sum = tile[lane][column];
#pragma unroll
      for (int j = 0; j < SWEEP_WINDOW; j++)
        if (j < window) sum = fmaf(coefficients[j][column], error[j], sum);
      tile[lane][column] = sum;
    }
#pragma unroll
    for (int j = 0; j < SWEEP_WINDOW; j++)
      if (j < window) tile[lane][start + j] = error[j];
  }
  __syncthreads();
  store_tile(tile, errors + first_row * errors_stride, errors_stride, width, rows - first_row);
}
