/* How long it took, and the memory that it took. */
#include <stdio.h>
#include <sys/resource.h>
#include <time.h>

#include "program.h"

static double seconds(clockid_t clock) {
  struct timespec time = {0, 0};
  clock_gettime(clock, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

edm_times edm_now(void) { return (edm_times){seconds(CLOCK_MONOTONIC), seconds(CLOCK_PROCESS_CPUTIME_ID)}; }

void edm_print_times(const edm_times *begun, const edm_times *ended, uint64_t steps) {
  struct rusage usage = {0};
  getrusage(RUSAGE_SELF, &usage);
  printf("start-up %.3f ms of processor time\n", 1e3 * begun->processor);
  if (steps) printf("step %.3f ms (%llu steps)\n", 1e3 * (ended->clock - begun->clock) / (double)steps,
                    (unsigned long long)steps);
  printf("peak memory %ld KiB\n", usage.ru_maxrss); /* Linux counts in KiB */
}
