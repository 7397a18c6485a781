// Grids: scale and shift of every row and group, `[rows, groups]`, a group so many neighbouring columns. Shifts are zero
// points, or offsets: s (q - z), or s q + o.

__device__ __forceinline__ float grid_code(float weight, float scale, float shift, int has_offsets, float maximum_code) {
  return nearest_code(has_offsets ? (weight - shift) / scale : weight / scale + shift, maximum_code);
}

__device__ __forceinline__ float grid_value(float code, float scale, float shift, int has_offsets) {
  return has_offsets ? fmaf(scale, code, shift) : scale * (code - shift);
}

KERNEL(256, round_to_grid,
       (float *codes, const float *weights, const float *scales, const float *shifts, int has_offsets, float maximum_code,
        i64 columns, i64 per_group, i64 groups, i64 count)) {
  FOR_EACH(index, count) {
    const i64 place = index / columns * groups + index % columns / per_group;
    codes[index] = grid_code(weights[index], scales[place], shifts[place], has_offsets, maximum_code);
  }
}

KERNEL(256, dequantize,
       (float *weights, const float *codes, const float *scales, const float *shifts, int has_offsets, i64 columns, i64 per_group,
        i64 groups, i64 count)) {
  FOR_EACH(index, count) {
    const i64 place = index / columns * groups + index % columns / per_group;
    weights[index] = grid_value(codes[index], scales[place], shifts[place], has_offsets);
  }
}

// What rounding to nearest leaves of every weight.
KERNEL(256, rounding_remainders,
       (float *remainders, const float *weights, const float *scales, const float *shifts, int has_offsets, float maximum_code,
        i64 columns, i64 per_group, i64 groups, i64 count)) {
  FOR_EACH(index, count) {
    const i64 place = index / columns * groups + index % columns / per_group;
    const float weight = weights[index], scale = scales[place], shift = shifts[place];
    const float code = grid_code(weight, scale, shift, has_offsets, maximum_code);
    remainders[index] = weight - grid_value(code, scale, shift, has_offsets);
  }
}

// Σ_j (w_j − ŵ_j) G_j of every row, one block a row.
KERNEL(ROW_THREADS, row_objectives,
       (double *result, const float *codes, const float *weights, const float *gradient, const float *scales,
        const float *shifts, int has_offsets, i64 columns, i64 per_group, i64 groups)) {
  __shared__ double scratch[32];
  const i64 row = blockIdx.x, start = row * columns;
  double sum = 0.0;
  for (i64 column = threadIdx.x; column < columns; column += blockDim.x) {
    const i64 place = row * groups + column / per_group;
    const float value = grid_value(codes[start + column], scales[place], shifts[place], has_offsets);
    const float error = weights[start + column] - value;
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

// An offset that is a float of its own, by the same types.
__device__ __forceinline__ float storable_offset(float offset, int types) {
  int has_half = 0;
  for (int rest = types; rest; rest >>= 4) has_half |= (rest & 15) == 1;
  const float greatest = has_half ? 32768.0f : 1.7014118e38f;
  offset = fminf(fmaxf(offset, -greatest), greatest);
  for (int rest = types; rest; rest >>= 4)
    offset = (rest & 15) == 1 ? from_float16(to_float16(offset)) : from_bfloat16(to_bfloat16(offset));
  return offset;
}

struct GridFormat {
  float maximum_code, middle_code;
  int is_symmetric, has_signed_scales, has_offsets, in_super_blocks, types;
};

struct GridPoint {
  float scale, shift;
};

// A scale of super-blocks stays as it is.
__device__ __forceinline__ float storable_scale(float scale, GridFormat format) {
  return format.in_super_blocks ? fminf(fmaxf(scale, 1.17549435e-38f), 1.7014118e38f) : storable_scale(scale, format.types);
}

__device__ __forceinline__ GridPoint spanning_grid(float low, float high, GridFormat format) {
  const float empty = format.in_super_blocks ? 0.0f : 1.0f;
  if (format.is_symmetric) {
    const float reach = fmaxf(-low, high);
    return {storable_scale(reach > 0.0f ? 2.0f * reach / format.maximum_code : empty, format),
            format.middle_code};
  }
  if (format.has_offsets) {
    // An offset of super-blocks has no sign.
    if (format.in_super_blocks) low = fminf(low, 0.0f);
    const float scale = storable_scale((high - low) / format.maximum_code, format);
    return {scale, format.in_super_blocks ? low : storable_offset(low, format.types)};
  }
  if (!(high > low)) return {storable_scale(empty, format), format.middle_code};
  const float scale = storable_scale((high - low) / format.maximum_code, format);
  return {scale, fminf(fmaxf(rintf(-low / scale), 1.0f), format.maximum_code)};
}

__device__ __forceinline__ GridPoint signed_grid(float low, float high, GridFormat format) {
  const bool is_above = high > -low;
  const float far = is_above ? high : -low, near = is_above ? -low : high;
  const float empty = format.in_super_blocks ? 0.0f : 1.0f;
  const float scale = far > 0.0f ? fmaxf(far / format.middle_code, near / (format.middle_code - 0.5f)) : empty;
  return {storable_scale(scale, format), is_above ? format.middle_code - 1.0f : format.middle_code};
}

// The candidate grid with the least weighted rounding error, as GridCandidates.best: one block a row and group.
// ranges: 0 for shrinks of both ends together, 1 of each on its own
KERNEL(ROW_THREADS, search_grid,
       (float *scales, float *shifts, int has_offsets, const float *weights, const float *importance, const float *shrinks,
        int shrink_count, int is_independent, float maximum_code, float middle_code, int is_symmetric,
        int has_signed_scales, int in_super_blocks, int types, i64 columns, i64 per_group, i64 groups)) {
  __shared__ float scratch[32];
  const GridFormat format = {maximum_code, middle_code,     is_symmetric, has_signed_scales,
                             has_offsets,  in_super_blocks, types};
  const i64 group = blockIdx.x % groups, row = blockIdx.x / groups;
  const i64 first = group * per_group, end = first + per_group < columns ? first + per_group : columns;
  const float *w = weights + row * columns;
  float low = w[first], high = low;
  for (i64 column = first + threadIdx.x; column < end; column += blockDim.x) {
    low = fminf(low, w[column]);
    high = fmaxf(high, w[column]);
  }
  high = block_maximum(high, scratch);
  __syncthreads();
  low = -block_maximum(-low, scratch);
  // What a grid has to span, and what that shrinks towards: GridFormat.spanned and .center.
  if (!has_offsets || in_super_blocks) low = fminf(low, 0.0f);
  if (!has_offsets) high = fmaxf(high, 0.0f);
  high = fmaxf(high, low);
  const float center = has_offsets ? (low + high) / 2.0f : 0.0f;
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
        point = spanning_grid(center - (center - low) * one, center + (high - center) * other, format);
        if (is_signed && number % 2 == 1) {
          point.shift -= 1.0f;
          limit = margin;
        }
      }
      float cost = 0.0f;
      const float inverse = 1.0f / point.scale;
      const float zero_code = has_offsets ? -point.shift / point.scale : point.shift;
      for (i64 column = first + threadIdx.x; column < end; column += blockDim.x) {
        const float code = nearest_code(fmaf(w[column], inverse, zero_code), maximum_code);
        const float error = w[column] - grid_value(code, point.scale, point.shift, has_offsets);
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
    shifts[row * groups + group] = best.shift;
  }
}

// MARK: Refit
//
// The least-squares scale, and offset where that is a number of its own, for the codes of one group in every row, one block
// a row; as Grid.refit. The steps of the scale, q − z or q, stand in `steps`, `[rows, steps_stride]`, and their products with
// the group's part of Σ in `images`; the steps become the changes of Ŵ, whose product the caller takes off the gradient.

KERNEL(256, group_steps,
       (float *steps, i64 steps_stride, const float *codes, const float *shifts, int has_offsets, i64 group, i64 groups,
        i64 first, i64 width, i64 columns, i64 rows)) {
  FOR_EACH(index, rows * width) {
    const i64 row = index / width, column = index % width;
    const float zero_point = has_offsets ? 0.0f : shifts[row * groups + group];
    steps[row * steps_stride + column] = codes[row * columns + first + column] - zero_point;
  }
}

// What scales and offsets may be: `types` for floats; units, `[rows, blocks]`, and multiples for super-blocks.
struct StoredGrid {
  const float *scale_units, *offset_units;
  int types, least_multiple, most_multiple, most_offset_multiple;
};

__device__ __forceinline__ float stored_scale(float scale, StoredGrid stored, i64 block, bool is_negative) {
  if (!stored.scale_units) return storable_scale(scale, stored.types);
  const float unit = stored.scale_units[block];
  const int most = is_negative != (unit < 0.0f) ? -stored.least_multiple : stored.most_multiple;
  return fabsf(unit) * fminf(fmaxf(rintf(scale / fabsf(unit)), 1.0f), (float)most);
}

__device__ __forceinline__ float stored_offset(float offset, StoredGrid stored, i64 block) {
  if (!stored.offset_units) return storable_offset(offset, stored.types);
  const float unit = stored.offset_units[block];
  return 0.0f - unit * fminf(fmaxf(rintf(-offset / unit), 0.0f), (float)stored.most_offset_multiple);
}

// What the objective is in the neighbourhood of a scale and an offset, as RefitForms in Swift.
struct RefitForms {
  double slope, curvature, offset_slope, offset_curvature, mixed;
};

// A sum whose scratch may be used again at once.
__device__ __forceinline__ double block_sum_once(double value, double *scratch) {
  const double sum = block_sum(value, scratch);
  __syncthreads();
  return sum;
}

// The sums of what every thread of a block has; those of offsets only where there are some.
__device__ __forceinline__ RefitForms block_sum(RefitForms forms, bool has_offsets, double *scratch) {
  forms.slope = block_sum_once(forms.slope, scratch);
  forms.curvature = block_sum_once(forms.curvature, scratch);
  if (has_offsets) {
    forms.offset_slope = block_sum_once(forms.offset_slope, scratch);
    forms.offset_curvature = block_sum_once(forms.offset_curvature, scratch);
    forms.mixed = block_sum_once(forms.mixed, scratch);
  }
  return forms;
}

__device__ __forceinline__ double determinant(RefitForms forms) {
  return forms.curvature * forms.offset_curvature - forms.mixed * forms.mixed;
}

// Whether scale and offset are two variables.
__device__ __forceinline__ bool are_independent(RefitForms forms) {
  return forms.offset_curvature > 0.0 && determinant(forms) > 1e-6 * forms.curvature * forms.offset_curvature;
}

__device__ __forceinline__ double joint_scale_step(RefitForms forms) {
  return (forms.slope * forms.offset_curvature - forms.offset_slope * forms.mixed) / determinant(forms);
}

__device__ __forceinline__ double offset_step(RefitForms forms, double scale_change) {
  return (forms.offset_slope - forms.mixed * scale_change) / forms.offset_curvature;
}

// How much a change lowers the objective.
__device__ __forceinline__ double refit_gain(RefitForms forms, double scale_change, double offset_change) {
  return scale_change * (2.0 * forms.slope - scale_change * forms.curvature) +
         offset_change * (2.0 * (forms.offset_slope - forms.mixed * scale_change) - offset_change * forms.offset_curvature);
}

KERNEL(ROW_THREADS, refit_group,
       (float *steps, i64 steps_stride, const float *images, const float *gradient, const float *gram, float *scales,
        float *shifts, int has_offsets, const float *scale_units, const float *offset_units, int types, int least_multiple,
        int most_multiple, int most_offset_multiple, float middle_code, i64 block, i64 blocks,
        i64 group, i64 groups, i64 first, i64 width, i64 columns)) {
  __shared__ double scratch[32];
  const StoredGrid stored = {scale_units, offset_units, types, least_multiple, most_multiple, most_offset_multiple};
  const i64 row = blockIdx.x, place = row * groups + group, unit = row * blocks + block;
  float *step = steps + row * steps_stride;
  RefitForms forms = {0.0, 0.0, 0.0, 0.0, 0.0};
  for (i64 column = threadIdx.x; column < width; column += blockDim.x) {
    const double residual = (double)gradient[row * columns + first + column];
    const double image = (double)images[row * width + column];
    forms.slope += (double)step[column] * residual;
    forms.curvature += (double)step[column] * image;
    if (!has_offsets) continue;
    forms.offset_slope += residual;
    forms.mixed += image;
    for (i64 other = 0; other < width; other++)
      forms.offset_curvature += (double)gram[(first + column) * columns + first + other];
  }
  forms = block_sum(forms, has_offsets, scratch);
  const float scale = scales[place], shift = shifts[place];
  float scale_change = 0.0f, shift_change = 0.0f;
  if (forms.curvature > 0.0 && forms.curvature < 1e300) {
    if (!has_offsets) {
      const float optimum = scale + (float)(forms.slope / forms.curvature);
      const float next = optimum > 0.0f ? stored_scale(optimum, stored, unit, shift != middle_code) : scale;
      // Rounding can carry the scale past the optimum, to where the objective is higher than before.
      if (refit_gain(forms, (double)(next - scale), 0.0) > 0.0) scale_change = next - scale;
    } else if (are_independent(forms)) {
      const float optimum = scale + (float)joint_scale_step(forms);
      const float next = optimum > 0.0f ? stored_scale(optimum, stored, unit, false) : scale;
      const double change = (double)(next - scale);
      const float moved = stored_offset(shift + (float)offset_step(forms, change), stored, unit);
      if (refit_gain(forms, change, (double)(moved - shift)) > 0.0) {
        scale_change = next - scale;
        shift_change = moved - shift;
      }
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    scales[place] = scale + scale_change;
    shifts[place] = shift + shift_change;
  }
  for (i64 column = threadIdx.x; column < width; column += blockDim.x)
    step[column] = fmaf(step[column], scale_change, shift_change);
}

// The same for the units of a super-block, as Grid.refitUnits: what a step of the scales' unit moves, and one of the offsets',
// stands in `steps` and `offset_steps`, and their products with the super-block's part of Σ in `images` and `offset_images`.

KERNEL(256, unit_steps,
       (float *steps, i64 steps_stride, float *offset_steps, const float *codes, const float *scales, const float *shifts,
        int has_offsets, const float *scale_units, const float *offset_units, i64 block, i64 blocks, i64 group_width,
        i64 groups, i64 first, i64 width, i64 columns, i64 rows)) {
  FOR_EACH(index, rows * width) {
    const i64 row = index / width, column = index % width, place = row * groups + (first + column) / group_width;
    const float zero_point = has_offsets ? 0.0f : shifts[place], code = codes[row * columns + first + column];
    steps[row * steps_stride + column] = scales[place] / scale_units[row * blocks + block] * (code - zero_point);
    if (!has_offsets) continue;
    const float unit = offset_units[row * blocks + block];
    offset_steps[index] = unit == 0.0f ? 0.0f : shifts[place] / unit;
  }
}

__device__ __forceinline__ float storable_unit(float unit, float present) {
  if (!(unit * present > 0.0f)) return present;
  const float magnitude = from_float16(to_float16(fminf(fmaxf(fabsf(unit), 5.9604645e-08f), 65504.0f)));
  return present < 0.0f ? -magnitude : magnitude;
}

KERNEL(ROW_THREADS, refit_unit,
       (float *steps, i64 steps_stride, const float *images, const float *offset_steps, const float *offset_images,
        const float *gradient, float *scales, float *shifts, int has_offsets, float *scale_units, float *offset_units,
        i64 block, i64 blocks, i64 group_width, i64 groups, i64 first, i64 width, i64 columns)) {
  __shared__ double scratch[32];
  const i64 row = blockIdx.x, place = row * blocks + block;
  float *step = steps + row * steps_stride;
  RefitForms forms = {0.0, 0.0, 0.0, 0.0, 0.0};
  for (i64 column = threadIdx.x; column < width; column += blockDim.x) {
    const double residual = (double)gradient[row * columns + first + column];
    const double image = (double)images[row * width + column];
    forms.slope += (double)step[column] * residual;
    forms.curvature += (double)step[column] * image;
    if (!has_offsets) continue;
    const double offset = (double)offset_steps[row * width + column];
    forms.offset_slope += offset * residual;
    forms.offset_curvature += offset * (double)offset_images[row * width + column];
    forms.mixed += offset * image;
  }
  forms = block_sum(forms, has_offsets, scratch);
  const float unit = scale_units[place], offset_unit = has_offsets ? offset_units[place] : 0.0f;
  float next = unit, next_offset = offset_unit;
  if (forms.curvature > 0.0 && forms.curvature < 1e300) {
    const bool moves_offsets = are_independent(forms);
    const double wanted = moves_offsets ? joint_scale_step(forms) : forms.slope / forms.curvature;
    next = storable_unit(unit + (float)wanted, unit);
    const double change = (double)(next - unit);
    if (moves_offsets) next_offset = storable_unit(offset_unit + (float)offset_step(forms, change), offset_unit);
    if (!(refit_gain(forms, change, (double)(next_offset - offset_unit)) > 0.0)) {
      next = unit;
      next_offset = offset_unit;
    }
  }
  __syncthreads();
  const i64 first_group = first / group_width, last_group = (first + width + group_width - 1) / group_width;
  for (i64 group = first_group + threadIdx.x; group < last_group; group += blockDim.x) {
    const i64 grid = row * groups + group;
    scales[grid] = fabsf(next) * rintf(scales[grid] / fabsf(unit));
    if (has_offsets && offset_unit != 0.0f) shifts[grid] = 0.0f - next_offset * rintf(-shifts[grid] / offset_unit);
  }
  if (threadIdx.x == 0) {
    scale_units[place] = next;
    if (has_offsets) offset_units[place] = next_offset;
  }
  for (i64 column = threadIdx.x; column < width; column += blockDim.x) {
    const float offset = has_offsets ? offset_steps[row * width + column] * (next_offset - offset_unit) : 0.0f;
    step[column] = fmaf(step[column], next - unit, offset);
  }
}

// The same where a group is a whole row and W Σ is known: the image of Ŵ is W Σ − G.
KERNEL(ROW_THREADS, refit_row,
       (const float *codes, const float *images, float *gradient, float *scales, const float *shifts, int types,
        i64 columns)) {
  __shared__ double scratch[32];
  const i64 row = blockIdx.x, start = row * columns;
  const float present = scales[row], zero_point = shifts[row];
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
  float change = 0.0f;
  if (curvature > 0.0 && curvature < 1e300) {
    const float optimum = present + (float)(slope / curvature);
    const float scale = optimum > 0.0f ? storable_scale(optimum, types) : present;
    const double gain = (double)(scale - present) * (2.0 * slope - (double)(scale - present) * curvature);
    if (gain > 0.0) change = scale - present;
  }
  __syncthreads();
  if (threadIdx.x == 0) scales[row] = present + change;
  const float factor = (float)((double)change * unit);
  if (factor == 0.0f) return;
  for (i64 column = threadIdx.x; column < columns; column += blockDim.x) {
    const float residual = gradient[start + column];
    gradient[start + column] = residual - factor * (images[start + column] - residual);
  }
}
