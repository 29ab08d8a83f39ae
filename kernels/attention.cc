// Scratch size of the attention kernels; the kernels themselves are compiled per ISA in kernels/cpu.
#include "kernels/attention.h"

#include "kernels/scratch.h"

namespace hybridgen {

size_t AttendScratchBytes(int head_size) {
  return kScratchAlignment +
         sizeof(float) * (ScratchQueryFloats(head_size) + ScratchScoreFloats() + ScratchKeyFloats(head_size) +
                          ScratchValueFloats(head_size) + ScratchWeightFloats());
}

}  // namespace hybridgen
