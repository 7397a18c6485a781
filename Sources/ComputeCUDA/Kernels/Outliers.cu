// Outliers: few entries of a row beside its codes. `places` has every entry's place, counted row after row; row r has the
// entries from `offsets[r]` to before `offsets[r + 1]`.

// The nearest finite float16 value.
__device__ __forceinline__ float storable_outlier(float value) {
  return from_float16(to_float16(fminf(fmaxf(value, -65504.0f), 65504.0f)));
}

// Outliers move one after the other to the nearest float16 value of their minimum; one block a row.
KERNEL(ROW_THREADS, descend_outliers,
       (float *values, const i64 *places, const i64 *offsets, float *gradient, const float *gram,
        const float *inverse_diagonal, i64 columns)) {
  const i64 row = blockIdx.x;
  float *residual = gradient + row * columns;
  for (i64 entry = offsets[row]; entry < offsets[row + 1]; entry++) {
    const i64 column = places[entry] - row * columns;
    const float old = values[entry], slope = residual[column];
    const float best = storable_outlier(old + slope * inverse_diagonal[column]), change = best - old;
    // All threads read what one of them changes below.
    __syncthreads();
    if (!(change * (2.0f * slope - change * gram[column * columns + column]) > 0.0f)) continue;
    if (threadIdx.x == 0) values[entry] = best;
    for (i64 index = threadIdx.x; index < columns; index += blockDim.x)
      residual[index] = fmaf(-change, gram[column * columns + index], residual[index]);
    __syncthreads();
  }
}

KERNEL(256, mark_places, (unsigned char *marks, const i64 *places, i64 count)) {
  FOR_EACH(index, count) marks[places[index]] = 1;
}

KERNEL(256, add_sparse, (float *y, const float *values, const i64 *places, float factor, i64 count)) {
  FOR_EACH(index, count) y[places[index]] += factor * values[index];
}

KERNEL(256, gather_sparse, (float *values, const float *y, const i64 *places, i64 count)) {
  FOR_EACH(index, count) values[index] = y[places[index]];
}

KERNEL(256, clear_sparse, (float *y, const i64 *places, i64 count)) {
  FOR_EACH(index, count) y[places[index]] = 0.0f;
}

KERNEL(256, round_outliers, (float *values, i64 count)) {
  FOR_EACH(index, count) values[index] = storable_outlier(values[index]);
}

// Adds α A B to C at the places of C, B symmetric; one block an entry.
KERNEL(ROW_THREADS, multiply_sampled,
       (float *values, const i64 *places, const float *a, const float *b, float alpha, i64 columns)) {
  __shared__ float scratch[32];
  const i64 row = places[blockIdx.x] / columns, column = places[blockIdx.x] % columns;
  float sum = 0.0f;
  for (i64 index = threadIdx.x; index < columns; index += blockDim.x)
    sum = fmaf(a[row * columns + index], b[column * columns + index], sum);
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) values[blockIdx.x] += alpha * sum;
}

KERNEL(256, weigh_squares, (float *x, const float *weights, i64 columns, i64 count)) {
  FOR_EACH(index, count) x[index] *= weights[index % columns] * x[index];
}

// How many elements of every row are at least the threshold, and then those, one warp a row.
KERNEL(32, count_at_least, (int *counts, const float *x, float threshold, i64 columns)) {
  const i64 row = blockIdx.x;
  int sum = 0;
  for (i64 column = threadIdx.x; column < columns; column += 32) sum += x[row * columns + column] >= threshold;
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, offset);
  if (threadIdx.x == 0) counts[row] = sum;
}

KERNEL(32, collect_at_least,
       (int *found, float *values, const i64 *offsets, const float *x, float threshold, i64 columns)) {
  const i64 row = blockIdx.x;
  i64 next = offsets[row];
  for (i64 first = 0; first < columns; first += 32) {
    const i64 column = first + threadIdx.x;
    const bool is_found = column < columns && x[row * columns + column] >= threshold;
    const unsigned all = __ballot_sync(0xFFFFFFFFu, is_found);
    if (is_found) {
      const i64 place = next + __popc(all & ((1u << threadIdx.x) - 1u));
      found[place] = (int)column;
      values[place] = x[row * columns + column];
    }
    next += __popc(all);
  }
}
