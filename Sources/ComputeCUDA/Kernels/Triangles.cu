// Two triangles of one square; see LinearAlgebra.

KERNEL(256, get_diagonal, (float *values, const float *matrix, i64 size)) {
  FOR_EACH(index, size) values[index] = matrix[index * size + index];
}

KERNEL(256, set_diagonal, (float *matrix, const float *values, i64 size)) {
  FOR_EACH(index, size) matrix[index * size + index] = values[index];
}

// What is below the diagonal to above it, by tiles of 32 × 32, a block of 32 × 8 threads a tile.
KERNEL(256, symmetrize, (float *matrix, i64 size)) {
  if (blockIdx.x > blockIdx.y) return;
  __shared__ float tile[32][33];
  const i64 first_row = (i64)blockIdx.y * 32, first_column = (i64)blockIdx.x * 32;
  for (int line = threadIdx.y; line < 32; line += blockDim.y) {
    const i64 row = first_row + line, column = first_column + threadIdx.x;
    if (row < size && column < size) tile[line][threadIdx.x] = matrix[row * size + column];
  }
  __syncthreads();
  for (int line = threadIdx.y; line < 32; line += blockDim.y) {
    const i64 row = first_column + line, column = first_row + threadIdx.x;
    if (row < size && column < size && column > row) matrix[row * size + column] = tile[threadIdx.x][line];
  }
}

// Some rows of the upper triangle of P A Pᵀ, for the A whose lower triangle the matrix holds.
KERNEL(256, fill_upper, (float *matrix, const int *order, i64 size, i64 first_row, i64 rows)) {
  FOR_EACH(index, rows * size) {
    const i64 row = first_row + index / size, column = index % size;
    if (column <= row) continue;
    const i64 one = order[row], other = order[column];
    matrix[row * size + column] = one > other ? matrix[one * size + other] : matrix[other * size + one];
  }
}

KERNEL(256, divide_upper_rows, (float *matrix, i64 size, i64 first_row, i64 rows)) {
  FOR_EACH(index, rows * size) {
    const i64 row = first_row + index / size, column = index % size;
    if (column > row) matrix[row * size + column] /= matrix[row * size + row];
  }
}

// A block of a matrix, its upper or lower triangle alone if asked for, to a matrix of its own and back.
// part: 0 all, 1 with the diagonal and above, 2 with the diagonal and below
KERNEL(256, copy_block,
       (float *to, i64 to_stride, const float *from, i64 from_stride, i64 rows, i64 columns, int part)) {
  FOR_EACH(index, rows * columns) {
    const i64 row = index / columns, column = index % columns;
    if ((part == 1 && column < row) || (part == 2 && column > row)) continue;
    to[row * to_stride + column] = from[row * from_stride + column];
  }
}

// y ← y + x where column ≤ row.
KERNEL(256, add_lower, (float *y, i64 stride, const float *x, i64 size)) {
  FOR_EACH(index, size * size) {
    const i64 row = index / size, column = index % size;
    if (column <= row) y[row * stride + column] += x[index];
  }
}

#define FACTOR_BLOCK 64

// The upper factor of a symmetric block of which the upper triangle is given, `[size, stride]`, in place, by one block of
// threads. `status` gets the index of the first pivot that is not positive, from `first` on, if none has failed before.
KERNEL(256, factorize_block, (float *block, i64 stride, int size, int *status, int first)) {
  __shared__ float a[FACTOR_BLOCK][FACTOR_BLOCK + 1];
  __shared__ int has_failed;
  if (threadIdx.x == 0) has_failed = *status >= 0;
  for (int index = threadIdx.x; index < size * size; index += blockDim.x) {
    const int row = index / size, column = index % size;
    if (column >= row) a[row][column] = block[row * stride + column];
  }
  __syncthreads();
  for (int pivot = 0; pivot < size; pivot++) {
    const float variance = a[pivot][pivot];
    __syncthreads();
    if (threadIdx.x == 0 && !has_failed && !(variance > 0.0f && variance <= 3.4e38f)) {
      *status = first + pivot;
      has_failed = 1;
    }
    const float root = sqrtf(variance);
    for (int column = pivot + threadIdx.x; column < size; column += blockDim.x)
      a[pivot][column] = column == pivot ? root : a[pivot][column] / root;
    __syncthreads();
    const int rest = size - pivot - 1;
    for (int index = threadIdx.x; index < rest * rest; index += blockDim.x) {
      const int row = pivot + 1 + index / rest, column = pivot + 1 + index % rest;
      if (column >= row) a[row][column] = fmaf(-a[pivot][row], a[pivot][column], a[row][column]);
    }
    __syncthreads();
  }
  for (int index = threadIdx.x; index < size * size; index += blockDim.x) {
    const int row = index / size, column = index % size;
    if (column >= row) block[row * stride + column] = a[row][column];
  }
}

// What is left of every column's variance once some rows of the factor are there.
KERNEL(256, subtract_squares, (float *remaining, const float *rows, i64 stride, i64 count, i64 columns)) {
  FOR_EACH(column, columns) {
    float sum = remaining[column];
    for (i64 row = 0; row < count; row++) {
      const float value = rows[row * stride + column];
      sum = fmaf(-value, value, sum);
    }
    remaining[column] = sum;
  }
}

// Exchanges pairs of columns in the first rows, one after the other in every row.
KERNEL(256, exchange_columns, (float *matrix, i64 stride, i64 rows, const int *pairs, int count)) {
  FOR_EACH(row, rows) {
    float *x = matrix + row * stride;
    for (int index = 0; index < count; index++) {
      const int one = pairs[2 * index], other = pairs[2 * index + 1];
      const float value = x[one];
      x[one] = x[other];
      x[other] = value;
    }
  }
}
