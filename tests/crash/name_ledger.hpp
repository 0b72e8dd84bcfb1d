#pragma once
#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "crash/disk_log.hpp"

namespace power_loss {

/// What was said about names, and so what may be found under them after a crash. A name has one state after another: no
/// block, or a version of one. Once a flush has covered a state nothing before it may come back.
class name_ledger {
 public:
  using version = std::uint32_t;  ///< 0: no block
  struct answer {
    enum class kind { absent, lost, found, garbage } what = kind::absent;
    version v = 0;
  };

  /// From `at` on `name` is that version.
  void set(std::uint64_t name, version v, tick at) {
    auto& states = names_[name].states;
    if (states.empty()) states.push_back({0, 0});
    states.push_back({v, at});
  }
  version now(std::uint64_t name) const {
    const auto found = names_.find(name);
    return found == names_.end() || found->second.states.empty() ? 0 : found->second.states.back().v;
  }
  std::vector<std::uint64_t> names() const {
    std::vector<std::uint64_t> all;
    for (const auto& [name, of] : names_) all.push_back(name);
    return all;
  }

  /// Nothing was said after `at`.
  void cut(tick at) {
    const auto later = [at](const auto& said) { return said.at >= at; };
    for (auto& [name, of] : names_) {
      std::erase_if(of.states, later);
      std::erase_if(of.flushes, later);
    }
  }

  /// Everything up to now is asked to be durable; `covered` says when that was acknowledged.
  void flush_begins() {
    for (auto& [name, of] : names_) of.asked = of.states.empty() ? 0 : of.states.size() - 1;
  }
  void flush_ended(tick covered) {
    for (auto& [name, of] : names_) of.flushes.push_back({of.asked, covered});
  }

  /// Why `a` may not be what is found under `name` after a crash at `crash`; nothing where it may.
  std::optional<std::string> objection(std::uint64_t name, answer a, tick crash) const {
    const of_name& of = names_.at(name);
    std::size_t first = 0, end = 0;
    for (const auto& ended : of.flushes)
      if (ended.at < crash) first = ended.state;
    while (end < of.states.size() && of.states[end].at < crash) ++end;
    bool may_be_absent = end == first, may_be_found = false;
    for (std::size_t i = first; i < end; ++i) {
      may_be_absent = may_be_absent || of.states[i].v == 0;
      may_be_found = may_be_found || (a.what == answer::kind::found && of.states[i].v == a.v && a.v != 0);
    }
    const std::string which = "name " + std::to_string(name);
    if (a.what == answer::kind::garbage) return which + " has something that was never written there";
    if (a.what == answer::kind::found && !may_be_found)
      return which + " has version " + std::to_string(a.v) + ", which a flush had seen replaced or forgotten";
    if (a.what == answer::kind::lost && !may_be_absent) return which + " is lost, and was acknowledged";
    if (a.what == answer::kind::absent && !may_be_absent) return which + " is missing, and was acknowledged";
    return std::nullopt;
  }

 private:
  struct state {
    version v;
    tick at;
  };
  struct flush {
    std::size_t state;
    tick at;
  };
  struct of_name {
    std::vector<state> states;
    std::vector<flush> flushes;
    std::size_t asked = 0;
  };
  std::map<std::uint64_t, of_name> names_;
};

}  // namespace power_loss
