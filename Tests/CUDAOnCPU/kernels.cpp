// The backend's kernels, in the order in which they are one program.
#include "shim.h"

// CUDA's indices are unsigned, and NVRTC does not mind.
#pragma clang diagnostic ignored "-Wsign-compare"

namespace cuda_on_cpu::kernels {

#include "../../Sources/ComputeCUDA/Kernels/Common.cu"
#include "../../Sources/ComputeCUDA/Kernels/Elementwise.cu"
#include "../../Sources/ComputeCUDA/Kernels/Rows.cu"
#include "../../Sources/ComputeCUDA/Kernels/Attention.cu"
#include "../../Sources/ComputeCUDA/Kernels/Triangles.cu"
#include "../../Sources/ComputeCUDA/Kernels/Grids.cu"
#include "../../Sources/ComputeCUDA/Kernels/Descent.cu"
#include "../../Sources/ComputeCUDA/Kernels/Pairs.cu"
#include "../../Sources/ComputeCUDA/Kernels/Outliers.cu"

}  // namespace cuda_on_cpu::kernels
