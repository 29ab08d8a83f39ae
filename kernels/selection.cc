// Scratch sizes of the selection kernels; the kernels themselves are compiled per ISA in kernels/cpu.
#include "kernels/selection.h"

#include "kernels/scratch.h"

namespace hybridgen {

size_t SelectedScratchBytes(int head_size) {
  return AttendScratchBytes(head_size) + sizeof(float) * ScratchValueFloats(head_size);
}

size_t DigestScratchBytes(int head_size) {
  return kScratchAlignment + sizeof(float) * ScratchSignedQueryFloats(head_size);
}

}  // namespace hybridgen
