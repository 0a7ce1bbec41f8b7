# `cmake --install` makes a bundle that runs from wherever it is unpacked, on any machine with glibc of
# the build's age: bin/ with the programs, lib/ with every shared library they need, the demo model.
option(MOED_BUNDLE_CUDA_LIBRARIES "Put cuBLAS into the bundle of a CUDA build (700 MB)" ON)

install(TARGETS moed moedctl RUNTIME_DEPENDENCY_SET moed_libraries RUNTIME DESTINATION bin)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/models/demo DESTINATION share/moed/models)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION share/moed)

# glibc and the driver belong to the machine.
set(excluded "^ld-linux.*" "^lib(c|m|dl|rt|pthread|resolv)\\.so.*" "^libcuda\\.so.*")
install(RUNTIME_DEPENDENCY_SET moed_libraries PRE_EXCLUDE_REGEXES ${excluded} LIBRARY DESTINATION lib)
# The CUDA backend loads cuBLAS by name when it is created.
if(MOED_CUDA AND MOED_BUNDLE_CUDA_LIBRARIES)
  find_package(CUDAToolkit 13 REQUIRED)
  install(FILES ${CUDAToolkit_LIBRARY_DIR}/libcublas.so.13 ${CUDAToolkit_LIBRARY_DIR}/libcublasLt.so.13
          DESTINATION lib)
endif()
