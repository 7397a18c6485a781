// Grids: scale and zero point of every row and group, `[rows, groups]`, a group so many neighbouring columns.

KERNEL(256, round_to_grid,
       (float *codes, const float *weights, const float *scales, const float *zero_points, float maximum_code,
        i64 columns, i64 per_group, i64 groups, i64 count)) {
  FOR_EACH(index, count) {
    const i64 place = index / columns * groups + index % columns / per_group;
    codes[index] = nearest_code(weights[index] / scales[place] + zero_points[place], maximum_code);
  }
}

KERNEL(256, dequantize,
       (float *weights, const float *codes, const float *scales, const float *zero_points, i64 columns, i64 per_group,
        i64 groups, i64 count)) {
  FOR_EACH(index, count) {
    const i64 place = index / columns * groups + index % columns / per_group;
    weights[index] = scales[place] * (codes[index] - zero_points[place]);
  }
}

// What rounding to nearest leaves of every weight.
KERNEL(256, rounding_remainders,
       (float *remainders, const float *weights, const float *scales, const float *zero_points, float maximum_code,
        i64 columns, i64 per_group, i64 groups, i64 count)) {
  FOR_EACH(index, count) {
    const i64 place = index / columns * groups + index % columns / per_group;
    const float weight = weights[index], scale = scales[place], zero_point = zero_points[place];
    remainders[index] = weight - scale * (nearest_code(weight / scale + zero_point, maximum_code) - zero_point);
  }
}

// Σ_j (w_j − ŵ_j) G_j of every row, one block a row.
KERNEL(ROW_THREADS, row_objectives,
       (double *result, const float *codes, const float *weights, const float *gradient, const float *scales,
        const float *zero_points, i64 columns, i64 per_group, i64 groups)) {
  __shared__ double scratch[32];
  const i64 row = blockIdx.x, start = row * columns;
  double sum = 0.0;
  for (i64 column = threadIdx.x; column < columns; column += blockDim.x) {
    const i64 place = row * groups + column / per_group;
    const float error = weights[start + column] - scales[place] * (codes[start + column] - zero_points[place]);
    sum += (double)error * (double)gradient[start + column];
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) result[row] = sum;
}

// The float types that outputs keep scales in, four bits each, the first in the lowest: 1 float16, 2 bfloat16.
__device__ __forceinline__ float storable_scale(float scale, int types) {
  int has_half = 0;
  for (int rest = types; rest; rest >>= 4) has_half |= (rest & 15) == 1;
  scale = fminf(fmaxf(scale, has_half ? 6.103515625e-05f : 1.17549435e-38f), has_half ? 32768.0f : 1.7014118e38f);
  for (int rest = types; rest; rest >>= 4) {
    // Within these bounds both types are fp32 with fewer digits.
    const unsigned dropped = (rest & 15) == 1 ? 13 : 16;
    const unsigned bits = __float_as_uint(scale);
    const unsigned half = (1u << (dropped - 1)) - 1u + (bits >> dropped & 1u);
    scale = __uint_as_float((bits + half) >> dropped << dropped);
  }
  return scale;
}

struct GridFormat {
  float maximum_code, middle_code;
  int is_symmetric, has_signed_scales, types;
};

struct GridPoint {
  float scale, zero_point;
};

__device__ __forceinline__ GridPoint spanning_grid(float low, float high, GridFormat format) {
  if (format.is_symmetric) {
    const float reach = fmaxf(-low, high);
    return {storable_scale(reach > 0.0f ? 2.0f * reach / format.maximum_code : 1.0f, format.types),
            format.middle_code};
  }
  if (!(high > low)) return {storable_scale(1.0f, format.types), format.middle_code};
  const float scale = storable_scale((high - low) / format.maximum_code, format.types);
  return {scale, fminf(fmaxf(rintf(-low / scale), 1.0f), format.maximum_code)};
}

__device__ __forceinline__ GridPoint signed_grid(float low, float high, GridFormat format) {
  const bool is_above = high > -low;
  const float far = is_above ? high : -low, near = is_above ? -low : high;
  const float scale = far > 0.0f ? fmaxf(far / format.middle_code, near / (format.middle_code - 0.5f)) : 1.0f;
  return {storable_scale(scale, format.types), is_above ? format.middle_code - 1.0f : format.middle_code};
}

// The candidate grid with the least weighted rounding error, as GridCandidates.best: one block a row and group.
// ranges: 0 for shrinks of both ends together, 1 of each on its own
KERNEL(ROW_THREADS, search_grid,
       (float *scales, float *zero_points, const float *weights, const float *importance, const float *shrinks,
        int shrink_count, int is_independent, float maximum_code, float middle_code, int is_symmetric,
        int has_signed_scales, int types, i64 columns, i64 per_group, i64 groups)) {
  __shared__ float scratch[32];
  const GridFormat format = {maximum_code, middle_code, is_symmetric, has_signed_scales, types};
  const i64 group = blockIdx.x % groups, row = blockIdx.x / groups;
  const i64 first = group * per_group, end = first + per_group < columns ? first + per_group : columns;
  const float *w = weights + row * columns;
  float low = 0.0f, high = 0.0f;
  for (i64 column = first + threadIdx.x; column < end; column += blockDim.x) {
    low = fminf(low, w[column]);
    high = fmaxf(high, w[column]);
  }
  high = block_maximum(high, scratch);
  __syncthreads();
  low = -block_maximum(-low, scratch);
  const bool is_signed = is_symmetric && has_signed_scales;
  GridPoint best = spanning_grid(low, high, format);
  if (shrink_count > 1 || is_signed) {
    float least = 0.0f;
    // Where no weight needs the level that is one more, both signs cost the same, and rounding must not decide.
    const float margin = 0.9999f;
    const int per_shrink = is_symmetric ? (is_signed ? 2 : 1) : (is_independent ? shrink_count : 1);
    const int candidates = shrink_count * per_shrink + (is_signed ? 1 : 0);
    for (int number = -1; number < candidates; number++) {
      GridPoint point = best;
      float limit = 1.0f;
      if (number >= 0 && is_signed && number == candidates - 1) {
        point = signed_grid(low, high, format);
        limit = margin;
      } else if (number >= 0) {
        const float one = shrinks[number / per_shrink];
        const float other = is_symmetric || !is_independent ? one : shrinks[number % per_shrink];
        point = spanning_grid(low * one, high * other, format);
        if (is_signed && number % 2 == 1) {
          point.zero_point -= 1.0f;
          limit = margin;
        }
      }
      float cost = 0.0f;
      const float inverse = 1.0f / point.scale;
      for (i64 column = first + threadIdx.x; column < end; column += blockDim.x) {
        const float code = nearest_code(fmaf(w[column], inverse, point.zero_point), maximum_code);
        const float error = w[column] - point.scale * (code - point.zero_point);
        cost = fmaf(importance[column] * error, error, cost);
      }
      __syncthreads();
      cost = block_sum(cost, scratch);
      if (number < 0) {
        least = cost;
      } else if (cost < least * limit) {
        least = cost;
        best = point;
      }
    }
  }
  if (threadIdx.x == 0) {
    scales[row * groups + group] = best.scale;
    zero_points[row * groups + group] = best.zero_point;
  }
}

// MARK: Refit
//
// The least-squares scale of the codes of one group in every row, one block a row. The steps q − z of the group stand in
// `steps`, `[rows, steps_stride]`, and their products with the group's part of Σ in `images`; both become those of the
// change of scale, which the caller takes off the gradient.

KERNEL(256, group_steps,
       (float *steps, i64 steps_stride, const float *codes, const float *zero_points, i64 group, i64 groups, i64 first,
        i64 width, i64 columns, i64 rows)) {
  FOR_EACH(index, rows * width) {
    const i64 row = index / width, column = index % width;
    steps[row * steps_stride + column] = codes[row * columns + first + column] - zero_points[row * groups + group];
  }
}

// Decides on a scale: the change, 0 where the objective would not fall.
__device__ __forceinline__ float scale_change(double slope, double curvature, float present, int types) {
  if (!(curvature > 0.0) || curvature > 1e300) return 0.0f;
  const float optimum = present + (float)(slope / curvature);
  const float scale = optimum > 0.0f ? storable_scale(optimum, types) : present;
  const double change = (double)(scale - present);
  // Rounding can carry the scale past the optimum, to where the objective is higher than before.
  return change * (2.0 * slope - change * curvature) > 0.0 ? scale - present : 0.0f;
}

KERNEL(ROW_THREADS, refit_group,
       (float *steps, i64 steps_stride, const float *images, const float *gradient, float *scales, int types, i64 group,
        i64 groups, i64 first, i64 width, i64 columns)) {
  __shared__ double scratch[32];
  const i64 row = blockIdx.x;
  float *step = steps + row * steps_stride;
  double slope = 0.0, curvature = 0.0;
  for (i64 column = threadIdx.x; column < width; column += blockDim.x) {
    slope += (double)step[column] * (double)gradient[row * columns + first + column];
    curvature += (double)step[column] * (double)images[row * width + column];
  }
  slope = block_sum(slope, scratch);
  __syncthreads();
  curvature = block_sum(curvature, scratch);
  const float present = scales[row * groups + group];
  const float change = scale_change(slope, curvature, present, types);
  __syncthreads();
  if (threadIdx.x == 0) scales[row * groups + group] = present + change;
  for (i64 column = threadIdx.x; column < width; column += blockDim.x) step[column] *= change;
}

// The same where a group is a whole row and W Σ is known: the image of Ŵ is W Σ − G.
KERNEL(ROW_THREADS, refit_row,
       (const float *codes, const float *images, float *gradient, float *scales, const float *zero_points, int types,
        i64 columns)) {
  __shared__ double scratch[32];
  const i64 row = blockIdx.x, start = row * columns;
  const float zero_point = zero_points[row], present = scales[row];
  const double unit = 1.0 / (double)present;
  double slope = 0.0, curvature = 0.0;
  for (i64 column = threadIdx.x; column < columns; column += blockDim.x) {
    const float step = codes[start + column] - zero_point, residual = gradient[start + column];
    slope += (double)step * (double)residual;
    curvature += (double)step * (double)(images[start + column] - residual);
  }
  slope = block_sum(slope, scratch);
  __syncthreads();
  curvature = block_sum(curvature, scratch) * unit;
  const float change = scale_change(slope, curvature, present, types);
  __syncthreads();
  if (threadIdx.x == 0) scales[row] = present + change;
  const float factor = (float)((double)change * unit);
  if (factor == 0.0f) return;
  for (i64 column = threadIdx.x; column < columns; column += blockDim.x) {
    const float residual = gradient[start + column];
    gradient[start + column] = residual - factor * (images[start + column] - residual);
  }
}
