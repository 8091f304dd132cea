/* How long it took, and the memory that it took. */
#include <stdio.h>
#include <time.h>

#include "program.h"

static double seconds(clockid_t clock) {
  struct timespec time = {0, 0};
  clock_gettime(clock, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

#ifdef __wasm__
static double processor_seconds(void) { return 0.0; } /* WASI has no such clock */
static long peak_kib(void) { return (long)(__builtin_wasm_memory_size(0) * 64); /* it never shrinks */ }
#else
#include <sys/resource.h>
static double processor_seconds(void) { return seconds(CLOCK_PROCESS_CPUTIME_ID); }
static long peak_kib(void) {
  struct rusage usage = {0};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss; /* Linux counts in KiB */
}
#endif

edm_times edm_now(void) { return (edm_times){seconds(CLOCK_MONOTONIC), processor_seconds()}; }

void edm_print_times(const edm_times *begun, const edm_times *ended, uint64_t steps) {
  if (begun->processor > 0.0) printf("start-up %.3f ms of processor time\n", 1e3 * begun->processor);
  if (steps) printf("step %.3f ms (%llu steps)\n", 1e3 * (ended->clock - begun->clock) / (double)steps,
                    (unsigned long long)steps);
  printf("peak memory %ld KiB\n", peak_kib());
}
