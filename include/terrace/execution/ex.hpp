#pragma once
// Selects terrace::ex, the implementation of std::execution: the built-in subset or, if the user defines
// TERRACE_USE_STDEXEC in every translation unit that should share types, stdexec from the include path. Terrace's
// senders use only ex. No file that nvcc compiles may define the macro: nvcc does not compile stdexec.
#include "terrace/execution/backend.hpp"

#if defined(TERRACE_USE_STDEXEC)
#include <stdexec/execution.hpp>
#else
#include "terrace/execution/subset/continues_on.hpp"
#include "terrace/execution/subset/just.hpp"
#include "terrace/execution/subset/let_value.hpp"
#include "terrace/execution/subset/run_loop.hpp"
#include "terrace/execution/subset/starts_on.hpp"
#include "terrace/execution/subset/sync_wait.hpp"
#include "terrace/execution/subset/then.hpp"
#include "terrace/execution/subset/when_all.hpp"
#endif

namespace terrace {
inline namespace TERRACE_EX {

#if defined(TERRACE_USE_STDEXEC)
namespace ex = ::stdexec;
#else
namespace ex = ::terrace::subset;
#endif

}  // namespace TERRACE_EX
}  // namespace terrace
