/* Inside SHA-256. */
#ifndef EDM_SHA256_H
#define EDM_SHA256_H

#include "runtime.h"

extern const uint32_t edm_sha256_constants[64];

/* Take blocks of 64 bytes into the state. */
typedef void (*edm_absorb_fn)(uint32_t state[8], const uint8_t *data, uint64_t blocks);

/* That of this processor's own instructions, or NULL. */
edm_absorb_fn edm_fast_absorb(void);

#endif
