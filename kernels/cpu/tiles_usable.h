// Whether matrix tiles (AMX) that the CPU has may be used, and compute what they should.
#ifndef KERNELS_CPU_TILES_USABLE_H_
#define KERNELS_CPU_TILES_USABLE_H_

#include <string>

#include "kernels/cpu/tile_config.h"

namespace hybridgen {

// Empty if this process may use tiles, else why not. Requires the CPU features amx-tile and amx-bf16. Asks Linux for
// the permission, which holds for all threads of the process, those to come and its forks included. Linux refuses while
// a thread has an alternate signal stack too small for the registers (8 KiB of tiles), and sigaltstack() refuses such a
// stack afterwards. Then configures tiles, reads the configuration back and compares a product that is known.
std::string WhyTilesAreUnusable();

// The last part alone, for tests: what is wrong with a configuration read back and with the 2 x 2 product
// [1 2; 3 4] * [5 7; 6 8]; empty if nothing is.
std::string JudgeTiles(const TileConfig& written, const TileConfig& read, const float (&product)[2][2]);

}  // namespace hybridgen

#endif  // KERNELS_CPU_TILES_USABLE_H_
