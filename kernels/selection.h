// Contract of the kernels that choose tokens and attend chosen ones: logits from K alone, attention over selected
// tokens, page digests and the bounds that they give. Pure functions in the way of attention.h: no allocation, no
// threads, arguments are trusted, all arithmetic is float32, the same call gives the same bits.
//
// Free of library headers, because the sources that are compiled with ISA flags include it.
#ifndef KERNELS_SELECTION_H_
#define KERNELS_SELECTION_H_

#include <cstddef>
#include <cstdint>

#include "kernels/attention.h"
#include "kernels/page_digest.h"

namespace hybridgen {

// Pages are strided or packed; those of 8-bit values (kPackedInt8V1) are not served.
// A token is named by its slot: index of its page in AttendArgs::pages * page_tokens + index in the page.

// Logits of the tile's rows over the pages, those that Attend sees (scale, soft cap, ALiBi; -inf where a row does not
// see the token, or none exists): logits[row * row_stride + slot] for every slot of every page. V is not touched, a
// group of 16 tokens that no row sees is not read. Written around the caches, in whole lines, and fenced: any release
// store after the call publishes them.
//   logits      aligned to 64 bytes, rows * row_stride floats
//   row_stride  floats, a multiple of 16, at least num_pages * page_tokens
//   scratch     AttendScratchBytes(head_size) bytes, aligned to 4
// kInfiniteLogit: a logit is +inf; what was written is then unspecified.
using StoreLogitsFn = KernelResult (*)(const QueryTile& tile, const AttendArgs& args, float* logits, int64_t row_stride,
                                       void* scratch);

// Bins of a histogram of logit exponents.
constexpr int kLogitBins = 64;

// What is known of a row's logits without keeping them; caller-owned, kept between calls, and begun with max = -inf,
// sum = 0 and bins of 0. max and sum are those of RowState: exp(logit - max) / sum is a token's weight.
// The bins count the tokens seen by the power of two that is nearest to exp(logit): with e(x) = round(x / ln 2), bin
// kLogitBins - 1 - j counts those with e(logit) = e(max) - j, and bin 0 all below as well, -inf included. Exact to the
// rounding of x / ln 2 in float32, for |x| < 2^21. Where a logit is NaN, the sum is NaN and the bins only add up.
struct LogitSummary {
  float* max;      // [rows]
  float* sum;      // [rows]
  uint32_t* bins;  // [rows][kLogitBins]
};

// Folds the logits of the pages into `summary`; otherwise as StoreLogitsFn. A caller that wants the set of tokens with
// a weight of tau or more finds tau in the bins (their sum from below bounds the mass that is left out) and visits the
// logits again.
using SummariseLogitsFn = KernelResult (*)(const QueryTile& tile, const AttendArgs& args, LogitSummary summary,
                                           void* scratch);

// Tokens of one KV head, for all rows of the tile.
struct SelectedTokens {
  const int32_t* slots = nullptr;  // [count], ascending; each exists
  int count = 0;
  // Null: computed from K. Else what StoreLogitsFn stored for this tile and these pages, [row][logit_row_stride] by
  // slot; K is then not touched.
  const float* logits = nullptr;
  int64_t logit_row_stride = 0;
};

// Folds the selected tokens, as far as a row sees them, into `state` as AttendFn does, and with its treatment of NaN
// and infinities. No other token has an influence; the other half of a bfloat16 pair of V is all that is loaded of one.
// scratch: AttendScratchBytes(head_size) bytes, aligned to 4.
using AttendSelectedFn = KernelResult (*)(const QueryTile& tile, const AttendArgs& args, const SelectedTokens& selected,
                                          RowState state, void* scratch);

// Builds the digest (page_digest.h) of one page of one layer from its first num_tokens tokens (1 to page_tokens), all
// KV heads of the geometry, which is kPackedV1. digest: DigestLayout::bytes bytes, aligned to 64.
using BuildDigestFn = void (*)(const PageGeometry& geometry, uint64_t k_page, uint64_t v_page, int num_tokens,
                               void* digest);

// Upper bounds of the logits of a page: bounds[row * row_stride + page] is at least every logit that the row sees in
// the page, in exact arithmetic as in that of AttendFn and StoreLogitsFn of any ISA; -inf where the row sees none of
// its tokens; +inf where nothing is known: K of the page or q of the row is not finite, or products may overflow. Soft
// cap (monotone) and ALiBi (by the positions that the row sees in the page) are included. Here KvPage::k is the page's
// digest: k_base + pages[i].k is its address, aligned to 64, and of geometry page_tokens, kv_heads and head_size are
// used. row_stride: floats, at least num_pages. scratch: DigestScratchBytes(head_size) bytes, aligned to 4.
using BoundLogitsFn = void (*)(const QueryTile& tile, const AttendArgs& args, float* bounds, int64_t row_stride,
                               void* scratch);

// The selection kernels of one ISA level, one row of the kernel table.
struct SelectionKernels {
  StoreLogitsFn store_logits = nullptr;
  SummariseLogitsFn summarise_logits = nullptr;
  AttendSelectedFn attend_selected = nullptr;
  BuildDigestFn build_digest = nullptr;
  BoundLogitsFn bound_logits = nullptr;
};

size_t DigestScratchBytes(int head_size);

}  // namespace hybridgen

#endif  // KERNELS_SELECTION_H_
