// Tests of the rounds of streamed pages: every page gets a place that its round's jobs fill, from its own host page,
// and the step's own tokens get slots.
#include "backend/streamed_rounds.h"

#include <map>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/attend_case.h"

namespace hybridgen {
namespace {

constexpr int kPageTokens = 16;
constexpr uint64_t kPageBytes = 1 << 12;

PlanPage Page(uint64_t name, int32_t first_position, int32_t num_tokens = kPageTokens) {
  PlanPage page;
  page.k = name;
  page.v = name + 7;
  page.first_position = first_position;
  page.num_tokens = num_tokens;
  return page;
}

WriteRun Write(uint64_t name, int32_t offset, int32_t token, int32_t num_tokens) {
  WriteRun run;
  run.kind = PageKind::kHost;
  run.k = name;
  run.v = name + 7;
  run.offset = offset;
  run.token = token;
  run.num_tokens = num_tokens;
  return run;
}

TEST(StreamedRoundsTest, RoundsFillTheRingAndSharedPagesAreCopiedOnce) {
  StreamedRounds rounds;
  RoundBuilder builder({2}, kPageTokens, kPageBytes, 1, {}, rounds);
  const std::vector<int32_t> seen = {0};
  const auto expect = [&](RoundBuilder::Place place, int round, int index) {
    EXPECT_EQ(place.round, round);
    EXPECT_EQ(place.index, index);
  };
  expect(builder.Add(Page(100, 0, 5), seen), 0, 0);
  expect(builder.Add(Page(200, 16), seen), 0, 1);
  expect(builder.Add(Page(100, 0, 9), seen), 0, 0);
  expect(builder.Add(Page(300, 16), seen), 1, 0);
  expect(builder.Add(Page(100, 0), seen), 1, 1);
  builder.Finish();
  ASSERT_EQ(rounds.rounds.size(), 2u);
  ASSERT_EQ(rounds.jobs.size(), 4u);
  EXPECT_EQ(rounds.jobs[0].packed_k, 100u);
  EXPECT_EQ(rounds.jobs[0].packed_v, 107u);
  EXPECT_EQ(rounds.jobs[0].num_tokens, 9) << "the most that a reader sees of it";
  EXPECT_EQ(rounds.jobs[1].strided_k, kPageBytes);
  EXPECT_EQ(rounds.jobs_of[1].old_pages.begin, 2);
  EXPECT_EQ(rounds.jobs_of[1].old_pages.end, 4);
}

TEST(StreamedRoundsTest, TokensOfTheStepHaveSlotsAndWholePagesOfThemAreApart) {
  StreamedRounds rounds;
  const std::vector<WriteRun> writes = {Write(200, 5, 3, 11), Write(300, 0, 14, 2), Write(900, 0, 0, 3)};
  RoundBuilder builder({8}, kPageTokens, kPageBytes, 1, writes, rounds);
  const std::vector<int32_t> seen = {0};
  builder.Add(Page(100, 0), seen);
  builder.Add(Page(300, 32, 2), seen);
  builder.Add(Page(200, 16), seen);
  builder.Finish();
  const RingJobs jobs = rounds.jobs_of[0];
  ASSERT_EQ(jobs.old_pages.size(), 2);
  ASSERT_EQ(jobs.new_pages.size(), 1);
  EXPECT_EQ(rounds.jobs[jobs.new_pages.begin].packed_k, 300u);
  const StreamedRound& round = rounds.rounds[0];
  EXPECT_EQ(round.first_token, 3);
  ASSERT_EQ(round.slots.size(), 13);
  for (int t = 0; t < 11; ++t) EXPECT_EQ(rounds.slots[t], 2 * kPageTokens + 5 + t);
  for (int t = 0; t < 2; ++t) EXPECT_EQ(rounds.slots[11 + t], 1 * kPageTokens + t);
}

TEST(StreamedRoundsTest, AWindowNeedsThePagesThatARowSees) {
  StreamedRounds rounds;
  RoundBuilder builder({8}, kPageTokens, kPageBytes, 2, {}, rounds);
  const std::vector<int32_t> first = {0, 16}, second = {0, 15};
  builder.Add(Page(100, 0), first);
  builder.Add(Page(200, 16), first);
  builder.Finish();
  EXPECT_EQ(rounds.jobs_of[0].old_pages.size(), 2);
  ASSERT_EQ(rounds.jobs_of[1].old_pages.size(), 1);
  EXPECT_EQ(rounds.jobs[rounds.jobs_of[1].old_pages.begin].packed_k, 200u);
  rounds.Clear();
  RoundBuilder other({8}, kPageTokens, kPageBytes, 2, {}, rounds);
  other.Add(Page(100, 0), first);
  other.Add(Page(100, 0), second);  // a second reader sees its last token
  other.Finish();
  EXPECT_EQ(rounds.jobs_of[1].old_pages.size(), 1);
}

// Runs the jobs of random rounds on names instead of pages: each reader finds its page where it was told.
TEST(StreamedRoundsTest, EveryReaderFindsItsPageInItsRound) {
  std::mt19937 random(TestSeed("//backend:streamed_rounds_test", 1));
  for (int i = 0; i < 300; ++i) {
    SCOPED_TRACE(i);
    RingLimits limits;
    limits.pages = 1 + random() % 7;
    limits.head_groups = 1 + random() % 2;
    limits.group_bytes = kPageBytes / 2;
    limits.head_group_stride = 1 << 20;
    std::vector<WriteRun> writes;
    int32_t token = 0;
    for (uint64_t name = 1000; name < 12000; name += 1000) {
      if (random() % 3 != 0) continue;
      const int32_t offset = random() % 2 * (1 + random() % 15);
      writes.push_back(Write(name, offset, token, 1 + random() % (kPageTokens - offset)));
      token += writes.back().num_tokens + random() % 3;
    }
    StreamedRounds rounds;
    RoundBuilder builder(limits, kPageTokens, kPageBytes, 1, writes, rounds);
    std::vector<std::pair<uint64_t, RoundBuilder::Place>> readers;
    const std::vector<int32_t> seen = {0};
    for (int n = random() % 40; n > 0; --n) {
      const uint64_t name = 1000 * (1 + random() % 11);
      readers.push_back({name, builder.Add(Page(name, 0), seen)});
    }
    builder.Finish();
    size_t next = 0;
    for (size_t r = 0; r < rounds.rounds.size(); ++r) {
      std::map<uint64_t, uint64_t> ring;  // address in the ring -> address in host memory
      const RingJobs& jobs = rounds.jobs_of[r];
      ASSERT_EQ(jobs.old_pages.end, jobs.new_pages.begin);
      ASSERT_LE(jobs.new_pages.end - jobs.old_pages.begin, limits.pages * limits.head_groups);
      for (int32_t j = jobs.old_pages.begin; j < jobs.new_pages.end; ++j) {
        const cuda::RepackJob& job = rounds.jobs[j];
        ASSERT_TRUE(ring.emplace(job.strided_k, job.packed_k).second) << "two pages in one place";
        ASSERT_EQ(job.packed_v, job.packed_k + 7);
        ASSERT_EQ(job.strided_v, job.strided_k);
      }
      std::map<int64_t, int32_t> token_at;  // slot -> token
      const StreamedRound& round = rounds.rounds[r];
      for (int32_t t = 0; t < round.slots.size(); ++t) {
        const int64_t slot = rounds.slots[round.slots.begin + t];
        if (slot < 0) continue;
        ASSERT_TRUE(token_at.emplace(slot, round.first_token + t).second);
      }
      std::set<int64_t> wanted;
      for (; next < readers.size() && readers[next].second.round == static_cast<int32_t>(r); ++next) {
        const auto& [name, place] = readers[next];
        ASSERT_LT(place.index, limits.pages);
        for (int group = 0; group < limits.head_groups; ++group) {
          ASSERT_EQ(ring[place.index * kPageBytes + group * limits.group_bytes],
                    name + group * limits.head_group_stride);
        }
        for (const WriteRun& run : writes) {
          if (run.k != name) continue;
          for (int32_t t = 0; t < run.num_tokens; ++t) {
            const int64_t slot = int64_t{place.index} * kPageTokens + run.offset + t;
            ASSERT_EQ(token_at[slot], run.token + t);
            wanted.insert(slot);
          }
        }
      }
      ASSERT_EQ(wanted.size(), token_at.size()) << "slots that nobody asked for";
    }
    ASSERT_EQ(next, readers.size()) << "rounds never fall";
  }
}

}  // namespace
}  // namespace hybridgen
