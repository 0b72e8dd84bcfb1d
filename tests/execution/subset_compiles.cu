// nvcc must take the whole subset. Compiling is the test; nothing here runs.
#include "subset.cpp"
#include "terrace/execution/sync_wait.hpp"
