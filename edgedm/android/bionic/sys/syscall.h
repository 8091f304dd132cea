#pragma once
#include <asm/unistd.h>
#define SYS_sched_getaffinity __NR_sched_getaffinity
#define SYS_sched_setaffinity __NR_sched_setaffinity
