/* How often a program asks for memory: linked into it, or, built with -DPRELOADED, loaded before its libraries, when it
 * tells at the program's end. The functions of glibc are here under its other names. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

atomic_long allocations;
_Thread_local int held; /* of quiet.c */

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *memory, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

static void ask(void) { atomic_fetch_add(&allocations, 1); }

void *malloc(size_t bytes) { return ask(), __libc_malloc(bytes); }
void *calloc(size_t count, size_t bytes) { return ask(), __libc_calloc(count, bytes); }
void *realloc(void *memory, size_t bytes) { return ask(), __libc_realloc(memory, bytes); }
void *aligned_alloc(size_t alignment, size_t bytes) { return ask(), __libc_memalign(alignment, bytes); }
int posix_memalign(void **memory, size_t alignment, size_t bytes) {
  ask();
  *memory = __libc_memalign(alignment, bytes);
  return !*memory;
}
void *mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset) {
  ask();
  return (void *)syscall(SYS_mmap, at, bytes, protection, flags, file, offset);
}

#ifdef PRELOADED
__attribute__((destructor)) static void tell(void) { fprintf(stderr, "%ld\n", atomic_load(&allocations)); }
#endif
