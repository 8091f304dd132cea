#pragma once
#include <sys/types.h>

/* Sizes are part of bionic's binary interface; what is in them is not. */
typedef long pthread_t;
typedef int pthread_key_t;
#if defined(__LP64__)
typedef struct { int words[10]; } pthread_mutex_t;
typedef struct { int words[12]; } pthread_cond_t;
#else
typedef struct { int words[1]; } pthread_mutex_t;
typedef struct { int words[1]; } pthread_cond_t;
#endif
typedef struct pthread_attributes pthread_attr_t; /* only ever NULL here */
typedef long pthread_mutexattr_t, pthread_condattr_t;

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);
int pthread_join(pthread_t thread, void **result);
pthread_t pthread_self(void);
int pthread_equal(pthread_t one, pthread_t other);
int pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes);
int pthread_mutex_destroy(pthread_mutex_t *mutex);
int pthread_mutex_lock(pthread_mutex_t *mutex);
int pthread_mutex_unlock(pthread_mutex_t *mutex);
int pthread_cond_init(pthread_cond_t *condition, const pthread_condattr_t *attributes);
int pthread_cond_destroy(pthread_cond_t *condition);
int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex);
int pthread_cond_broadcast(pthread_cond_t *condition);
int pthread_cond_signal(pthread_cond_t *condition);
