// Tests of the CPU's part of a shared call: its attention against the oracle, and its answers to the joint's calls.
#include "tests/gpu/host_part.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/attend_case.h"
#include "kernels/testing/red_zone.h"
#include "tests/oracle/attention_oracle.h"

namespace hybridgen {
namespace {

// A part with random data, and what the oracle says of a query.
class PartTest : public testing::Test {
 protected:
  PartTest() : random_(TestSeed("//tests/gpu:host_part_test", 1)) {}

  void Make(const HostPartOptions& o, SpinPool* pool) {
    options_ = o;
    heads_ = o.kv_heads * o.group;
    key_ = Random(static_cast<size_t>(o.num_tokens) * o.kv_heads * o.head_size);
    value_ = Random(key_.size());
    pages_.assign(HostPart::PageBytes(o) + 64, '\xff');
    char* const aligned = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(pages_.data()) + 63) / 64 * 64);
    part_ = std::make_unique<HostPart>(o, aligned, pool);
    part_->Write(key_.data(), value_.data());
  }

  std::vector<uint16_t> Random(size_t count) {
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    std::vector<uint16_t> x(count);
    for (size_t i = 0; i < count; ++i) WriteElement(options_.dtype, x.data(), i, uniform(random_));
    return x;
  }

  void Expect(const std::vector<uint16_t>& query, const float* o, const float* lse) {
    OracleInput in;
    in.num_tokens = 1;
    in.query_heads = heads_;
    in.kv_heads = options_.kv_heads;
    in.head_size = options_.head_size;
    in.query = [&](int, int head, int dim) {
      return ReadElement(options_.dtype, query.data(), head * options_.head_size + dim);
    };
    const auto element = [&](const std::vector<uint16_t>& x, int position, int head, int dim) {
      const int64_t token = position - options_.first_position;
      return ReadElement(options_.dtype, x.data(), (token * options_.kv_heads + head) * options_.head_size + dim);
    };
    in.key = [&](int position, int head, int dim) { return element(key_, position, head, dim); };
    in.value = [&](int position, int head, int dim) { return element(value_, position, head, dim); };
    in.scale = 1.0f / std::sqrt(static_cast<float>(options_.head_size));
    const int32_t end = options_.first_position + options_.num_tokens;
    in.query_position = {end};
    in.kv_begin = {options_.first_position};
    in.kv_end = {end};
    const std::vector<OracleRow> rows = AttendOracle(in);
    constexpr int kMostSplits = 8;
    for (int head = 0; head < heads_; ++head) {
      for (int dim = 0; dim < options_.head_size; ++dim) {
        ASSERT_NEAR(o[head * options_.head_size + dim], rows[head].o[dim],
                    OutputTolerance(rows[head], DType::kFloat32, kMostSplits));
      }
      if (options_.num_tokens == 0) {
        ASSERT_EQ(lse[head], -INFINITY);
      } else {
        ASSERT_NEAR(lse[head], rows[head].lse, LseTolerance(rows[head], kMostSplits));
      }
    }
  }

  std::mt19937 random_;
  HostPartOptions options_;
  int heads_ = 0;
  std::vector<uint16_t> key_, value_;
  std::vector<char> pages_;
  std::unique_ptr<HostPart> part_;
};

TEST_F(PartTest, EqualsTheOracle) {
  for (int threads : {0, 2}) {
    SpinPool pool(threads);
    for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      for (int head_size : {64, 96, 128}) {
        for (int group : {1, 4}) {
          for (int tokens : {0, 1, 17, 255, 257, 1000}) {
            SCOPED_TRACE(testing::Message() << DTypeName(dtype) << " head size " << head_size << " group " << group
                                            << " tokens " << tokens << " threads " << threads);
            Make({dtype, 2, group, head_size, tokens % 2 == 0 ? 32 : 16, 48, tokens}, &pool);
            RedZoned<float> o(heads_ * head_size), lse(heads_);
            const std::vector<uint16_t> query = Random(heads_ * head_size);
            for (int repeat = 0; repeat < 2; ++repeat) {
              ASSERT_TRUE(part_->Attend(query.data(), o.data(), lse.data()));
              Expect(query, o.data(), lse.data());
              ASSERT_TRUE(o.Intact() && lse.Intact());
            }
            ASSERT_FALSE(HasFatalFailure());
          }
        }
      }
    }
  }
}

TEST_F(PartTest, AnInfiniteLogitIsReported) {
  SpinPool pool(1);
  Make({DType::kBFloat16, 1, 1, 64, 16, 0, 40}, &pool);
  std::vector<uint16_t> query(64, 0x7f7f), key(40 * 64, 0x7f7f);  // the largest finite number
  part_->Write(key.data(), value_.data());
  RedZoned<float> o(64), lse(1);
  EXPECT_FALSE(part_->Attend(query.data(), o.data(), lse.data()));
}

// A joint in plain memory, with the test as the device.
class ServeTest : public PartTest {
 protected:
  void MakeTable() {
    constexpr size_t kSlot = 1 << 14;
    memory_ = std::make_unique<Memory>();
    table_.control = &memory_->control;
    table_.slots = memory_->slots;
    table_.slot_bytes = kSlot;
    table_.o_offset = 4096;
    table_.lse_offset = 3 * 4096;
  }
  void Publish(uint64_t sequence, const std::vector<uint16_t>& query) {
    std::memcpy(JointSlot(table_, sequence), query.data(), 2 * query.size());
    __atomic_store_n(&memory_->control.published.value, sequence, __ATOMIC_RELEASE);
  }
  uint64_t Answer(uint64_t sequence) {
    const uint64_t* word = &memory_->control.answer[sequence & 1].value;
    while (JointWordSequence(__atomic_load_n(word, __ATOMIC_ACQUIRE)) != sequence) std::this_thread::yield();
    return *word;
  }

  struct Memory {
    JointControl control = {};
    alignas(kJointLine) unsigned char slots[2 << 14];
  };
  std::unique_ptr<Memory> memory_;
  JointTable table_ = {};
};

TEST_F(ServeTest, AnswersEveryCallInItsSlot) {
  SpinPool pool(1);
  Make({DType::kFloat16, 2, 2, 64, 16, 32, 300}, &pool);
  MakeTable();
  uint64_t served = 0;
  std::thread server([&] { served = Serve(table_, 7, 6, *part_); });
  for (uint64_t s = 7; s < 13; ++s) {
    const std::vector<uint16_t> query = Random(heads_ * 64);
    Publish(s, query);
    EXPECT_EQ(Answer(s), JointWord(JointState::kAnswered, s));
    const unsigned char* const slot = JointSlot(table_, s);
    Expect(query, reinterpret_cast<const float*>(slot + table_.o_offset),
           reinterpret_cast<const float*>(slot + table_.lse_offset));
  }
  server.join();
  EXPECT_EQ(served, 6u);
}

TEST_F(ServeTest, EndsWhenTheDeviceGaveUp) {
  SpinPool pool(0);
  Make({DType::kFloat16, 1, 1, 64, 16, 0, 16}, &pool);
  MakeTable();
  memory_->control.device_failure.value = JointWord(JointState::kError, 7);
  EXPECT_EQ(Serve(table_, 7, 6, *part_), 0u);
}

TEST_F(ServeTest, AnInfiniteLogitIsAnsweredWithAnError) {
  SpinPool pool(0);
  Make({DType::kBFloat16, 1, 1, 64, 16, 0, 40}, &pool);
  MakeTable();
  const std::vector<uint16_t> query(64, 0x7f7f), key(40 * 64, 0x7f7f);
  part_->Write(key.data(), value_.data());
  Publish(7, query);
  EXPECT_EQ(Serve(table_, 7, 6, *part_), 0u);
  EXPECT_EQ(Answer(7), JointWord(JointState::kError, 7));
}

TEST(SpinPoolTest, EveryIndexOnce) {
  for (int threads : {0, 1, 4}) {
    SpinPool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads + 1);
    for (int count : {0, 1, 3, 100}) {
      std::vector<std::atomic<int>> seen(count);
      pool.ParallelFor(count, [&](int i) { ++seen[i]; });
      for (int i = 0; i < count; ++i) ASSERT_EQ(seen[i], 1);
    }
  }
}

TEST(ReadCeilingTest, IsAPositiveNumber) {
  SpinPool pool(1);
  std::vector<char> memory((1 << 20) + 64);
  const char* const aligned = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
  EXPECT_GT(ReadCeiling(pool, aligned, 1 << 20), 0.0);
  EXPECT_GE(CpusOfProcess(), 1);
  EXPECT_STRNE(CpuModel(), "");
}

}  // namespace
}  // namespace hybridgen
