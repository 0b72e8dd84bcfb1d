#pragma once
#include "terrace/core/layout.hpp"

/// Two layers a block, and a second group with blocks of another length.
inline terrace::kv_layout layout_of_two_groups() {
  return {{{.first_layer = 0, .layers = 4, .tokens = 16, .k = {2, 32}, .v = {2, 32}, .layers_per_block = 2},
           {.first_layer = 4, .layers = 1, .tokens = 8, .k = {1, 64}, .v = {1, 32}}}};
}
