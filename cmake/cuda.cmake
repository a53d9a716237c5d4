# The kernels for NVIDIA GPUs: the module _cuda from nvcc, and _cuda_emulated, the same sources as C++ for the host.

set(cuda_kernels
  csrc/cuda/convolution.cu
  csrc/cuda/convolution_bfloat16.cu
  csrc/cuda/convrecurrent.cu
  csrc/cuda/elementwise.cu
  csrc/cuda/embedding.cu
  csrc/cuda/lag_norms.cu
  csrc/cuda/linear.cu
  csrc/cuda/loss.cu
  csrc/cuda/normalization.cu
  csrc/cuda/optimizer.cu
  csrc/cuda/pooling.cu
  csrc/cuda/recurrent.cu
  csrc/cuda/recurrent_bfloat16.cu)
set(cuda_bindings
  csrc/bindings/arguments.cpp
  csrc/bindings/check.cpp
  csrc/bindings/convolution_options.cpp
  csrc/bindings/convrecurrent_arguments.cpp
  csrc/bindings/cuda/arrays.cpp
  csrc/bindings/cuda/convolution.cpp
  csrc/bindings/cuda/convrecurrent.cpp
  csrc/bindings/cuda/device_array.cpp
  csrc/bindings/cuda/layers.cpp
  csrc/bindings/cuda/losses.cpp
  csrc/bindings/cuda/module.cpp
  csrc/bindings/cuda/normalization.cpp
  csrc/bindings/cuda/optimizers.cpp
  csrc/bindings/cuda/pooling.cpp
  csrc/bindings/cuda/recurrent.cpp
  csrc/bindings/cuda/runtime.cpp
  csrc/bindings/layer_arguments.cpp
  csrc/bindings/loss_arguments.cpp
  csrc/bindings/normalization_arguments.cpp
  csrc/bindings/optimizer_arguments.cpp
  csrc/bindings/pooling_arguments.cpp
  csrc/bindings/recurrent_arguments.cpp
  csrc/bindings/unlocked.cpp
  csrc/bindings/windows.cpp
  csrc/memory.cpp)

function(tbptt_cuda_module_settings module)
  tbptt_compile_settings(${module})
  target_link_libraries(${module} PRIVATE pybind11::module Threads::Threads)
  target_compile_definitions(${module} PRIVATE
    TBPTT_CUDA_MODULE=${module} TBPTT_FAST_VERSION="${tbptt_version}")
  tbptt_self_contained(${module})
  if(TBPTT_FAST_JAX)
    tbptt_jax_functions(${module} csrc/bindings/cuda/jax.cpp csrc/bindings/cuda/module.cpp)
  endif()
endfunction()

if(TBPTT_FAST_CUDA_EMULATED)
  # A source has one language in a folder, and nvcc may be asked for the same ones.
  function(tbptt_for_the_host result)
    set(sources "")
    foreach(kernel IN LISTS ARGN)
      get_filename_component(name ${kernel} NAME_WE)
      set(emulated ${CMAKE_BINARY_DIR}/emulated/${name}.cpp)
      file(CONFIGURE OUTPUT ${emulated} CONTENT "#include \"${CMAKE_SOURCE_DIR}/${kernel}\"\n" @ONLY)
      list(APPEND sources ${emulated})
    endforeach()
    set(${result} ${sources} PARENT_SCOPE)
  endfunction()
  tbptt_for_the_host(emulated_kernels ${cuda_kernels})
  python_add_library(_cuda_emulated MODULE WITH_SOABI
    ${emulated_kernels} ${cuda_bindings}
    csrc/bindings/cuda/emulator.cpp csrc/cuda/emulator.cpp csrc/cuda/runtime_emulated.cpp)
  tbptt_cuda_module_settings(_cuda_emulated)
  target_compile_definitions(_cuda_emulated PRIVATE TBPTT_EMULATED)
  target_compile_options(_cuda_emulated PRIVATE
    -Wno-unknown-pragmas  # nvcc's
    # a device stops at what is not aligned, too
    -fsanitize=alignment -fsanitize-undefined-trap-on-error)
  set_target_properties(_cuda_emulated PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
endif()

if(NOT TBPTT_FAST_CUDA MATCHES "^(AUTO|ON|OFF|TRUE|FALSE|1|0)$")
  message(FATAL_ERROR "TBPTT_FAST_CUDA: expected AUTO, ON or OFF, got ${TBPTT_FAST_CUDA}")
endif()
set(wanted ${TBPTT_FAST_CUDA})
if(wanted STREQUAL "AUTO")
  # A compiler that is there and does not work must not keep the CPU's module from being built.
  include(CheckLanguage)
  check_language(CUDA)
  set(wanted ${CMAKE_CUDA_COMPILER})
endif()
if(NOT wanted)
  message(STATUS "CUDA kernels: not built (TBPTT_FAST_CUDA=${TBPTT_FAST_CUDA})")
  return()
endif()

set(CMAKE_CUDA_ARCHITECTURES OFF)  # the targets are given below, in the same way for every version of CMake
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
if(DEFINED ENV{TBPTT_FAST_CUDA_ARCHITECTURES})  # which pip cannot take as an option with commas
  set(TBPTT_FAST_CUDA_ARCHITECTURES $ENV{TBPTT_FAST_CUDA_ARCHITECTURES})
endif()
string(REPLACE "," ";" targets "${TBPTT_FAST_CUDA_ARCHITECTURES}")
set(code "")
foreach(target IN LISTS targets)
  if(target MATCHES "^([0-9]+[af]?)-virtual$")
    list(APPEND code "-gencode=arch=compute_${CMAKE_MATCH_1},code=compute_${CMAKE_MATCH_1}")
  elseif(target MATCHES "^([0-9]+[af]?)(-real)?$")
    list(APPEND code "-gencode=arch=compute_${CMAKE_MATCH_1},code=sm_${CMAKE_MATCH_1}")
  else()
    message(FATAL_ERROR "TBPTT_FAST_CUDA_ARCHITECTURES: expected such as 80, 90a or 90-virtual, got ${target}")
  endif()
endforeach()
string(JOIN " " target_names ${targets})
message(STATUS "CUDA kernels: nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${target_names}")

add_library(tbptt_cuda OBJECT ${cuda_kernels} csrc/cuda/runtime.cu)
set_target_properties(tbptt_cuda PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_compile_definitions(tbptt_cuda PRIVATE "TBPTT_CUDA_TARGETS=\"${target_names}\"")
target_compile_options(tbptt_cuda PRIVATE ${code}
  # one process for each target at a time
  --threads=0
  # the resources of each kernel, for the check of spills, go into the build's log
  $<$<BOOL:$ENV{TBPTT_FAST_CUDA_REPORT}>:-Xptxas=-v>
  -Xcompiler=-Wall,-fvisibility=hidden)
if(TBPTT_FAST_WERROR)
  target_compile_options(tbptt_cuda PRIVATE -Werror=all-warnings)
endif()

python_add_library(_cuda MODULE WITH_SOABI ${cuda_bindings} $<TARGET_OBJECTS:tbptt_cuda>)
tbptt_cuda_module_settings(_cuda)
set_target_properties(_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static LINKER_LANGUAGE CXX)
find_package(CUDAToolkit REQUIRED)
target_link_libraries(_cuda PRIVATE CUDA::cudart_static)
if(TBPTT_FAST_IN_PLACE)
  set_target_properties(_cuda PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_SOURCE_DIR}/python/tbptt_fast)
endif()
install(TARGETS _cuda DESTINATION ${TBPTT_FAST_CUDA_PACKAGE})
