#include <string.h>

#include "bf16_products.h"
#include "dispatch.h"

enum { tile_rows = 16, step_elements = qe_bf16_panel, tile_elements = qe_bf16_step / 2 };

typedef uint32_t pairs __attribute__((vector_size(64)));

// To nearest, ties to even; NaN stays NaN.
INLINED uint32_t rounded(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  const uint32_t nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return magnitude > 0x7F800000 ? (bits >> 16) | 0x40 : nearest;
}

// The same of sixteen at once.
INLINED void round_each(const float *x, pairs *result) {
  pairs bits;
  memcpy(&bits, x, sizeof bits);
  const pairs nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const pairs is_nan = (pairs)((bits & 0x7FFFFFFF) > 0x7F800000);
  *result = (is_nan & ((bits >> 16) | 0x40)) | (~is_nan & nearest);
}

QE_DISPATCH void qe_bf16_pack_left(
    const float *x, ptrdiff_t rows, ptrdiff_t inner, ptrdiff_t stride, float scale, uint16_t *packed) {
  const ptrdiff_t steps = qe_bf16_steps(inner);
  const ptrdiff_t whole = inner / step_elements * step_elements;
  for (ptrdiff_t row = 0; row < rows; row++, x += stride) {
    uint16_t *line = packed + row / qe_bf16_panel * steps * qe_bf16_step +
                     row % qe_bf16_panel * step_elements;
    for (ptrdiff_t start = 0; start < whole; start += step_elements)
      for (ptrdiff_t i = 0; i < step_elements; i++)
        line[start / step_elements * qe_bf16_step + i] = (uint16_t)rounded(x[start + i] * scale);
    if (whole < inner) {
      uint16_t *last = line + (steps - 1) * qe_bf16_step;
      for (ptrdiff_t i = 0; i < step_elements; i++)
        last[i] = whole + i < inner ? (uint16_t)rounded(x[whole + i] * scale) : 0;
    }
  }
  for (ptrdiff_t row = rows; row % qe_bf16_panel; row++) {
    uint16_t *line = packed + row / qe_bf16_panel * steps * qe_bf16_step +
                     row % qe_bf16_panel * step_elements;
    for (ptrdiff_t step = 0; step < steps; step++)
      memset(line + step * qe_bf16_step, 0, step_elements * sizeof(uint16_t));
  }
}

QE_DISPATCH void qe_bf16_pack_right(
    const float *x, ptrdiff_t first_row, ptrdiff_t rows, ptrdiff_t inner, ptrdiff_t stride, uint16_t *packed) {
  const ptrdiff_t steps = qe_bf16_steps(inner);
  for (ptrdiff_t row = first_row; row < first_row + rows; row++, x += stride) {
    uint16_t *panel = packed + row / qe_bf16_panel * steps * qe_bf16_step;
    uint16_t *lane = panel + row % qe_bf16_panel / tile_rows * tile_elements + row % tile_rows * 2;
    for (ptrdiff_t i = 0; i < inner; i++)
      lane[i / step_elements * qe_bf16_step + i % step_elements / 2 * tile_rows * 2 + i % 2] =
          (uint16_t)rounded(x[i]);
  }
}

// Exchanges rows and columns of 16 × 16 pairs, in four rounds: of pairs of rows 1, 2, 4 and 8 apart.
INLINED void transpose(pairs *rows) {
#define ROUND(distance, low, high)                                                  \
  for (int i = 0; i < tile_rows; i++) {                                             \
    if (i & distance) continue;                                                     \
    const pairs a = rows[i], b = rows[i + distance];                                \
    rows[i] = low;                                                                  \
    rows[i + distance] = high;                                                      \
  }
  ROUND(1, __builtin_shufflevector(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
        __builtin_shufflevector(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
  ROUND(2, __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
        __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
  ROUND(4, __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
        __builtin_shufflevector(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
  ROUND(8, __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
        __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
#undef ROUND
}

// A right tile of 32 rows and 16 columns of x: pairs of rows become pairs of elements.
INLINED void interleave(
    const float *x, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t stride, pairs *tile) {
  for (ptrdiff_t pair = 0; pair < tile_rows; pair++) {
    const float *even = x + 2 * pair * stride, *odd = even + stride;
    if (2 * pair + 1 < rows && columns >= tile_rows) {
      pairs first, second;
      round_each(even, &first);
      round_each(odd, &second);
      tile[pair] = first | second << 16;
    } else {
      for (int i = 0; i < tile_rows; i++) {
        const uint32_t first = i < columns && 2 * pair < rows ? rounded(even[i]) : 0;
        const uint32_t second = i < columns && 2 * pair + 1 < rows ? rounded(odd[i]) : 0;
        tile[pair][i] = first | second << 16;
      }
    }
  }
}

QE_DISPATCH void qe_bf16_pack_transposed(
    const float *x, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t stride, ptrdiff_t panel_steps,
    uint16_t *left, uint16_t *right) {
  pairs tile[tile_rows];
  for (ptrdiff_t row = 0; row < rows; row += step_elements, x += step_elements * stride) {
    const ptrdiff_t first = row / step_elements * qe_bf16_step;
    // Both tiles of the last panel, though it may have columns for one.
    for (ptrdiff_t column = 0; column < (columns + qe_bf16_panel - 1) / qe_bf16_panel * qe_bf16_panel;
         column += tile_rows) {
      interleave(x + column, rows - row, columns - column, stride, tile);
      const ptrdiff_t place = first + column / qe_bf16_panel * panel_steps * qe_bf16_step +
                              column % qe_bf16_panel / tile_rows * tile_elements;
      if (right) memcpy(right + place, tile, sizeof tile);
      if (left) {
        transpose(tile);
        memcpy(left + place, tile, sizeof tile);
      }
    }
  }
}
