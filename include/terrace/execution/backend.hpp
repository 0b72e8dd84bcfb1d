#pragma once
// Which implementation of std::execution this translation unit uses: the built-in subset, or stdexec if the user
// defines TERRACE_USE_STDEXEC. Names that depend on the choice live in `inline namespace TERRACE_EX`, so that object
// files of both kinds link into one program without sharing a symbol. This header is small on purpose: a header that
// only mentions senders needs nothing else ("terrace/execution/ex.hpp" brings the senders themselves).

#if defined(TERRACE_USE_STDEXEC)
#define TERRACE_EX with_stdexec
#else
#define TERRACE_EX with_subset
#endif

namespace terrace {
inline namespace TERRACE_EX {

/// Names the choice. As a defaulted template parameter it keeps apart the members of a class that both kinds
/// of translation unit share, such as `context`.
struct ex_backend {};

}  // namespace TERRACE_EX
}  // namespace terrace
