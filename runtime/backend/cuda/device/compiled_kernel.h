// What the loaded kernels were compiled for: a build for older devices only runs on a newer one
// too, from its PTX, but without the code for what the newer one has. So features are asked of a
// kernel, not of the device, and of one for all, which are compiled alike. Host.
#pragma once

namespace moed::backend {

// Whether the code between `#if __CUDA_ARCH__ >= 900` is in them, on the device that was current
// at the first call. Any thread.
bool KernelsAreCompiledForHopper();

}  // namespace moed::backend
