/* SHA-256 (FIPS 180-4), to recognise altered weights and golden data. */
#include <string.h>

#include "sha256.h"

const uint32_t edm_sha256_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate(uint32_t word, int bits) { return (word >> bits) | (word << (32 - bits)); }

static void absorb_block(uint32_t state[8], const uint8_t block[64]) {
  uint32_t w[64];
  for (int i = 0; i < 16; ++i)
    w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 |
           block[4 * i + 3];
  for (int i = 16; i < 64; ++i) {
    uint32_t low = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ (w[i - 15] >> 3);
    uint32_t high = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ (w[i - 2] >> 10);
    w[i] = w[i - 16] + low + w[i - 7] + high;
  }
  uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
  uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
  for (int i = 0; i < 64; ++i) {
    uint32_t sum1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
    uint32_t first = h + sum1 + ((e & f) ^ (~e & g)) + edm_sha256_constants[i] + w[i];
    uint32_t sum0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
    uint32_t second = sum0 + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + first;
    d = c, c = b, b = a, a = first + second;
  }
  state[0] += a, state[1] += b, state[2] += c, state[3] += d;
  state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

static void absorb(uint32_t state[8], const uint8_t *data, uint64_t blocks) {
  edm_absorb_fn fast = edm_fast_absorb();
  if (fast) fast(state, data, blocks);
  else
    for (; blocks; --blocks, data += 64) absorb_block(state, data);
}

static const uint32_t begin[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                  0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

/* The last `left` bytes of `length`, fewer than a block. */
static void end(uint32_t state[8], const uint8_t *bytes, uint64_t left, uint64_t length, uint8_t digest[32]) {
  uint8_t tail[128] = {0};
  if (left) memcpy(tail, bytes, (size_t)left);
  tail[left] = 0x80;
  size_t total = left < 56 ? 64 : 128;
  for (size_t i = 0; i < 8; ++i) tail[total - 1 - i] = (uint8_t)(length * 8 >> (8 * i));
  absorb(state, tail, total / 64);
  for (int i = 0; i < 8; ++i)
    for (int k = 0; k < 4; ++k) digest[4 * i + k] = (uint8_t)(state[i] >> (24 - 8 * k));
}

void edm_sha256(const void *data, uint64_t length, uint8_t digest[32]) {
  uint32_t state[8];
  memcpy(state, begin, sizeof state);
  const uint8_t *bytes = data;
  absorb(state, bytes, length / 64);
  end(state, bytes + length / 64 * 64, length % 64, length, digest);
}

bool edm_sha256_file(FILE *file, uint8_t digest[32]) {
  uint8_t piece[64 * 64];
  uint32_t state[8];
  memcpy(state, begin, sizeof state);
  uint64_t length = 0;
  size_t got;
  do {
    got = fread(piece, 1, sizeof piece, file);
    length += got;
    absorb(state, piece, got / 64);
  } while (got == sizeof piece);
  end(state, piece + got / 64 * 64, got % 64, length, digest);
  return !ferror(file);
}
