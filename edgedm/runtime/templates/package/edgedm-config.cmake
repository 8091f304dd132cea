# With this bundle in CMAKE_PREFIX_PATH, find_package(edgedm CONFIG) gives the target edgedm::edgedm.
get_filename_component(edgedm_BUNDLE "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
if(NOT TARGET edgedm::edgedm)
  add_library(edgedm::edgedm SHARED IMPORTED)
  set_target_properties(edgedm::edgedm PROPERTIES
    IMPORTED_LOCATION "${edgedm_BUNDLE}/lib/libedgedm.so"
    INTERFACE_INCLUDE_DIRECTORIES "${edgedm_BUNDLE}/include")
endif()
