#include "grid_sweeps.h"

#include <math.h>
#include <string.h>

#include "dispatch.h"
#include "nearest_code.h"

QE_DISPATCH
size_t qe_descend_block(
    size_t rows, size_t columns, const float *restrict gram, size_t gram_stride,
    const float *restrict inverse_diagonal, const int32_t *group_of, qe_grid grid, int is_quantizing,
    float *restrict gradient, float *restrict approximation, float *restrict errors) {
#pragma clang fp contract(fast)
  size_t moved = 0;
  for (size_t j = 0; j < columns; j++) {
    const float *scale = grid.scales + (size_t)group_of[j] * rows;
    const float *inverse_scale = grid.inverse_scales + (size_t)group_of[j] * rows;
    const float *offset = grid.offsets + (size_t)group_of[j] * rows;
    const float *zero_code = grid.zero_codes + (size_t)group_of[j] * rows;
    const float *zero_point = grid.zero_points + (size_t)group_of[j] * rows;
    const float step = inverse_diagonal[j];
    float *restrict value = approximation + j * rows;
    float *restrict error = errors + j * rows;
    float *restrict delta = gradient + j * rows;  // the column's gradient is not needed any more
    uint32_t moved_here = 0;
    for (size_t r = 0; r < rows; r++) {
      const float old = value[r];
      float best = old + delta[r] * step;
      if (is_quantizing) {
        const float code = nearest_code(best * inverse_scale[r] + zero_code[r], grid.maximum_code);
        best = scale[r] * (code - zero_point[r]) + offset[r];
      }
      const float change = best - old;
      moved_here += change != 0.0f;
      delta[r] = change;
      value[r] = best;
      error[r] -= change;
    }
    moved += moved_here;
    for (size_t after = j + 1; after < columns; after++) {
      const float coefficient = gram[j * gram_stride + after];
      float *restrict destination = gradient + after * rows;
      for (size_t r = 0; r < rows; r++) destination[r] -= coefficient * delta[r];
    }
  }
  return moved;
}

enum { scan_width = 32 };

QE_DISPATCH
size_t qe_descend_row(
    size_t columns, const float *restrict gram, const float *restrict steps,
    const float *restrict scales, float maximum_code, float *restrict codes, float *restrict gradient) {
#pragma clang fp contract(fast)
  size_t moved = 0;
  for (size_t start = 0; start < columns; start += scan_width) {
    const size_t end = start + scan_width < columns ? start + scan_width : columns;
    // Most stretches of columns stay as they are: look at all of a stretch at once first.
    uint32_t moves_here = 0;
    for (size_t j = start; j < end; j++) {
      moves_here |= nearest_code(codes[j] + gradient[j] * steps[j], maximum_code) != codes[j];
    }
    if (!moves_here) continue;
    for (size_t j = start; j < end; j++) {
      const float code = nearest_code(codes[j] + gradient[j] * steps[j], maximum_code);
      if (code == codes[j]) continue;
      const float change = scales[j] * (code - codes[j]);
      const float *restrict gram_row = gram + j * columns;
      codes[j] = code;
      moved++;
      for (size_t k = 0; k < columns; k++) gradient[k] -= change * gram_row[k];
    }
  }
  return moved;
}

QE_DISPATCH
float qe_weighted_rounding_error(
    size_t columns, const float *restrict values, const float *restrict weights, float scale,
    float zero_point, float maximum_code, float limit) {
#pragma clang fp contract(fast) reassociate(on)
  // Long enough for its sum to be worth a look.
  enum { part = 128 };
  const float inverse_scale = 1.0f / scale;
  float total = 0.0f;
  for (size_t start = 0; start < columns && total < limit; start += part) {
    const size_t end = start + part < columns ? start + part : columns;
    float sum = 0.0f;
    for (size_t j = start; j < end; j++) {
      const float scaled = values[j] * inverse_scale + zero_point;
      float clamped = scaled > 0.0f ? scaled : 0.0f;
      clamped = clamped < maximum_code ? clamped : maximum_code;
      // Rounded by way of the integer conversion: the magic number would not survive reassociation.
      const float error = scaled - (float)(int32_t)(clamped + 0.5f);
      sum += weights[j] * error * error;
    }
    total += sum * scale * scale;
  }
  return total;
}

// What the step of a partner costs, at best: s² Σ_kk - 2 s |gradient there|.
INLINED float partner_cost(float residual, float scale, float diagonal) {
  const float magnitude = residual < 0.0f ? -residual : residual;
  return scale * (scale * diagonal - 2.0f * magnitude);
}

enum { lanes = 8 };

// Whether the step of some neighbour and the column's own change by `change`, which costs `cost`, cost less than
// `threshold` together. Nearly all columns have no such neighbour: this is what a pass of pair moves spends
// its time on. `is_uniform`, known to the compiler, says that all columns of the row have one scale.
INLINED int has_partner(
    size_t count, const int32_t *restrict others, const float *restrict other_gram,
    const float *restrict other_diagonal, const float *restrict scales, int is_uniform,
    const float *restrict gradient, float change, float cost, float reach, float threshold) {
#pragma clang fp contract(fast)
  int result = 0;
  size_t x = 0;
  for (; x + lanes <= count; x += lanes) {
    if (cost >= reach * fabsf(other_gram[x])) return result;
    // Gathering is one loop and arithmetic another, so that the second is vectorised whatever the first becomes.
    float gradients[lanes], steps[lanes];
    for (int lane = 0; lane < lanes; lane++) gradients[lane] = gradient[others[x + lane]];
    for (int lane = 0; lane < lanes; lane++) steps[lane] = scales[is_uniform ? 0 : others[x + lane]];
    uint32_t found = 0;
    for (int lane = 0; lane < lanes; lane++) {
      const float residual = gradients[lane] - change * other_gram[x + lane];
      found |= cost + partner_cost(residual, steps[lane], other_diagonal[x + lane]) < threshold;
    }
    result |= found;
  }
  for (; x < count; x++) {
    const float residual = gradient[others[x]] - change * other_gram[x];
    result |= cost + partner_cost(residual, scales[others[x]], other_diagonal[x]) < threshold;
  }
  return result;
}

QE_DISPATCH
size_t qe_descend_pairs_row(
    size_t columns, qe_neighbours neighbours, const float *restrict gram,
    const float *restrict scales, float largest_scale, float maximum_code, float *restrict codes,
    float *restrict gradient) {
#pragma clang fp contract(fast)
  uint32_t differs = 0;
  for (size_t j = 0; j < columns; j++) differs |= scales[j] != scales[0];
  size_t moved = 0;
  for (size_t j = 0; j < columns; j++) {
    // Away from the minimiser a step only costs more: the code on its other side is the one to try.
    const float direction = gradient[j] > 0.0f ? 1.0f : -1.0f;
    const float change = direction * scales[j];
    const float cost = change * (change * gram[j * columns + j] - 2.0f * gradient[j]);
    const int32_t *others = neighbours.columns + j * neighbours.count;
    const float *other_gram = neighbours.gram + j * neighbours.count;
    // A partner that stands at its own minimum can gain no more than `reach` times its entry in the Gram matrix
    // from the change, and those after it have smaller entries.
    const float reach = 2.0f * scales[j] * largest_scale;
    if (cost >= reach * fabsf(other_gram[0])) continue;
    const float code = codes[j] + direction;
    if (code < 0.0f || code > maximum_code) continue;
    const float *other_diagonal = neighbours.diagonal + j * neighbours.count;
    // A gain within rounding is none: the same pair would move back and forth.
    const float threshold = -1e-6f * cost;
    const int has_any =
        differs ? has_partner(
                      neighbours.count, others, other_gram, other_diagonal, scales, 0, gradient, change,
                      cost, reach, threshold)
                : has_partner(
                      neighbours.count, others, other_gram, other_diagonal, scales, 1, gradient, change,
                      cost, reach, threshold);
    if (!has_any) continue;

    float best_gain = threshold;
    size_t best = neighbours.count;
    float best_step = 0.0f;
    for (size_t x = 0; x < neighbours.count && cost < reach * fabsf(other_gram[x]); x++) {
      const int32_t k = others[x];
      const float residual = gradient[k] - change * other_gram[x];
      const float step = residual > 0.0f ? 1.0f : -1.0f;
      const float gain = cost + partner_cost(residual, scales[k], other_diagonal[x]);
      if (gain < best_gain && codes[k] + step >= 0.0f && codes[k] + step <= maximum_code) {
        best_gain = gain;
        best = x;
        best_step = step;
      }
    }
    if (best == neighbours.count) continue;
    const size_t partner = (size_t)others[best];
    const float partner_change = best_step * scales[partner];
    codes[j] = code;
    codes[partner] += best_step;
    moved++;
    const float *restrict row = gram + j * columns;
    const float *restrict partner_row = gram + partner * columns;
    for (size_t k = 0; k < columns; k++) {
      gradient[k] -= change * row[k] + partner_change * partner_row[k];
    }
  }
  return moved;
}

QE_DISPATCH
size_t qe_index_of_smallest(size_t count, const float *values) {
  // The compiler does not reorder comparisons of floats: the lanes of a vector stand here by name.
  enum { width = 32 };
  float partial[width];
  for (int lane = 0; lane < width; lane++) partial[lane] = INFINITY;
  size_t i = 0;
  for (; i + width <= count; i += width)
    for (int lane = 0; lane < width; lane++)
      partial[lane] = values[i + lane] < partial[lane] ? values[i + lane] : partial[lane];
  float least = INFINITY;
  for (int lane = 0; lane < width; lane++) least = partial[lane] < least ? partial[lane] : least;
  for (; i < count; i++) least = values[i] < least ? values[i] : least;
  for (i = 0; i < count && values[i] != least;) i++;
  return i;
}

QE_DISPATCH
void qe_cholesky_row(
    size_t columns, size_t before, size_t stride, const float *restrict factor, float pivot, float *restrict row,
    float *restrict remaining) {
#pragma clang fp contract(fast)
  const float inverse = 1.0f / pivot;
  // A part of the row stays in the first-level cache while those of the block's other rows go by.
  enum { part = 1024 };
  for (size_t start = 0; start < columns; start += part) {
    const size_t end = start + part < columns ? start + part : columns;
    for (size_t k = 0; k < before; k++) {
      const float coefficient = factor[k * stride];
      const float *restrict earlier = factor + k * stride + 1;
      for (size_t j = start; j < end; j++) row[j] -= coefficient * earlier[j];
    }
    for (size_t j = start; j < end; j++) {
      row[j] *= inverse;
      remaining[j] -= row[j] * row[j];
    }
  }
}

QE_DISPATCH
void qe_divide(size_t count, float divisor, float *restrict x) {
  for (size_t i = 0; i < count; i++) x[i] /= divisor;
}

// Sums are taken in fp32 over short stretches, and in fp64 across them.
enum { stretch = 512 };

QE_DISPATCH
double qe_dot(size_t count, const float *restrict a, const float *restrict b) {
#pragma clang fp contract(fast) reassociate(on)
  double total = 0.0;
  for (size_t start = 0; start < count; start += stretch) {
    const size_t end = start + stretch < count ? start + stretch : count;
    float sum = 0.0f;
    for (size_t i = start; i < end; i++) sum += a[i] * b[i];
    total += (double)sum;
  }
  return total;
}

QE_DISPATCH
double qe_sum(size_t count, const float *restrict a) {
#pragma clang fp reassociate(on)
  double total = 0.0;
  for (size_t start = 0; start < count; start += stretch) {
    const size_t end = start + stretch < count ? start + stretch : count;
    float sum = 0.0f;
    for (size_t i = start; i < end; i++) sum += a[i];
    total += (double)sum;
  }
  return total;
}

QE_DISPATCH
void qe_round(
    size_t columns, const float *restrict weights, float scale, float zero_point, float maximum_code,
    float *restrict codes) {
  for (size_t j = 0; j < columns; j++)
    codes[j] = nearest_code(weights[j] / scale + zero_point, maximum_code);
}

QE_DISPATCH
void qe_dequantize(size_t columns, const float *codes, qe_line line, float *weights) {
  EACH_ELEMENT_ON_ITS_OWN
  for (size_t j = 0; j < columns; j++) weights[j] = line.scale * (codes[j] - line.zero_point) + line.offset;
}

QE_DISPATCH
double qe_row_objective(
    size_t columns, const float *restrict weights, const float *restrict codes, qe_line line,
    const float *restrict gradient) {
#pragma clang fp contract(fast) reassociate(on)
  double total = 0.0;
  for (size_t start = 0; start < columns; start += stretch) {
    const size_t end = start + stretch < columns ? start + stretch : columns;
    float sum = 0.0f;
    for (size_t j = start; j < end; j++) {
      sum += (weights[j] - (line.scale * (codes[j] - line.zero_point) + line.offset)) * gradient[j];
    }
    total += (double)sum;
  }
  return total;
}

QE_DISPATCH
void qe_axpy(size_t count, float alpha, const float *restrict x, float *restrict y) {
#pragma clang fp contract(fast)
  for (size_t i = 0; i < count; i++) y[i] += alpha * x[i];
}

void qe_reorder_rows(
    size_t rows, size_t columns, const float *restrict source, const int32_t *order,
    float *restrict destination) {
  for (size_t row = 0; row < rows; row++) {
    memcpy(destination + row * columns, source + (size_t)order[row] * columns, columns * sizeof(float));
  }
}

void qe_transpose(
    size_t rows, size_t columns, const float *restrict source, size_t source_stride,
    float *restrict destination, size_t destination_stride) {
  enum { tile = 16 };
  for (size_t row = 0; row < rows; row += tile) {
    const size_t row_end = row + tile < rows ? row + tile : rows;
    for (size_t column = 0; column < columns; column += tile) {
      const size_t column_end = column + tile < columns ? column + tile : columns;
      for (size_t c = column; c < column_end; c++) {
        for (size_t r = row; r < row_end; r++) {
          destination[c * destination_stride + r] = source[r * source_stride + c];
        }
      }
    }
  }
}
