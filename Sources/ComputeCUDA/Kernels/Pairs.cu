// Moves that reach over the whole of a row, one block a row.

// For every column, a block each, the `count` others of largest correlation, in falling order.
KERNEL(ROW_THREADS, most_correlated,
       (int *found, float *values, float *diagonals, const float *gram, const float *inverse_roots, i64 size,
        int count)) {
  __shared__ float best_values[32];
  __shared__ int best_places[32];
  const i64 column = blockIdx.x;
  const float *row = gram + column * size;
  float last = INFINITY;
  int last_place = -1;
  for (int number = 0; number < count; number++) {
    // The largest of those that come after the last one, equal ones by their place.
    float value = -1.0f;
    int place = (int)size;
    for (i64 other = threadIdx.x; other < size; other += blockDim.x) {
      if (other == column) continue;
      const float correlation = fabsf(row[other]) * inverse_roots[other];
      const bool comes_after = correlation < last || (correlation == last && other > last_place);
      if (comes_after && (correlation > value || (correlation == value && other < place))) {
        value = correlation;
        place = (int)other;
      }
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      const float other_value = __shfl_xor_sync(0xFFFFFFFFu, value, offset);
      const int other_place = __shfl_xor_sync(0xFFFFFFFFu, place, offset);
      if (other_value > value || (other_value == value && other_place < place)) {
        value = other_value;
        place = other_place;
      }
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
      best_values[threadIdx.x / 32] = value;
      best_places[threadIdx.x / 32] = place;
    }
    __syncthreads();
    for (int warp = 0; warp < blockDim.x / 32; warp++) {
      if (best_values[warp] > value || (best_values[warp] == value && best_places[warp] < place)) {
        value = best_values[warp];
        place = best_places[warp];
      }
    }
    last = value;
    last_place = place;
    if (threadIdx.x == 0) found[column * count + number] = place < size ? place : 0;
  }
  __syncthreads();
  // Pair moves look no further than an entry allows, and so take them by falling magnitude of Σ_jk.
  if (threadIdx.x != 0) return;
  int *own = found + column * count;
  for (int number = 1; number < count; number++) {
    const int moving = own[number];
    const float size_of_moving = fabsf(row[moving]);
    int at = number;
    while (at > 0 && (fabsf(row[own[at - 1]]) < size_of_moving ||
                      (fabsf(row[own[at - 1]]) == size_of_moving && own[at - 1] > moving))) {
      own[at] = own[at - 1];
      at--;
    }
    own[at] = moving;
  }
  for (int number = 0; number < count; number++) {
    values[column * count + number] = row[own[number]];
    diagonals[column * count + number] = gram[(i64)own[number] * size + own[number]];
  }
}

// The first thread of a block that can do something, or, if none can, their number.
// slot: shared memory
__device__ __forceinline__ int first_of_block(bool is_able, int *slot) {
  __syncthreads();
  if (threadIdx.x == 0) *slot = blockDim.x;
  __syncthreads();
  // The first of a warp, and then of the warps, one after the other in any order: a minimum.
  const unsigned able = __ballot_sync(0xFFFFFFFFu, is_able);
  if (threadIdx.x % 32 == 0 && able) atomicMin(slot, (int)threadIdx.x + __ffs(able) - 1);
  __syncthreads();
  return *slot;
}

// How many codes would move if each were the only one.
KERNEL(256, count_movers,
       (const float *codes, const unsigned char *held, const float *gradient, const float *inverse_diagonal,
        const float *scales, i64 groups, i64 per_group, float maximum_code, i64 columns, i64 count,
        unsigned long long *movers)) {
  unsigned long long mine = 0;
  FOR_EACH(index, count) {
    const i64 column = index % columns;
    const float scale = scales[index / columns * groups + column / per_group];
    const float best = nearest_code(codes[index] + gradient[index] * inverse_diagonal[column] / scale, maximum_code);
    mine += best != codes[index] && !(held && held[index]);
  }
  for (int offset = 16; offset > 0; offset /= 2) mine += __shfl_xor_sync(0xFFFFFFFFu, mine, offset);
  if (threadIdx.x % 32 == 0 && mine) atomicAdd(movers, mine);
}

// One pass of single moves over every row, for rows of which few codes move: as the pass of pairs below.
KERNEL(ROW_THREADS, descend_singles,
       (float *codes, const unsigned char *held, float *gradient, const float *gram, const float *inverse_diagonal,
        const float *scales, i64 groups, i64 per_group, float maximum_code, i64 columns, unsigned long long *moved)) {
  __shared__ int first_mover;
  __shared__ float change;
  const i64 row = blockIdx.x;
  float *code = codes + row * columns, *residual = gradient + row * columns;
  const unsigned char *is_held = held ? held + row * columns : nullptr;
  unsigned long long moves = 0;
  i64 start = 0;
  while (start < columns) {
    const i64 column = start + threadIdx.x;
    float best = 0.0f, scale = 0.0f;
    bool can_move = false;
    if (column < columns && !(is_held && is_held[column])) {
      scale = scales[row * groups + column / per_group];
      best = nearest_code(code[column] + residual[column] * inverse_diagonal[column] / scale, maximum_code);
      can_move = best != code[column];
    }
    const int first = first_of_block(can_move, &first_mover);
    if (first >= (int)blockDim.x) {
      start += blockDim.x;
      continue;
    }
    if ((int)threadIdx.x == first) {
      change = (best - code[column]) * scale;
      code[column] = best;
      moves++;
    }
    __syncthreads();
    const float *mover = gram + (start + first) * columns;
    for (i64 index = threadIdx.x; index < columns; index += blockDim.x)
      residual[index] = fmaf(-change, mover[index], residual[index]);
    __syncthreads();
    start += first + 1;
  }
  if (moves) atomicAdd(moved, moves);
}

// One pass of pair moves over every row, in the order of the columns: a block looks at as many columns at once as it has
// threads, the first that can move does, and those behind it are looked at again.
KERNEL(ROW_THREADS, descend_pairs,
       (float *codes, const unsigned char *held, float *gradient, const float *gram, const int *neighbours,
        const float *neighbour_gram, const float *neighbour_diagonal, int count, const float *scales, i64 groups,
        i64 per_group, float maximum_code, i64 columns, unsigned long long *moved)) {
  __shared__ float scratch[32];
  __shared__ int first_mover;
  __shared__ int movers[2];
  __shared__ float steps[2];
  const i64 row = blockIdx.x;
  float *code = codes + row * columns, *residual = gradient + row * columns;
  const unsigned char *is_held = held ? held + row * columns : nullptr;
  const float *scale = scales + row * groups;
  float largest = 0.0f;
  for (i64 group = threadIdx.x; group < groups; group += blockDim.x) largest = fmaxf(largest, scale[group]);
  largest = block_maximum(largest, scratch);
  unsigned long long pairs = 0;
  i64 start = 0;
  while (start < columns) {
    const i64 column = start + threadIdx.x;
    int partner = -1;
    float step = 0.0f, partner_step = 0.0f;
    if (column < columns && !(is_held && is_held[column])) {
      const float slope = residual[column];
      step = slope > 0.0f ? 1.0f : -1.0f;
      const float to = code[column] + step, own_scale = scale[column / per_group], change = step * own_scale;
      if (to >= 0.0f && to <= maximum_code) {
        const float alone = change * (change * gram[column * columns + column] - 2.0f * slope);
        float least = -1e-6f * alone;
        for (int number = 0; number < count; number++) {
          const float shared = neighbour_gram[column * count + number];
          // A partner that stands at its own minimum can gain no more than this, nor can those after it.
          if (!(alone < 2.0f * own_scale * largest * fabsf(shared))) break;
          const int other = neighbours[column * count + number];
          const float rest = residual[other] - change * shared, other_scale = scale[other / per_group];
          const float other_step = rest > 0.0f ? 1.0f : -1.0f;
          const float other_to = code[other] + other_step;
          if (other_to < 0.0f || other_to > maximum_code || (is_held && is_held[other])) continue;
          const float other_change = other_step * other_scale;
          const float both =
              alone + other_change * (other_change * neighbour_diagonal[column * count + number] - 2.0f * rest);
          if (both < least) {
            least = both;
            partner = other;
            partner_step = other_step;
          }
        }
      }
    }
    const int first = first_of_block(partner >= 0, &first_mover);
    if (first >= (int)blockDim.x) {
      start += blockDim.x;
      continue;
    }
    if ((int)threadIdx.x == first) {
      code[column] += step;
      code[partner] += partner_step;
      movers[0] = (int)column;
      movers[1] = partner;
      steps[0] = step * scale[column / per_group];
      steps[1] = partner_step * scale[partner / per_group];
      pairs++;
    }
    __syncthreads();
    const float *one = gram + (i64)movers[0] * columns, *other = gram + (i64)movers[1] * columns;
    for (i64 index = threadIdx.x; index < columns; index += blockDim.x)
      residual[index] = fmaf(-steps[1], other[index], fmaf(-steps[0], one[index], residual[index]));
    __syncthreads();
    start += first + 1;
  }
  if (pairs) atomicAdd(moved, pairs);
}
