# Fails if a file includes what its folder may not. Run by CTest: cmake -DROOT=... -P layering.cmake
#
#   client -> proto <- server -> engine -> scheduler
#                                engine -> text
#                                engine -> model -> backend (-> backend/cpu, cuda, no_cuda)
#                                          model -> cache
# An arrow means "may include"; skipping down is fine; nothing else is. Within backend/cuda:
#
#   cuda_backend -> prefill -> experts -> plan, routing -> primitives -> device
#                          attention -> dense -> primitives
#                          sampling -> primitives

set(may_include_cache "")
set(may_include_runtime/backend "")
set(may_include_runtime/text "")
set(may_include_runtime/scheduler "")
set(may_include_runtime/model runtime/backend cache)
set(may_include_runtime/engine
    runtime/scheduler runtime/text runtime/model runtime/backend cache)
set(may_include_proto "")
set(may_include_client proto)
set(may_include_server
    proto runtime/engine runtime/scheduler runtime/text runtime/model runtime/backend cache)
set(folders cache runtime/backend runtime/text runtime/scheduler runtime/model runtime/engine proto
    client server)

set(cuda_may_include_device "")
set(cuda_may_include_primitives device)
set(cuda_may_include_dense primitives device)
set(cuda_may_include_plan primitives device)
set(cuda_may_include_routing primitives device)
set(cuda_may_include_sampling primitives device)
set(cuda_may_include_attention dense primitives device)
set(cuda_may_include_experts plan routing primitives device)
set(cuda_may_include_prefill experts plan dense primitives device)

set(violations "")
set(files_read 0)
foreach(folder IN LISTS folders)
  file(GLOB_RECURSE files RELATIVE ${ROOT}
       ${ROOT}/${folder}/*.h ${ROOT}/${folder}/*.cc ${ROOT}/${folder}/*.cu ${ROOT}/${folder}/*.cuh)
  foreach(file IN LISTS files)
    math(EXPR files_read "${files_read} + 1")
    file(STRINGS ${ROOT}/${file} includes REGEX "^#include \"")
    foreach(line IN LISTS includes)
      string(REGEX REPLACE "^#include \"([^\"]*)\".*" "\\1" included "${line}")
      foreach(other IN LISTS folders)
        string(FIND "${included}" "${other}/" position)
        if(position EQUAL 0 AND NOT other STREQUAL folder AND NOT other IN_LIST may_include_${folder})
          list(APPEND violations "${file} includes ${included}")
        endif()
      endforeach()
      # The backends know each other only through backend.h.
      if(file MATCHES "^runtime/backend/(cpu|cuda|no_cuda)/" AND
         included MATCHES "^runtime/backend/(cpu|cuda|no_cuda)/")
        string(REGEX REPLACE "^runtime/backend/([a-z_]+)/.*" "\\1" from "${file}")
        string(REGEX REPLACE "^runtime/backend/([a-z_]+)/.*" "\\1" to "${included}")
        if(NOT from STREQUAL to AND NOT included STREQUAL "runtime/backend/cuda/cuda_backend.h")
          list(APPEND violations "${file} includes ${included}")
        endif()
      endif()
    endforeach()
    # A folder of backend/cuda that is not listed above may include nothing of the others.
    if(file MATCHES "^runtime/backend/cuda/([a-z_]+)/")
      set(from ${CMAKE_MATCH_1})
      foreach(line IN LISTS includes)
        if(line MATCHES "\"runtime/backend/cuda/(([a-z_]+)/)?" AND NOT CMAKE_MATCH_2 STREQUAL from AND
           NOT CMAKE_MATCH_2 IN_LIST cuda_may_include_${from})
          list(APPEND violations "${file}: ${line}")
        endif()
      endforeach()
    endif()
    # gRPC, protobuf and Prometheus types stop at the server; CUDA's stop at its folder.
    file(STRINGS ${ROOT}/${file} system_includes REGEX "^#include [<\"]")
    foreach(line IN LISTS system_includes)
      if(line MATCHES "<(grpc|google/protobuf|prometheus)" AND NOT file MATCHES "^(server|client|proto)/")
        list(APPEND violations "${file}: ${line}")
      endif()
      if(line MATCHES "<(cuda|cublas|cooperative_groups|flashinfer)" AND
         NOT file MATCHES "^runtime/backend/cuda/")
        list(APPEND violations "${file}: ${line}")
      endif()
    endforeach()
    if(NOT file MATCHES "^runtime/backend/cuda/")
      file(STRINGS ${ROOT}/${file} conditionals REGEX "^#[ ]*(if|ifdef|ifndef|elif).*(CUDA|__NVCC__)")
      foreach(line IN LISTS conditionals)
        list(APPEND violations "${file}: ${line}")
      endforeach()
    endif()
  endforeach()
endforeach()

if(files_read LESS 50)
  message(FATAL_ERROR "only ${files_read} files found under ${ROOT}: the check does not see the tree")
endif()
if(violations)
  list(JOIN violations "\n  " text)
  message(FATAL_ERROR "includes against the picture in docs/DESIGN.md:\n  ${text}")
endif()
message(STATUS "${files_read} files keep to the layers")
