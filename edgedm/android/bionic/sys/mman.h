#pragma once
#include <linux/mman.h>
#include <sys/types.h>
#define MAP_FAILED ((void *)-1)
/* off_t has 64 bits here, which on 32-bit machines only mmap64 takes */
void *mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset) __asm__("mmap64");
int munmap(void *address, size_t bytes);
int madvise(void *address, size_t bytes, int advice);
