# terrace_add_prebuilt(NAME): a static library of what knows neither tier nor policy: the planner, the media, I/O and the
# kernels of codecs and attention. A target that links it compiles in half the time, and in a quarter where it
# attends. Link all targets of a program to it, or none: it brings terrace::terrace and the macro that says so.
function(terrace_add_prebuilt name)
  set(source ${CMAKE_CURRENT_BINARY_DIR}/${name}.cpp)
  file(CONFIGURE OUTPUT ${source} CONTENT "#include \"terrace/prebuilt.hpp\"\n" @ONLY)
  add_library(${name} STATIC ${source})
  target_link_libraries(${name} PUBLIC terrace::terrace)
  target_compile_definitions(${name} PUBLIC TERRACE_PREBUILT)
endfunction()
