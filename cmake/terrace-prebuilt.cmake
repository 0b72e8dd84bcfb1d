# terrace_add_prebuilt(NAME [PRECOMPILE HEADER...]): a static library of what knows neither tier nor policy: the planner,
# the media, I/O and the kernels of codecs and attention. A target that links it compiles in half the time, and in a
# quarter where it attends. Link all targets of a program to it, or none: it brings terrace::terrace and the macro that
# says so.
#
# PRECOMPILE: each target that links it precompiles these headers, for example terrace/terrace.hpp, and its C++ sources
# read them so. Worth it from the second or third source on that includes them.
function(terrace_add_prebuilt name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" PRECOMPILE)
  if(arg_UNPARSED_ARGUMENTS OR arg_KEYWORDS_MISSING_VALUES)
    message(FATAL_ERROR "terrace_add_prebuilt takes a name, and after PRECOMPILE headers.")
  endif()
  set(source ${CMAKE_CURRENT_BINARY_DIR}/${name}.cpp)
  file(CONFIGURE OUTPUT ${source} CONTENT "#include \"terrace/prebuilt.hpp\"\n" @ONLY)
  add_library(${name} STATIC ${source})
  target_link_libraries(${name} PUBLIC terrace::terrace)
  target_compile_definitions(${name} PUBLIC TERRACE_PREBUILT)
  foreach(header IN LISTS arg_PRECOMPILE)
    target_precompile_headers(${name} INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:<${header}$<ANGLE-R>>")
  endforeach()
endfunction()
