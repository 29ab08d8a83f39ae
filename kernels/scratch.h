// Layout of the scratch memory of one attend call; constants only, shared by its size function and the kernels.
#ifndef KERNELS_SCRATCH_H_
#define KERNELS_SCRATCH_H_

#include "kernels/attention.h"

namespace hybridgen {

// Tokens are attended in chunks of 16-token groups. A chunk holds up to kMaxRuns runs of up to kRunGroups consecutive
// groups of one page each, which are read side by side: the memory system is as fast as it can be only with several
// sequential streams. kChunkGroups is the limit where one block takes all rows of the tile. Several blocks read a chunk
// once each, so it stays small enough (kSharedChunkGroups) for the second-level cache.
constexpr int kMaxRuns = 8;
constexpr int kRunGroups = 8;
constexpr int kChunkGroups = 32;
constexpr int kSharedChunkGroups = 8;

// Query rows that share every load of K and V; the largest over all ISA levels (two matrix tiles of 16).
constexpr int kMaxRowBlock = 32;

// Floats between the score rows of two query rows. The last group is never used: rows 512 bytes apart would
// compete for the same cache sets.
constexpr int kScoreStride = (kChunkGroups + 1) * 16;

// Where the parts begin, in bytes: a vector that lies across two cache lines costs two loads.
constexpr size_t kScratchAlignment = 64;

// Floats of each part, in this order; each a multiple of 16. Internal linkage for the sake of the ISA sources.
static constexpr size_t ScratchQueryFloats(int head_size) { return static_cast<size_t>(kMaxTileRows) * head_size; }
static constexpr size_t ScratchScoreFloats() { return static_cast<size_t>(kMaxRowBlock) * kScoreStride; }
static constexpr size_t ScratchKeyFloats(int head_size) {
  return static_cast<size_t>(kSharedChunkGroups) * 16 * head_size;
}
// V in another form, of as many tokens as there is room for K: rows of selected tokens, or matrix tiles.
static constexpr size_t ScratchValueFloats(int head_size) {
  return static_cast<size_t>(kSharedChunkGroups) * 16 * ((head_size + 15) / 16 * 16);
}
// For matrix tiles: the weights of a block of rows as the sum of three bfloat16 each, [term][row][token], kChunkGroups
// of them for 16 rows or kSharedChunkGroups for 32. The 16 floats behind a row keep the rows out of the same cache
// sets.
constexpr int kWeightTerms = 3;
static constexpr int WeightRowFloats(int rows) { return (rows <= 16 ? kChunkGroups : kSharedChunkGroups) * 8 + 16; }
static constexpr size_t ScratchWeightFloats() { return static_cast<size_t>(kWeightTerms) * 16 * WeightRowFloats(16); }
static_assert(2 * WeightRowFloats(32) <= WeightRowFloats(16), "32 rows fit as well");

// Of digest bounds, which have no other parts: queries split by sign.
static constexpr size_t ScratchSignedQueryFloats(int head_size) {
  return static_cast<size_t>(kMaxTileRows) * 2 * ((head_size + 15) / 16 * 16);
}

}  // namespace hybridgen

#endif  // KERNELS_SCRATCH_H_
