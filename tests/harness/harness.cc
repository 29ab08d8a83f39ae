// One run: creates a backend, binds poisoned memory, and steps sequences through it.
#include "tests/harness/harness.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/harness/buffers.h"
#include "tests/harness/reference.h"
#include "tests/harness/sequences.h"

namespace hybridgen {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

struct BackendDeleter {
  const Library* library;
  void operator()(hg_backend* backend) const { library->backend_destroy(backend); }
};
struct PlanDeleter {
  const Library* library;
  void operator()(hg_plan* plan) const { library->plan_destroy(plan); }
};

class Run {
 public:
  Run(const Library& library, const HarnessOptions& options)
      : library_(library),
        options_(options),
        sequences_(options),
        reference_(options),
        backend_(nullptr, BackendDeleter{&library}),
        plan_(nullptr, PlanDeleter{&library}) {}

  absl::Status SetUp();
  absl::Status Round();
  absl::Status TearDown();
  HarnessReport TakeReport() { return std::move(report_); }

 private:
  absl::Status AddLayers();
  absl::Status BindIdentity();
  absl::Status BindTiered();
  absl::Status FinishRequests();
  absl::Status AnnounceBlocks(const std::vector<StepEntry>& step);
  absl::Status Plan(const std::vector<StepEntry>& step);
  absl::Status Forward(const std::vector<StepEntry>& step, int layer);
  void FillInputs(const std::vector<StepEntry>& step, int layer);
  absl::Status StatsJson(std::string* json);

  const Library& library_;
  const HarnessOptions& options_;
  Sequences sequences_;
  Reference reference_;
  std::unique_ptr<hg_backend, BackendDeleter> backend_;
  std::unique_ptr<hg_plan, PlanDeleter> plan_;
  std::vector<std::unique_ptr<GuardedBuffer>> engine_tensors_;  // one per layer
  std::unique_ptr<TokenTensor> query_, key_, value_, output_;
  int64_t steps_ = 0;
  double seconds_ = 0;  // of library calls in the present step
  HarnessReport report_;
};

absl::Status Run::SetUp() {
  report_.build_info = library_.build_info();
  hg_backend* backend = nullptr;
  absl::Status status = library_.ToStatus(library_.backend_create(&options_.config, &backend));
  if (!status.ok()) return status;
  backend_.reset(backend);
  status = AddLayers();
  if (!status.ok()) return status;
  const hg_config& config = options_.config;
  query_ =
      std::make_unique<TokenTensor>(options_.step_tokens, options_.num_query_heads, config.head_size, options_.dtype());
  output_ =
      std::make_unique<TokenTensor>(options_.step_tokens, options_.num_query_heads, config.head_size, options_.dtype());
  key_ = std::make_unique<TokenTensor>(options_.step_tokens, config.num_kv_heads, config.head_size, options_.dtype());
  value_ = std::make_unique<TokenTensor>(options_.step_tokens, config.num_kv_heads, config.head_size, options_.dtype());
  return config.binding == HG_BINDING_TIERED ? BindTiered() : BindIdentity();
}

absl::Status Run::AddLayers() {
  for (int i = 0; i < options_.num_layers; ++i) {
    hg_layer layer = {};
    layer.struct_size = sizeof(layer);
    layer.num_query_heads = options_.num_query_heads;
    layer.scale = reference_.scale();
    layer.soft_cap = options_.soft_cap;
    layer.sliding_window = options_.sliding_window;
    layer.alibi_slopes = reference_.alibi_slopes();
    layer.sinks = reference_.sinks();
    int32_t index = -1;
    const absl::Status status = library_.ToStatus(library_.backend_add_layer(backend_.get(), &layer, &index));
    if (!status.ok()) return status;
    if (index != i) return absl::DataLossError(absl::StrCat("layer ", i, " got index ", index));
  }
  return absl::OkStatus();
}

absl::Status Run::BindIdentity() {
  const hg_config& config = options_.config;
  hg_pool pool = {};
  pool.struct_size = sizeof(pool);
  pool.num_blocks = sequences_.num_blocks();
  pool.token_stride = 2 * config.head_size;
  pool.head_stride = config.block_size * pool.token_stride;
  pool.block_stride = config.num_kv_heads * pool.head_stride;
  for (int layer = 0; layer < options_.num_layers; ++layer) {
    engine_tensors_.push_back(
        std::make_unique<GuardedBuffer>(DTypeSize(options_.dtype()) * pool.num_blocks * pool.block_stride));
    pool.layer = layer;
    pool.data = engine_tensors_.back()->data();
    const absl::Status status = library_.ToStatus(library_.backend_bind_identity(backend_.get(), &pool));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Run::BindTiered() {
  const hg_config& config = options_.config;
  const int64_t page_bytes = static_cast<int64_t>(DTypeSize(options_.dtype())) * config.num_kv_heads *
                             config.block_size * 2 * config.head_size;
  hg_regions regions = {};
  regions.struct_size = sizeof(regions);
  regions.num_layers = options_.num_layers;
  regions.bytes =
      options_.device_bytes > 0 ? options_.device_bytes / options_.num_layers : sequences_.num_blocks() * page_bytes;
  regions.num_blocks = sequences_.num_blocks();
  std::vector<void*> data;
  for (int layer = 0; layer < options_.num_layers; ++layer) {
    engine_tensors_.push_back(std::make_unique<GuardedBuffer>(regions.bytes));
    data.push_back(engine_tensors_.back()->data());
  }
  regions.data = data.data();
  return library_.ToStatus(library_.backend_bind_tiered(backend_.get(), &regions));
}

absl::Status Run::Round() {
  absl::Status status = FinishRequests();
  if (!status.ok()) return status;
  sequences_.Begin();
  reference_.Begin();
  for (std::vector<StepEntry> step = sequences_.NextStep(); !step.empty(); step = sequences_.NextStep()) {
    bool prefill = false;
    int64_t tokens = 0;
    for (const StepEntry& entry : step) {
      const Sequence& sequence = sequences_.all()[entry.sequence];
      prefill |= sequence.computed_tokens < sequence.prompt_tokens;
      tokens += entry.num_tokens;
    }
    Phase& phase = prefill ? report_.prefill : report_.decode;
    if (phase.stats_before.empty()) {
      status = StatsJson(&phase.stats_before);
      if (!status.ok()) return status;
    }
    seconds_ = 0;
    status = AnnounceBlocks(step);
    if (status.ok()) status = Plan(step);
    for (int layer = 0; layer < options_.num_layers && status.ok(); ++layer) status = Forward(step, layer);
    if (!status.ok()) return status;
    ++phase.steps;
    phase.tokens += tokens;
    phase.seconds += seconds_;
    ++steps_;
    sequences_.Finish(step);
    status = StatsJson(&phase.stats_after);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Run::FinishRequests() {
  std::vector<hg_request_delta> deltas;
  for (const Sequence& sequence : sequences_.all()) {
    if (sequence.announced_blocks == 0) continue;
    hg_request_delta delta = {};
    delta.struct_size = sizeof(delta);
    delta.event = HG_REQUEST_FINISH;
    delta.request = sequence.request;
    deltas.push_back(delta);
  }
  if (deltas.empty()) return absl::OkStatus();
  return library_.ToStatus(
      library_.backend_update_requests(backend_.get(), deltas.data(), static_cast<int32_t>(deltas.size())));
}

absl::Status Run::AnnounceBlocks(const std::vector<StepEntry>& step) {
  if (options_.tables != TableSource::kMirror) return absl::OkStatus();
  std::vector<hg_request_delta> deltas;
  for (const StepEntry& entry : step) {
    Sequence& sequence = sequences_.all()[entry.sequence];
    const int blocks = static_cast<int>(sequence.blocks.size());
    if (sequence.announced_blocks == blocks) continue;
    hg_request_delta delta = {};
    delta.struct_size = sizeof(delta);
    delta.event = sequence.announced_blocks == 0 ? HG_REQUEST_SET : HG_REQUEST_APPEND;
    delta.request = sequence.request;
    delta.blocks = sequence.blocks.data() + sequence.announced_blocks;
    delta.num_blocks = blocks - sequence.announced_blocks;
    deltas.push_back(delta);
    sequence.announced_blocks = blocks;
  }
  if (deltas.empty()) return absl::OkStatus();
  return library_.ToStatus(
      library_.backend_update_requests(backend_.get(), deltas.data(), static_cast<int32_t>(deltas.size())));
}

absl::Status Run::Plan(const std::vector<StepEntry>& step) {
  constexpr int kTail = 3;                     // entries behind the longest table
  constexpr int32_t kAbsurdBlock = 0x7ffffff;  // never looked at
  const int64_t row = sequences_.max_blocks_per_sequence() + kTail;
  std::vector<int32_t> query_start = {0}, seq_lens, tables(step.size() * row, kAbsurdBlock);
  std::vector<uint64_t> requests;
  std::vector<int64_t> slots;
  for (size_t i = 0; i < step.size(); ++i) {
    const Sequence& sequence = sequences_.all()[step[i].sequence];
    query_start.push_back(query_start.back() + step[i].num_tokens);
    seq_lens.push_back(sequence.computed_tokens + step[i].num_tokens);
    requests.push_back(sequence.request);
    std::copy(sequence.blocks.begin(), sequence.blocks.end(), tables.begin() + i * row);
    for (int position = sequence.computed_tokens; position < seq_lens.back(); ++position) {
      const int block_size = options_.config.block_size;
      slots.push_back(int64_t{sequence.blocks[position / block_size]} * block_size + position % block_size);
    }
  }
  hg_batch batch = {};
  batch.struct_size = sizeof(batch);
  batch.num_sequences = static_cast<int32_t>(step.size());
  batch.query_start = query_start.data();
  batch.seq_lens = seq_lens.data();
  batch.causal = options_.mask == Mask::kCausal;
  if (options_.tables == TableSource::kMirror) {
    batch.requests = requests.data();
  } else {
    batch.block_tables = tables.data();
    batch.block_table_stride = row;
  }
  // Both ways to say where tokens go: the slot mapping, and leaving it to table and position.
  if (options_.config.binding == HG_BINDING_IDENTITY && steps_ % 2 == 1) {
    batch.slot_mapping = slots.data();
    batch.num_slots = static_cast<int64_t>(slots.size());
  }
  hg_plan* plan = plan_.release();
  const Clock::time_point begin = Clock::now();
  const hg_status status = library_.backend_plan_step(backend_.get(), &batch, &plan);
  seconds_ += SecondsSince(begin);
  plan_.reset(plan);
  return library_.ToStatus(status);
}

void Run::FillInputs(const std::vector<StepEntry>& step, int layer) {
  int row = 0;
  for (const StepEntry& entry : step) {
    const int first = sequences_.all()[entry.sequence].computed_tokens;
    for (int i = 0; i < entry.num_tokens; ++i, ++row) {
      reference_.Generate(layer, entry.sequence, first + i, row, query_.get(), key_.get(), value_.get());
    }
  }
}

absl::Status Run::Forward(const std::vector<StepEntry>& step, int layer) {
  const bool check = options_.check == Check::kOracle;
  // A timing run feeds the first step's tokens again: attention takes as long on any values.
  if (check || steps_ == 0) FillInputs(step, layer);
  if (check) output_->Poison();
  const auto tensor = [](TokenTensor& t) { return hg_tensor{t.data(), t.token_stride(), t.head_stride()}; };
  const hg_tensor query = tensor(*query_), key = tensor(*key_), value = tensor(*value_), output = tensor(*output_);
  const Clock::time_point begin = Clock::now();
  const hg_status status = library_.backend_forward(backend_.get(), plan_.get(), layer, &query, &key, &value, &output);
  seconds_ += SecondsSince(begin);
  if (status != HG_OK || !check) return library_.ToStatus(status);

  int row = 0;
  for (const StepEntry& entry : step) {
    const int length = sequences_.all()[entry.sequence].computed_tokens + entry.num_tokens;
    const absl::Status wrong = reference_.Compare(layer, entry.sequence, length, entry.num_tokens, row, output_.get(),
                                                  &report_.checked_rows, &report_.largest_error);
    if (!wrong.ok()) return absl::DataLossError(absl::StrCat("step ", steps_, ": ", wrong.message()));
    row += entry.num_tokens;
  }
  if (!output_->SurroundingsIntact(row)) {
    return absl::DataLossError(absl::StrCat("step ", steps_, ", layer ", layer, ": written around the output"));
  }
  return absl::OkStatus();
}

absl::Status Run::StatsJson(std::string* json) {
  size_t needed = 0;
  hg_status status = library_.backend_stats_json(backend_.get(), nullptr, 0, &needed);
  if (status != HG_OK) return library_.ToStatus(status);
  json->resize(needed + 256);  // counters may grow by a digit between the two calls
  status = library_.backend_stats_json(backend_.get(), json->data(), json->size(), &needed);
  if (status != HG_OK) return library_.ToStatus(status);
  json->resize(needed - 1);
  return absl::OkStatus();
}

absl::Status Run::TearDown() {
  absl::Status status = StatsJson(&report_.stats);
  if (!status.ok()) return status;
  plan_.reset();
  backend_.reset();
  for (size_t layer = 0; layer < engine_tensors_.size(); ++layer) {
    if (!engine_tensors_[layer]->RedZonesIntact()) {
      return absl::DataLossError(absl::StrCat("written outside the engine's tensor of layer ", layer));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<HarnessReport> RunHarness(const Library& library, const HarnessOptions& options) {
  if (options.prompt_tokens.empty() || options.step_tokens < 1 + options.draft_tokens || options.num_layers < 1) {
    return absl::InvalidArgumentError(
        "a run needs at least one prompt, one layer, and step_tokens of at least 1 + draft_tokens");
  }
  Run run(library, options);
  absl::Status status = run.SetUp();
  for (int round = 0; round < options.rounds && status.ok(); ++round) status = run.Round();
  if (status.ok()) status = run.TearDown();
  if (!status.ok()) return status;
  return run.TakeReport();
}

}  // namespace hybridgen
