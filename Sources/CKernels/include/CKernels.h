#ifndef QUANTEASE_CKERNELS_H
#define QUANTEASE_CKERNELS_H
#include "bf16_products.h"
#include "elementwise.h"
#include "grid_sweeps.h"
#include "nearest_plane.h"
#include "outlier_sweeps.h"
#endif
