/* Included before every file of a build for Android: what its C library lacks at API level 24. */
#ifndef EDM_ANDROID_COMPAT_H
#define EDM_ANDROID_COMPAT_H

#include <stdlib.h>

/* aligned_alloc came with API level 28. */
static inline void *edm_aligned_alloc(size_t alignment, size_t bytes) {
  void *memory = NULL;
  return posix_memalign(&memory, alignment, bytes) ? NULL : memory;
}

#define aligned_alloc edm_aligned_alloc

#endif
