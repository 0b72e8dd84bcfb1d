#pragma once
// START HERE: the composed cache. The path of a block from here: sequence.hpp (reserve, commit) >
// cache/planner_writes.hpp (room, sealing) > cache/planner_moves.hpp (write-behind, demotion) > policy/ (who leaves)
// > transfer/ (route, engine) > codec/ > medium/; and back: cache/acquire.hpp > cache/planner_reads.hpp (who waits) >
// cache/planner_loads.hpp (promotion) > cache/lease.hpp > attention/stream.hpp > attention/attend.hpp >
// attention/partial_state.hpp. cache/planner.hpp has the planner's rules and state; NAME_body.hpp has the functions
// of NAME.hpp.
#include <cstddef>
#include <tuple>

#include "terrace/cache/composition.hpp"
#include "terrace/cache_front.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// A model's KV cache over a ladder of storage tiers.
///
///     using kv_cache = tiered_cache<tier<ram>, tier<ram, q8_0>, tier<nvme, q8_0>, lru>;
///
/// The parameters are the tiers, nearest first, and then the policy that chooses which blocks leave a tier first;
/// each tier has its own instance of the policy. The first tier holds blocks as the engine writes them; attention
/// reads them there.
///
/// A handle: moving it is cheap, and objects made from it stay valid. All of them must end before it does: sequences,
/// reservations, leases, restorations, batches, prefix indices, paged tensors and what they have lent, streams, and
/// the operations of acquires, flushes and anything that waits for room. Operations of acquires, flushes and restores
/// that are still pending at that point are completed by its destructor, with errc::stopped; their receivers must
/// still exist and may start nothing new. Only the thread that owns the context may call its members; `open` is in
/// cache_front.hpp, the verbs are in kv_store.hpp.
template <class... Parts>
class tiered_cache : public cache_front<tiered_cache<Parts...>, typename composition<Parts...>::tiers,
                                        typename composition<Parts...>::policy> {
  using front = cache_front<tiered_cache<Parts...>, typename composition<Parts...>::tiers,
                            typename composition<Parts...>::policy>;
  friend front;
  using front::front;

 public:
  using tiers = typename composition<Parts...>::tiers;
  using policy = typename composition<Parts...>::policy;
  static constexpr std::size_t tier_count = std::tuple_size_v<tiers>;
};

}  // namespace TERRACE_EX
}  // namespace terrace
