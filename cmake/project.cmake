# What Terrace's own programs share: flags, optional packages, and the rules that turn a folder into programs.

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Debug, Release, RelWithDebInfo or MinSizeRel" FORCE)
endif()
find_program(TERRACE_CCACHE ccache)
if(TERRACE_CCACHE AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${TERRACE_CCACHE})
endif()
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

# The header checks compile with these as well, outside of CMake's own rules.
set(terrace_warnings -Wall -Wextra -Wpedantic -Wconversion -Wshadow)
if(TERRACE_WERROR)
  list(APPEND terrace_warnings -Werror)
endif()

# Linked by every program of this project, never by a consumer.
add_library(terrace_program INTERFACE)
target_link_libraries(terrace_program INTERFACE terrace::terrace)
target_compile_options(terrace_program INTERFACE ${terrace_warnings})
if(TERRACE_SANITIZE)
  # -O1 overrides the build type: the sanitizers' reports keep their frames, and the compilation takes half the time.
  target_compile_options(terrace_program INTERFACE -O1 -g1 -fno-omit-frame-pointer -fsanitize=${TERRACE_SANITIZE}
                                                   -fno-sanitize-recover=all)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC's flow analysis does not see through its own instrumentation, in the standard headers even.
    target_compile_options(terrace_program INTERFACE -Wno-maybe-uninitialized)
  endif()
  target_link_options(terrace_program INTERFACE -fsanitize=${TERRACE_SANITIZE})
  target_compile_definitions(terrace_program INTERFACE TERRACE_SANITIZED)
endif()

find_path(TERRACE_CLI11_INCLUDE_DIR CLI/CLI.hpp)
find_path(TERRACE_JSON_INCLUDE_DIR nlohmann/json.hpp)
find_package(benchmark QUIET)
include(${CMAKE_CURRENT_LIST_DIR}/cuda.cmake)

# What is left out is said, once per configuration, by name and with the reason.
function(terrace_say_skipped name reason)
  message(NOTICE "terrace: ${name} is skipped: ${reason}")
endfunction()

# Why the sources of one program cannot be built: the libraries that they include and this machine lacks. Empty where
# nothing is missing.
function(terrace_missing_packages result)
  set(missing "")
  foreach(package IN ITEMS "TERRACE_CLI11_INCLUDE_DIR CLI/ CLI11" "TERRACE_JSON_INCLUDE_DIR nlohmann/ nlohmann-json"
                           "benchmark_FOUND benchmark/ Google-Benchmark"
                           "TERRACE_ZSTD_LIBRARY terrace/codec/zstd.hpp libzstd"
                           "TERRACE_LZ4_LIBRARY terrace/codec/lz4.hpp liblz4"
                           "terrace_has_cuda cuda_runtime_api.h CUDA")
    separate_arguments(package)
    list(GET package 0 found)
    list(GET package 1 folder)
    list(GET package 2 name)
    if(NOT ${found})
      foreach(source IN LISTS ARGN)
        file(STRINGS ${source} includes REGEX "^#include [<\"]${folder}" LIMIT_COUNT 1)
        if(includes)
          list(APPEND missing ${name})
          break()
        endif()
      endforeach()
    endif()
  endforeach()
  if(missing)
    list(JOIN missing " and " missing)
    string(APPEND missing " is missing")
  endif()
  set(${result} ${missing} PARENT_SCOPE)
endfunction()

# Adds the target of one program, which is built as <build>/<folder>/<output>.
function(terrace_add_program target folder output)
  add_executable(${target} ${ARGN})
  target_link_libraries(${target} PRIVATE terrace_program)
  set_target_properties(${target} PROPERTIES OUTPUT_NAME ${output}
                                             RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/${folder})
endfunction()

# What knows neither tier nor policy, compiled once for all examples and benches that this is called for: each of them
# takes half the time to compile. (The tests have a library of their own, with live assertions.)
function(terrace_link_functions target)
  if(NOT TARGET terrace_functions)
    terrace_add_prebuilt(terrace_functions)
    target_link_libraries(terrace_functions PRIVATE terrace_program)
  endif()
  target_link_libraries(${target} PRIVATE terrace_functions)
endfunction()

# Makes a program of each NAME.cpp in the current folder, and of each NAME/main.cpp with the sources beside it.
# `prefix` keeps the targets of several folders apart; `result` gets the names of those that can be built. A main.cpp
# in the folder itself is no program: the tests have one that they share.
function(terrace_add_programs folder prefix result)
  set(programs "")
  file(GLOB entries CONFIGURE_DEPENDS LIST_DIRECTORIES true RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} *.cpp */main.cpp)
  foreach(entry IN LISTS entries)
    cmake_path(GET entry PARENT_PATH name)
    if(name)
      file(GLOB sources CONFIGURE_DEPENDS ${name}/*.cpp)
      file(GLOB headers CONFIGURE_DEPENDS ${name}/*.hpp)
    else()
      cmake_path(GET entry STEM name)
      if(name STREQUAL "main")
        continue()
      endif()
      set(sources ${CMAKE_CURRENT_SOURCE_DIR}/${entry})
      set(headers "")
    endif()
    terrace_missing_packages(missing ${sources} ${headers})
    if(missing)
      terrace_say_skipped(${folder}/${name} "${missing}")
      continue()
    endif()
    terrace_add_program(${prefix}${name} ${folder} ${name} ${sources})
    list(APPEND programs ${name})
  endforeach()
  set(${result} ${programs} PARENT_SCOPE)
endfunction()
