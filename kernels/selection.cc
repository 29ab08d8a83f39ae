// Scratch size of the selection kernels; the kernels themselves are compiled per ISA in kernels/cpu.
#include "kernels/selection.h"

#include "kernels/scratch.h"

namespace hybridgen {

size_t DigestScratchBytes(int head_size) {
  return kScratchAlignment + sizeof(float) * ScratchSignedQueryFloats(head_size);
}

}  // namespace hybridgen
