#ifndef QUANTEASE_BF16_PRODUCTS_H
#define QUANTEASE_BF16_PRODUCTS_H

#include <stddef.h>
#include <stdint.h>

// Products of matrices whose elements are rounded to bfloat16, summed up in fp32, single-threaded:
// C = A · Bᵀ, A [rows, inner], B [columns, inner].
//
// Both operands are packed beforehand, into panels of 32 rows, padded with zeros; along the inner dimension a panel is cut
// into steps of 32 elements, padded, too. A step is 2 KiB: the tile of rows 0 ..< 16, then that of rows 16 ..< 32. A left
// tile is [row][element], a right tile [pair of elements][row][2]. So every kind of kernels reads the same bytes.
//
// An element of C is summed up in an order that follows from the inner dimension alone, not from what else is computed.

#pragma clang assume_nonnull begin

enum {
  /// Rows of a packed panel, and elements of a step.
  qe_bf16_panel = 32,
  /// Elements of a step of a panel.
  qe_bf16_step = 1024,
};

/// Instructions that multiply pairs of bfloat16. They round in different places, so each has its own bits.
typedef enum {
  /// Any processor's, by conversion to fp32.
  qe_bf16_plain,
  /// AVX-512 BF16.
  qe_bf16_avx512,
  /// AMX BF16.
  qe_bf16_amx,
} qe_bf16_kernels;

/// Whether this processor and its operating system have such instructions. The first call asks the operating system for
/// the state of AMX, for all threads of the process.
int qe_bf16_available(qe_bf16_kernels kernels);

/// Steps of an inner dimension.
static inline ptrdiff_t qe_bf16_steps(ptrdiff_t inner) { return (inner + 31) / 32; }

/// Packs `rows` rows of `inner` elements, times `scale`, as a left operand; row 0 is the first of a panel. Rows up to the
/// panel's end are filled with zeros.
void qe_bf16_pack_left(
    const float *x, ptrdiff_t rows, ptrdiff_t inner, ptrdiff_t stride, float scale, uint16_t *packed);

/// Packs rows `first_row ..< first_row + rows` of a right operand, which is zero before; `packed` is its first panel.
void qe_bf16_pack_right(
    const float *x, ptrdiff_t first_row, ptrdiff_t rows, ptrdiff_t inner, ptrdiff_t stride, uint16_t *packed);

/// Packs the transpose of x as a left and as a right operand: their rows are the columns of x, and their inner dimension
/// is that of the rows of x, of which these are some whole steps, or the last ones.
/// - panel_steps: steps of a panel
/// - left, right: the place of the first step in the first panel; either may be left out
void qe_bf16_pack_transposed(
    const float *x, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t stride, ptrdiff_t panel_steps,
    uint16_t *_Nullable left, uint16_t *_Nullable right);

/// The part of C that is computed.
typedef enum { qe_bf16_all, qe_bf16_lower } qe_bf16_part;

/// C ← A · Bᵀ, or C + A · Bᵀ where `keep` is not 0.
/// - steps: of the inner dimension, the first ones of both operands
/// - a, b: the first panels; `a_steps` and `b_steps` further is the next one
/// - part: with `qe_bf16_lower` C is square and what is above its diagonal stays as it is
void qe_bf16_multiply(
    qe_bf16_kernels kernels, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t steps, const uint16_t *a,
    ptrdiff_t a_steps, const uint16_t *b, ptrdiff_t b_steps, float *c, ptrdiff_t stride, int keep,
    qe_bf16_part part);

#pragma clang assume_nonnull end

#endif
