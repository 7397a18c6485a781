// One block a row.

// y = w ⊙ (x − c) / sqrt(mean((x − c)²) + ε) + b, c the mean or 0; `groups` rows have weights of their own in turn.
KERNEL(ROW_THREADS, normalize,
       (float *y, const float *x, const float *weight, const float *bias, float epsilon, int is_centered, i64 groups,
        i64 columns)) {
  __shared__ float scratch[32];
  const i64 row = blockIdx.x, first = row % groups * columns;
  x += row * columns;
  y += row * columns;
  float center = 0.0f;
  if (is_centered) {
    float sum = 0.0f;
    for (i64 column = threadIdx.x; column < columns; column += blockDim.x) sum += x[column];
    center = block_sum(sum, scratch) / (float)columns;
  }
  float squares = 0.0f;
  for (i64 column = threadIdx.x; column < columns; column += blockDim.x) {
    const float difference = x[column] - center;
    squares = fmaf(difference, difference, squares);
  }
  const float factor = 1.0f / sqrtf(block_sum(squares, scratch) / (float)columns + epsilon);
  for (i64 column = threadIdx.x; column < columns; column += blockDim.x) {
    const float scaled = (x[column] - center) * factor * weight[first + column];
    y[column] = bias ? scaled + bias[first + column] : scaled;
  }
}

// −log softmax(x)[target]
KERNEL(ROW_THREADS, negative_log_likelihood, (float *result, const float *x, const int *targets, i64 columns)) {
  __shared__ float scratch[32];
  const i64 row = blockIdx.x;
  x += row * columns;
  float largest = -INFINITY;
  for (i64 column = threadIdx.x; column < columns; column += blockDim.x) largest = fmaxf(largest, x[column]);
  largest = block_maximum(largest, scratch);
  float sum = 0.0f;
  for (i64 column = threadIdx.x; column < columns; column += blockDim.x) sum += expf(x[column] - largest);
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) result[row] = largest + logf(sum) - x[targets[row]];
}

struct row_summary {
  float log_sum;
  /// The first column with the largest value, exact as a float.
  float choice;
};

__device__ __forceinline__ row_summary summarize_row(const float *x, i64 columns, float *scratch) {
  float largest = -INFINITY;
  for (i64 column = threadIdx.x; column < columns; column += blockDim.x) largest = fmaxf(largest, x[column]);
  largest = block_maximum(largest, scratch);
  float sum = 0.0f, last = -INFINITY;
  for (i64 column = threadIdx.x; column < columns; column += blockDim.x) {
    sum += expf(x[column] - largest);
    if (x[column] == largest) last = fmaxf(last, -(float)column);
  }
  row_summary summary;
  summary.log_sum = largest + logf(block_sum(sum, scratch));
  summary.choice = -block_maximum(last, scratch);
  return summary;
}

// Σ p log(p/q), p = softmax(reference), q = softmax(x), and whether both have their largest value in the same place. With
// d = log(p/q) it is Σ p (exp(−d) − 1 + d), of which nothing cancels.
KERNEL(ROW_THREADS, divergence, (float *result, const float *x, const float *reference, i64 columns)) {
  __shared__ float scratch[32];
  const i64 row = blockIdx.x;
  x += row * columns;
  reference += row * columns;
  const row_summary own = summarize_row(x, columns, scratch), other = summarize_row(reference, columns, scratch);
  float sum = 0.0f;
  for (i64 column = threadIdx.x; column < columns; column += blockDim.x) {
    const float p = reference[column] - other.log_sum, q = x[column] - own.log_sum, d = p - q, weight = expf(p);
    const float series =
        d * d * (0.5f + d * (-1.0f / 6 + d * (1.0f / 24 + d * (-1.0f / 120 + d * (1.0f / 720)))));
    // Far from zero exp(−d) would have no end.
    sum += fabsf(d) < 0.25f ? weight * series : expf(q) - weight + weight * d;
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) {
    result[2 * row] = sum;
    result[2 * row + 1] = own.choice == other.choice ? 1.0f : 0.0f;
  }
}

// Σ_j a_j b_j
KERNEL(ROW_THREADS, row_dots, (double *result, const float *a, const float *b, i64 columns)) {
  __shared__ double scratch[32];
  const i64 row = blockIdx.x;
  double sum = 0.0;
  for (i64 column = threadIdx.x; column < columns; column += blockDim.x)
    sum += (double)a[row * columns + column] * (double)b[row * columns + column];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) result[row] = sum;
}

// The sum of every column, added to what is there; a thread a column.
KERNEL(256, add_column_sums, (double *sums, const float *x, i64 rows, i64 columns)) {
  FOR_EACH(column, columns) {
    double sum = sums[column];
    for (i64 row = 0; row < rows; row++) sum += (double)x[row * columns + column];
    sums[column] = sum;
  }
}
