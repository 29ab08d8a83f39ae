/* C ABI of HybridGen (libhybridgen.so): paged attention whose KV cache spans device, DRAM and CXL tiers.
 *
 * Conventions
 *  - Every function that can fail returns hg_status; hg_last_error() holds the message of the calling thread's last
 *    failure: operation, field, value, accepted values, what to change. No exception and no exit crosses this ABI.
 *  - Structs begin with struct_size = sizeof(the struct) as the caller compiled it; new fields are appended.
 *  - Pointers are borrowed for the call unless the comment says otherwise. Strides are in elements.
 *  - One hg_backend is driven by one thread at a time; several backends may live in one process.
 *  - After fork() the child gets HG_FAILED_PRECONDITION from every call on an inherited backend.
 */
#ifndef BACKEND_HYBRIDGEN_H_
#define BACKEND_HYBRIDGEN_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HG_ABI_VERSION 1
#define HG_EXPORT __attribute__((visibility("default")))

/* Values equal absl::StatusCode. */
typedef enum hg_status {
  HG_OK = 0,
  HG_INVALID_ARGUMENT = 3,
  HG_DEADLINE_EXCEEDED = 4,
  HG_RESOURCE_EXHAUSTED = 8,
  HG_FAILED_PRECONDITION = 9,
  HG_UNIMPLEMENTED = 12,
  HG_INTERNAL = 13,
  HG_UNAVAILABLE = 14
} hg_status;

typedef enum hg_dtype {
  HG_FLOAT32 = 0,
  HG_FLOAT16 = 1,
  HG_BFLOAT16 = 2,
  HG_FLOAT8_E4M3 = 3, /* KV only: no infinity, largest value 448 */
  HG_FLOAT8_E5M2 = 4  /* KV only */
} hg_dtype;

/* Who does the device tier's work. */
typedef enum hg_device_kind {
  HG_DEVICE_CPU = 0,      /* no accelerator: CPU threads do everything */
  HG_DEVICE_EMULATED = 1, /* some threads and their own pool stand for the accelerator */
  HG_DEVICE_CUDA = 2
} hg_device_kind;

typedef enum hg_binding {
  HG_BINDING_IDENTITY = 0, /* the engine's tensor is the cache; block id = device slot */
  HG_BINDING_TIERED = 1    /* the engine's tensor is the device tier; block ids range over all tiers */
} hg_binding;

typedef enum hg_executor {
  HG_EXECUTOR_AUTO = 0, /* the engine's OpenMP team in the cpu kind if one is loaded, else an own pool */
  HG_EXECUTOR_OPENMP = 1,
  HG_EXECUTOR_POOL = 2
} hg_executor;

/* How the pages of the host tiers are placed (docs/block_manager.md). */
typedef enum hg_placement {
  HG_PLACEMENT_AUTO = 0,         /* proportional where the bandwidths of both tiers are known, else role */
  HG_PLACEMENT_ROLE = 1,         /* K in DRAM first; V in what DRAM has left, then CXL */
  HG_PLACEMENT_PROPORTIONAL = 2, /* K in DRAM first; V spread so that DRAM and CXL finish together */
  HG_PLACEMENT_INTERLEAVE = 3    /* both roles by weight, as the kernel interleaves: to compare with */
} hg_placement;

/* How the host tiers store K and V (docs/block_manager.md). */
typedef enum hg_host_page_format {
  HG_HOST_PAGES_EXACT = 0, /* in the model's dtype */
  HG_HOST_PAGES_INT8 = 1   /* 8 bits and a scale for each token and KV head: what is published is rounded */
} hg_host_page_format;

/* When digests of host pages are built (docs/block_manager.md). */
typedef enum hg_page_digests {
  HG_PAGE_DIGESTS_NONE = 0,
  HG_PAGE_DIGESTS_ON_PUBLISH = 1 /* when a block is published */
} hg_page_digests;

typedef enum hg_isa {
  HG_ISA_AUTO = -1,
  HG_ISA_PORTABLE = 0,
  HG_ISA_AVX2 = 1,
  HG_ISA_AVX512 = 2,
  HG_ISA_AVX512_BF16 = 3,
  HG_ISA_AMX_BF16 = 4,   /* above AVX512_BF16 */
  HG_ISA_AVX512_VNNI = 5 /* above AVX512, below AVX512_BF16 */
} hg_isa;

typedef struct hg_backend hg_backend;
typedef struct hg_plan hg_plan;

/* Zero-initialise, set struct_size, then fill in. Zero means "default" where a default is named. */
typedef struct hg_config {
  uint32_t struct_size;
  int32_t device_kind; /* hg_device_kind */
  int32_t binding;     /* hg_binding */
  int32_t executor;    /* hg_executor */
  int32_t isa;         /* hg_isa; note that zero is PORTABLE */
  int32_t dtype;       /* hg_dtype of queries, new KV and output */
  int32_t num_kv_heads;
  int32_t head_size;          /* multiple of 8 up to 256, or 512 */
  int32_t block_size;         /* tokens, multiple of 16 */
  int32_t num_threads;        /* CPU worker; 0: all CPUs this process may use (emulated: less device_threads) */
  int32_t device_threads;     /* emulated device; 0: 1 */
  int32_t speculative_tokens; /* draft tokens a step may write and later reject; delays publishing */
  int64_t dram_bytes;         /* host tiers of the tiered binding, all layers together; reserved in full at bind */
  int64_t cxl_bytes;
  int32_t dram_node;                  /* NUMA node; -1: wherever the process allocates */
  int32_t cxl_node;                   /* NUMA node; -1: none, the tier is plain memory and reports itself as emulated */
  double streaming_share;             /* f in [0, 1]: share of host-resident tokens that the device attends */
  double device_gigabytes_per_second; /* emulated device: pace its reads to this rate; 0: unpaced */
  double timeout_seconds;             /* watchdog of every wait; 0: 60 */
  const int32_t* cpus;                /* [num_cpus] own threads are pinned to these CPUs; null: not pinned. Copied. */
  int32_t num_cpus;
  int32_t reserved;               /* was padding; not read */
  int32_t placement;              /* hg_placement */
  int32_t interleave_dram_weight; /* pages to DRAM for every interleave_cxl_weight pages to CXL; 0: 1 */
  int32_t interleave_cxl_weight;
  const char* cxl_device;            /* "/dev/daxX.Y": the CXL tier is this device's memory; null: none. Copied. */
  double dram_gigabytes_per_second;  /* pace the CPU worker's reads of the tier, which then counts as emulated; */
  double cxl_gigabytes_per_second;   /* CXL only where it is plain memory (no cxl_node, no cxl_device); 0: unpaced */
  double mover_gigabytes_per_second; /* budget of migrations between host tiers; 0: none are made */
  int32_t head_groups; /* parts of the KV heads, each with a DRAM node of its own; 0: one for each DRAM node with CPUs;
                          a number that the machine does not have is emulated, without binding */
  int32_t cuda_device; /* cuda kind: ordinal of the GPU as this process sees it */
  int32_t kv_dtype;    /* of the KV cache: HG_FLOAT8_E4M3, HG_FLOAT8_E5M2, or 0: dtype */
  int32_t host_page_format; /* hg_host_page_format; INT8 needs the tiered binding; refused for the cuda kind and beside
                               a kv_dtype */
  /* cuda kind: what the largest graph is captured for, whose tables are reserved when the device starts; both 0: none
   * are captured. */
  int32_t graph_tokens; /* tokens */
  int32_t graph_pages;  /* pages on the device, of all its sequences together */
  int32_t page_digests; /* hg_page_digests; ON_PUBLISH needs the tiered binding, takes memory on top of dram_bytes at
                           bind, and is refused beside INT8 host pages */
} hg_config;

HG_EXPORT int32_t hg_abi_version(void);
/* Message of this thread's last failure; valid until its next failing call. Never null. */
HG_EXPORT const char* hg_last_error(void);
/* One line: library version, CPU features, ISA rows. Static storage. */
HG_EXPORT const char* hg_build_info(void);
/* HG_OK if a backend of device kind cuda can be had, as far as can be told without initialising CUDA, which a process
 * that forks must not do. Else HG_UNIMPLEMENTED (this build has no CUDA code) or HG_UNAVAILABLE (no driver, or too
 * old). */
HG_EXPORT hg_status hg_cuda_status(void);

HG_EXPORT hg_status hg_backend_create(const hg_config* config, hg_backend** out);
HG_EXPORT void hg_backend_destroy(hg_backend* backend); /* null is fine */

/* One attention layer's parameters. Arrays are copied. */
typedef struct hg_layer {
  uint32_t struct_size;
  int32_t num_query_heads; /* multiple of num_kv_heads */
  float scale;
  float soft_cap;            /* 0: none */
  int32_t sliding_window;    /* tokens a query sees, itself included; 0: unlimited */
  const float* alibi_slopes; /* [num_query_heads] or null */
  const float* sinks;        /* [num_query_heads] or null */
  /* Of float8 KV: a page stores float8(x / scale), to nearest even and saturating; 0: 1. */
  float k_scale;
  float v_scale;
} hg_layer;

/* Appends a layer; *index is 0, 1, ... */
HG_EXPORT hg_status hg_backend_add_layer(hg_backend* backend, const hg_layer* layer, int32_t* index);

/* Where a layer's KV lies in the engine's tensor: K of (block, head, token) begins at
 * data + block * block_stride + head * head_stride + token * token_stride, V head_size elements after it. */
typedef struct hg_pool {
  uint32_t struct_size;
  int32_t layer;
  void* data;
  int64_t num_blocks;
  int64_t block_stride;
  int64_t head_stride;
  int64_t token_stride;
} hg_pool;

/* Identity binding: (re)binds one layer; idempotent and cheap. Layers that share KV bind the same pool. */
HG_EXPORT hg_status hg_backend_bind_identity(hg_backend* backend, const hg_pool* pool);

/* Tiered binding: carves `bytes` at data[i] of every layer into device pages, reserves the host tiers in full, and
 * makes block ids [0, num_blocks) valid (0 is the null block). Layers that share KV name the same region. */
typedef struct hg_regions {
  uint32_t struct_size;
  int32_t num_layers;
  void* const* data;  /* [num_layers] */
  int64_t bytes;      /* of each region */
  int64_t num_blocks; /* engine block ids */
} hg_regions;
HG_EXPORT hg_status hg_backend_bind_tiered(hg_backend* backend, const hg_regions* regions);

/* Host mirror of the block tables, fed by deltas per request. */
typedef enum hg_request_event {
  HG_REQUEST_SET = 0,     /* new or resumed: `blocks` is the whole table */
  HG_REQUEST_APPEND = 1,  /* `blocks` are appended */
  HG_REQUEST_PREEMPT = 2, /* its blocks are no longer its own */
  HG_REQUEST_FINISH = 3
} hg_request_event;
typedef struct hg_request_delta {
  uint32_t struct_size;
  int32_t event; /* hg_request_event */
  uint64_t request;
  const int32_t* blocks;
  int32_t num_blocks;
} hg_request_delta;
HG_EXPORT hg_status hg_backend_update_requests(hg_backend* backend, const hg_request_delta* deltas, int32_t count);

/* One engine step. Sequence i has query tokens [query_start[i], query_start[i+1]) of the step's tensors; they are the
 * last tokens of its seq_lens[i] tokens. */
typedef struct hg_batch {
  uint32_t struct_size;
  int32_t num_sequences;
  const int32_t* query_start; /* [num_sequences + 1], host memory */
  const int32_t* seq_lens;    /* [num_sequences], host memory */
  int32_t causal;             /* 0: every query token sees the whole sequence */
  /* Block tables: either rows here ... */
  const int32_t* block_tables; /* [num_sequences][block_table_stride] or null */
  int64_t block_table_stride;
  /* ... or requests of the host mirror. */
  const uint64_t* requests; /* [num_sequences] or null */
  /* Identity binding: slot of each token (block * block_size + offset, negative: padding, not written), or null:
   * slots follow from the table and the positions. */
  const int64_t* slot_mapping;
  int64_t num_slots; /* length of slot_mapping */
} hg_batch;

/* Plans a step. *plan: null makes a new plan, else that plan is refilled (its memory is reused). In the tiered binding
 * only the newest plan can be run, because a later one may have moved its pages. A plan may be destroyed before or
 * after its backend. */
HG_EXPORT hg_status hg_backend_plan_step(hg_backend* backend, const hg_batch* batch, hg_plan** plan);
HG_EXPORT void hg_plan_destroy(hg_plan* plan);

/* A [tokens][heads][head_size] tensor of the backend's dtype; dims of one head are contiguous. */
typedef struct hg_tensor {
  void* data;
  int64_t token_stride;
  int64_t head_stride;
} hg_tensor;

/* One layer of a planned step: writes the new tokens' key/value (null data: no write, e.g. KV sharing), then
 * attends; output has the shape of query. */
HG_EXPORT hg_status hg_backend_forward(hg_backend* backend, hg_plan* plan, int32_t layer, const hg_tensor* query,
                                       const hg_tensor* key, const hg_tensor* value, const hg_tensor* output);

/* The same with device_kind cuda: the tensors are device memory, and the work is queued on `stream`, a cudaStream_t of
 * the engine (null: the default stream), behind what that already holds. The call does not wait for the device; what
 * goes wrong there is told by a later call, and the stream itself then fails, so that no result leaves it. Every layer
 * of a plan runs once, in order. While `stream` is captured in a graph the plan must be one of hg_backend_plan_capture.
 * Other kinds ignore `stream`. */
HG_EXPORT hg_status hg_backend_forward_on_stream(hg_backend* backend, hg_plan* plan, int32_t layer,
                                                 const hg_tensor* query, const hg_tensor* key, const hg_tensor* value,
                                                 const hg_tensor* output, void* stream);

/* CUDA graphs that hold attention (docs/cuda_device.md), with device_kind cuda and graph_tokens. */
typedef struct hg_graph {
  uint32_t struct_size;
  int32_t num_tokens;   /* rows of the tensors that its layers are captured with; a step has up to as many tokens */
  int32_t query_tokens; /* of one sequence of a step, at most; up to 16 / (query heads per KV head), or 1 */
} hg_graph;

/* Makes a plan for a capture, in *plan as hg_backend_plan_step does. Every layer then runs once with it, in order, on a
 * stream that is captured, or on one that is not, to warm up; nothing is written meanwhile. Not to be called while
 * `stream` is captured. */
HG_EXPORT hg_status hg_backend_plan_capture(hg_backend* backend, const hg_graph* graph, void* stream, hg_plan** plan);

/* Takes a planned step up ahead of its layers: what changes from step to step is queued on `stream`. Without `graph`
 * (null) this is optional, hg_backend_forward_on_stream does it. With it the layers are those of the graph that was
 * captured for that shape: the caller launches that graph on `stream` next, once, and calls nothing of the backend
 * before. HG_FAILED_PRECONDITION, without further consequence, if the graph does not serve the step: it may then be
 * begun without one. */
HG_EXPORT hg_status hg_backend_begin_step(hg_backend* backend, hg_plan* plan, const hg_graph* graph, void* stream);
/* Whether hg_backend_begin_step would take the plan up for the graph. */
HG_EXPORT hg_status hg_backend_check_replay(hg_backend* backend, const hg_plan* plan, const hg_graph* graph);

/* Statistics as JSON (docs/statistics.md). Writes at most capacity bytes, terminator included; *needed is the full size
 * with terminator. buffer may be null when capacity is 0. */
HG_EXPORT hg_status hg_backend_stats_json(hg_backend* backend, char* buffer, size_t capacity, size_t* needed);

/* Sets the streaming share f for the steps planned from now on. */
HG_EXPORT hg_status hg_backend_set_streaming_share(hg_backend* backend, double share);

/* The machine's memory nodes, memory devices and GPUs, and which of them the tiers should take, as JSON
 * (docs/topology.md); needs no backend. root: directory that holds sys and proc, null: this machine's. override_kinds:
 * kinds that the operator says, such as "2:cxl,3:hbm", null: none. The buffer is as hg_backend_stats_json's. */
HG_EXPORT hg_status hg_topology_json(const char* root, const char* override_kinds, char* buffer, size_t capacity,
                                     size_t* needed);

/* The same of this machine, with its nodes measured: up to a second at every call. A first call with a buffer of some
 * hundred KiB saves the second. */
HG_EXPORT hg_status hg_topology_measured_json(const char* override_kinds, char* buffer, size_t capacity,
                                              size_t* needed);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* BACKEND_HYBRIDGEN_H_ */
