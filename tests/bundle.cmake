# The installed bundle answers without the libraries of the build machine: its programs find all they need in lib/.
#   cmake -DBUILD=DIR -P bundle.cmake
set(prefix ${BUILD}/bundle_test)
file(REMOVE_RECURSE ${prefix})
execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --prefix ${prefix} OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
foreach(program moed moedctl)
  execute_process(COMMAND ldd ${prefix}/bin/${program} OUTPUT_VARIABLE libraries COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX REPLACE "\n" ";" lines "${libraries}")
  foreach(line ${lines})
    if(line MATCHES "=>" AND NOT line MATCHES "=> ${prefix}/bin/../lib/" AND
       NOT line MATCHES "lib(c|m|dl|rt|pthread|resolv)\\.so|libcu(da|dart|blas|blasLt)\\.so")
      message(FATAL_ERROR "${program} takes a library from outside the bundle:${line}")
    endif()
  endforeach()
  execute_process(COMMAND ${prefix}/bin/${program} --help OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
endforeach()
if(NOT EXISTS ${prefix}/share/moed/models/demo/config.json)
  message(FATAL_ERROR "the bundle lacks the demo model")
endif()
