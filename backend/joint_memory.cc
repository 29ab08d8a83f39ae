#include "backend/joint_memory.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "absl/strings/str_cat.h"

namespace hybridgen {
namespace {

constexpr int64_t kMaxPartBytes = int64_t{1} << 40;  // sums of three cannot overflow

uint64_t RoundUp(int64_t bytes) { return (static_cast<uint64_t>(bytes) + kJointLine - 1) / kJointLine * kJointLine; }

absl::Status CheckPart(const char* field, int64_t bytes) {
  if (bytes >= 1 && bytes <= kMaxPartBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("joint: bytes of ", field, " is ", bytes, "; accepted: 1 to ", kMaxPartBytes));
}

// The word that precedes the answer to `sequence` in its slot.
uint64_t WordBefore(uint64_t sequence) { return JointWord(JointState::kAnswered, sequence - 2); }

bool Exchange(uint64_t* word, uint64_t expected, uint64_t desired) {
  return __atomic_compare_exchange_n(word, &expected, desired, /*weak=*/false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

}  // namespace

absl::StatusOr<std::shared_ptr<void>> AllocatePlainJointMemory(size_t bytes) {
  void* memory = ::operator new(bytes, std::align_val_t(kJointLine), std::nothrow);
  if (memory == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("joint: the system refused ", bytes, " bytes; use smaller batches"));
  }
  return std::shared_ptr<void>(memory, [](void* p) { ::operator delete(p, std::align_val_t(kJointLine)); });
}

absl::StatusOr<std::unique_ptr<JointMemory>> JointMemory::Create(const JointCallBytes& bytes,
                                                                 const JointAllocator& allocate) {
  if (absl::Status status = CheckPart("query", bytes.query); !status.ok()) return status;
  if (absl::Status status = CheckPart("o", bytes.o); !status.ok()) return status;
  if (absl::Status status = CheckPart("lse", bytes.lse); !status.ok()) return status;
  JointTable table = {};
  table.o_offset = RoundUp(bytes.query);
  table.lse_offset = table.o_offset + RoundUp(bytes.o);
  table.slot_bytes = table.lse_offset + RoundUp(bytes.lse);
  const size_t head = sizeof(JointControl) + (kMaxStepsInFlight + 1) * sizeof(PlanLine);
  absl::StatusOr<std::shared_ptr<void>> memory = allocate(head + 2 * table.slot_bytes);
  if (!memory.ok()) return memory.status();
  char* base = static_cast<char*>(memory->get());
  if (reinterpret_cast<uintptr_t>(base) % kJointLine != 0) {
    return absl::InvalidArgumentError(absl::StrCat("joint: the allocator gave an address that is ",
                                                   reinterpret_cast<uintptr_t>(base) % kJointLine, " modulo ",
                                                   kJointLine, "; accepted: 0"));
  }

  std::memset(base, 0, head);
  table.control = new (base) JointControl{};
  table.slots = reinterpret_cast<unsigned char*>(base + head);
  table.control->published.value = kJointFirstSequence - 1;
  for (uint64_t sequence = kJointFirstSequence; sequence < kJointFirstSequence + 2; ++sequence) {
    table.control->answer[sequence & 1].value = WordBefore(sequence);
  }
  std::unique_ptr<JointMemory> joint(new JointMemory());
  joint->memory_ = *std::move(memory);
  joint->table_ = table;
  joint->plans_ = new (base + sizeof(JointControl)) PlanLine[kMaxStepsInFlight + 1]{};
  joint->plans_[kMaxStepsInFlight].plan.first_sequence = kJointIdle;
  return joint;
}

uint64_t JointMemory::Answered() const {
  uint64_t newest = 0;
  for (const JointFlag& flag : table_.control->answer) {
    const uint64_t word = __atomic_load_n(&flag.value, __ATOMIC_ACQUIRE);
    if (JointWordState(word) == JointState::kAnswered) newest = std::max(newest, JointWordSequence(word));
  }
  return newest;
}

bool JointMemory::Answer(uint64_t sequence) {
  return Exchange(AnswerWord(sequence), WordBefore(sequence), JointWord(JointState::kAnswered, sequence));
}

bool JointMemory::Retire(uint64_t sequence) {
  const uint64_t error = JointWord(JointState::kError, sequence);
  if (!Exchange(AnswerWord(sequence), WordBefore(sequence), error)) return false;
  __atomic_store_n(AnswerWord(sequence + 1), error, __ATOMIC_RELEASE);
  return true;
}

}  // namespace hybridgen
