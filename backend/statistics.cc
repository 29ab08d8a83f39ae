#include "backend/statistics.h"

#include <utility>

#include "nlohmann/json.hpp"

namespace hybridgen {
namespace {

nlohmann::ordered_json ToJson(const ArenaStatistics& arena) {
  nlohmann::ordered_json on_node = nlohmann::ordered_json::object();
  for (const auto& [node, pages] : arena.sampled_pages_on_node) on_node[std::to_string(node)] = pages;
  return {
      {"tier", TierName(arena.tier)},
      {"role", arena.role == PageRole::kKey ? "key" : "value"},
      {"head_group", arena.head_group},
      {"node", arena.node},
      {"capacity_bytes", arena.capacity_bytes},
      {"resident_bytes", arena.resident_bytes},
      {"sampled_pages_on_node", std::move(on_node)},
      {"sampled_pages_unknown", arena.sampled_pages_unknown},
      {"misplaced_pages", arena.misplaced_pages},
      {"repaired_pages", arena.repaired_pages},
      {"unmovable_pages", arena.unmovable_pages},
      {"no_room_pages", arena.no_room_pages},
      {"registered_bytes", arena.registered_bytes},
      {"pin_failures", arena.pin_failures},
  };
}

nlohmann::ordered_json ToJson(const PlacementStatistics& placement) {
  nlohmann::ordered_json json = {
      {"policy", placement.policy},
      {"reason", placement.reason},
      {"host_page_format", placement.host_page_format},
      {"host_block_bytes", placement.host_block_bytes},
      {"key_share_on_cxl", placement.cxl_share[Index(PageRole::kKey)]},
      {"value_share_on_cxl", placement.cxl_share[Index(PageRole::kValue)]},
      {"notes", placement.notes},
      {"arenas", nlohmann::ordered_json::array()},
  };
  for (const ArenaStatistics& arena : placement.arenas) json["arenas"].push_back(ToJson(arena));
  return json;
}

}  // namespace

double BackendStatistics::CpuShare() const {
  int64_t cpu = 0;
  int64_t device = 0;
  for (const TierStatistics& tier : tiers) {
    cpu += tier.cpu_read_bytes;
    device += tier.device_read_bytes;
  }
  return cpu + device == 0 ? 0.0 : static_cast<double>(cpu) / static_cast<double>(cpu + device);
}

std::string BackendStatistics::ToJson() const {
  nlohmann::ordered_json json;
  json["version"] = 1;
  json["device_kind"] = device_kind;
  json["binding"] = binding;
  json["kernels"] = kernels;
  json["executor"] = executor;
  for (int i = 0; i < kNumTiers; ++i) {
    const TierStatistics& tier = tiers[i];
    if (!tier.configured) continue;
    json["tiers"][TierName(static_cast<Tier>(i))] = {
        {"emulated", tier.emulated},
        {"node", tier.node},
        {"paced_gigabytes_per_second", tier.paced_gigabytes_per_second},
        {"capacity_bytes", tier.capacity_bytes},
        {"resident_key_bytes", tier.resident_key_bytes},
        {"resident_value_bytes", tier.resident_value_bytes},
        {"quarantined_pages", blocks.quarantined_pages[i][0] + blocks.quarantined_pages[i][1]},
        {"read_bytes", tier.cpu_read_bytes + tier.device_read_bytes},
        {"cpu_read_bytes", tier.cpu_read_bytes},
        {"device_read_bytes", tier.device_read_bytes},
    };
  }
  if (!placement.policy.empty()) json["placement"] = hybridgen::ToJson(placement);
  json["cpu_share"] = CpuShare();
  json["streaming_share"] = streaming_share;
  json["steps"] = steps;
  json["tokens_written"] = tokens_written;
  json["forward_calls"] = forward_calls;
  json["seconds"] = {{"device", device_seconds},
                     {"cpu", cpu_seconds},
                     {"merge", merge_seconds},
                     {"transfer", transfer_seconds},
                     {"wait", wait_seconds}};
  for (int i = 0; i < kNumBlockStates; ++i) {
    json["blocks"][BlockStateName(static_cast<BlockState>(i))] = blocks.blocks_in_state[i];
  }
  json["publishes"] = blocks.publishes;
  json["publishes_dropped"] = blocks.publishes_dropped;
  json["evictions"] = blocks.evictions;
  json["recalls"] = blocks.recalls;
  json["recalls_dropped"] = blocks.recalls_dropped;
  json["migrations"] = blocks.migrations;
  json["migrations_dropped"] = blocks.migrations_dropped;
  json["mover"] = {{"bytes", mover.bytes},
                   {"chunks", mover.chunks},
                   {"budget_waits", mover.budget_waits},
                   {"layer_waits", mover.layer_waits},
                   {"abandoned", mover.abandoned}};
  if (page_digests.has_value()) {
    json["page_digests"] = {{"reserved_bytes", page_digests->reserved_bytes},
                            {"blocks", page_digests->blocks},
                            {"seconds", page_digests->seconds}};
  }
  if (!head_groups.empty()) json["head_groups"]["reason"] = head_groups_reason;
  for (const HeadGroupStatistics& group : head_groups) {
    json["head_groups"]["groups"].push_back({{"node", group.node},
                                             {"emulated", group.emulated},
                                             {"items", group.items},
                                             {"remote_items", group.remote_items}});
  }
  json["host_copies_dropped"] = blocks.host_copies_dropped;
  json["host_direct_writes"] = blocks.host_direct_writes;
  json["placement_misses"] = blocks.placement_misses;
  json["unwritten_reads"] = blocks.unwritten_reads;
  json["null_block_writes"] = blocks.null_block_writes;
  return json.dump();
}

}  // namespace hybridgen
