/* Which of the bundle's kernels does this machine run? The best whose instructions the processor has, and whose
 * registers the system keeps. Nothing is remembered, so any number of threads may ask at once. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

/* A feature, under the name that edgedm's targets use: a bit of one of the words in which this machine describes
 * itself. */
typedef struct {
  const char *name;
  int word, bit;
  uint32_t kept; /* x86: the sets of registers that the system must keep, as xgetbv counts them */
} feature;

enum { MOST_WORDS = 8 };

typedef struct {
  uint32_t words[MOST_WORDS];
  uint32_t kept;
} machine;

#if defined(__x86_64__)
#include <cpuid.h>

/* What cpuid answers: leaf, sub-leaf and register. */
enum { LEAF1_C, LEAF1_D, LEAF7_B, LEAF7_C, LEAF7_1_A, EXTENDED_C };
enum { OSXSAVE = 27, YMM = 0x06, ZMM = 0xe6 }; /* ZMM: the mask registers, too */

static const feature known[] = {
    {"sse2", LEAF1_D, 26, 0},        {"ssse3", LEAF1_C, 9, 0},        {"sse4.1", LEAF1_C, 19, 0},
    {"sse4.2", LEAF1_C, 20, 0},      {"movbe", LEAF1_C, 22, 0},       {"popcnt", LEAF1_C, 23, 0},
    {"lzcnt", EXTENDED_C, 5, 0},     {"bmi1", LEAF7_B, 3, 0},         {"bmi2", LEAF7_B, 8, 0},
    {"avx", LEAF1_C, 28, YMM},       {"fma", LEAF1_C, 12, YMM},       {"f16c", LEAF1_C, 29, YMM},
    {"avx2", LEAF7_B, 5, YMM},       {"avxvnni", LEAF7_1_A, 4, YMM},  {"avx512f", LEAF7_B, 16, ZMM},
    {"avx512dq", LEAF7_B, 17, ZMM},  {"avx512cd", LEAF7_B, 28, ZMM},  {"avx512bw", LEAF7_B, 30, ZMM},
    {"avx512vl", LEAF7_B, 31, ZMM},  {"vbmi", LEAF7_C, 1, ZMM},       {"vnni", LEAF7_C, 11, ZMM},
    {"vpopcntdq", LEAF7_C, 14, ZMM},
};
enum { KNOWN = sizeof known / sizeof *known };

static machine look(void) {
  machine it = {{0}, 0};
  unsigned a, b, c, d, subleaves;
  if (__get_cpuid(1, &a, &b, &c, &d)) it.words[LEAF1_C] = c, it.words[LEAF1_D] = d;
  if (__get_cpuid_count(7, 0, &subleaves, &b, &c, &d)) {
    it.words[LEAF7_B] = b, it.words[LEAF7_C] = c;
    if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) it.words[LEAF7_1_A] = a;
  }
  if (__get_cpuid(0x80000001u, &a, &b, &c, &d)) it.words[EXTENDED_C] = c;
  if (it.words[LEAF1_C] >> OSXSAVE & 1) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    it.kept = low;
  }
  return it;
}

#elif (defined(__aarch64__) || defined(__arm__)) && defined(__linux__)
#include <sys/auxv.h>

enum { HWCAP, HWCAP2 };

#if defined(__aarch64__)
static const feature known[] = {{"neon", HWCAP, 1, 0}, {"dotprod", HWCAP, 20, 0}, {"i8mm", HWCAP2, 13, 0}};
#else
static const feature known[] = {{"neon", HWCAP, 12, 0}};
#endif
enum { KNOWN = sizeof known / sizeof *known };

/* The system tells of instructions only if it keeps their registers. */
static machine look(void) {
  machine it = {{0}, 0};
  it.words[HWCAP] = (uint32_t)getauxval(AT_HWCAP);
  it.words[HWCAP2] = (uint32_t)getauxval(AT_HWCAP2);
  return it;
}

#else /* every processor that loads this program has what the kernels need */
static const feature known[] = {{"", 0, 0, 0}};
enum { KNOWN = 0 };

static machine look(void) { return (machine){{0}, 0}; }

#endif

static bool has(const machine *it, const char *name) {
  for (int i = 0; i < KNOWN; ++i)
    if (!strcmp(known[i].name, name))
      return (it->words[known[i].word] >> known[i].bit & 1) && (it->kept & known[i].kept) == known[i].kept;
  return KNOWN == 0; /* a feature that this file does not know is not there */
}

/* A feature in a target's name that another one brings along. */
static const struct {
  const char *name, *brings;
} implied[] = {{"i8mm", "dotprod"}};

/* The next feature of those that '+' divides: its length, and `*text` behind it; 0 at the end. */
static size_t next_feature(const char **text, const char **feature) {
  if (**text != '+') return 0;
  *feature = *text + 1;
  size_t length = strcspn(*feature, "+");
  *text = *feature + length;
  return length;
}

static bool is(const char *feature, size_t length, const char *name) {
  return !strncmp(feature, name, length) && !name[length];
}

/* Whether each of these features is among those, named or brought along. */
static bool holds_all(const char *those, const char *these) {
  const char *wanted, *other;
  for (size_t length; (length = next_feature(&these, &wanted));) {
    bool found = false;
    const char *rest = those;
    for (size_t size; (size = next_feature(&rest, &other));) {
      found |= size == length && !memcmp(other, wanted, length);
      for (size_t i = 0; i < sizeof implied / sizeof *implied; ++i)
        found |= is(other, size, implied[i].name) && is(wanted, length, implied[i].brings);
    }
    if (!found) return false;
  }
  return true;
}

/* Whether two names mean the same target: `x86-64-v4+vpopcntdq+vnni` is `x86-64-v4+vnni+vpopcntdq`. */
static bool same_target(const char *one, const char *other) {
  size_t level = strcspn(one, "+");
  if (strstr(one, "++") || (*one && one[strlen(one) - 1] == '+')) return false; /* a feature without a name */
  if (level != strcspn(other, "+") || memcmp(one, other, level)) return false;
  return holds_all(one + level, other + level) && holds_all(other + level, one + level);
}

typedef struct {
  char *text;
  size_t room;
  uint32_t left_out;
} words;

enum { NAMES = 192, MORE = sizeof ", and 4294967295 more" };

static words begin(char *text, size_t room) {
  text[0] = 0;
  return (words){text, room, 0};
}

/* Append a word; once one has no room, it and those behind it are counted. */
static void append(words *to, const char *between, const char *word) {
  size_t used = strlen(to->text);
  if (!used) between = "";
  if (to->left_out || used + strlen(between) + strlen(word) + MORE > to->room)
    ++to->left_out;
  else
    snprintf(to->text + used, to->room - used, "%s%s", between, word);
}

static void end(const words *these) {
  size_t used = strlen(these->text);
  if (these->left_out)
    snprintf(these->text + used, these->room - used, "%s%u more", used ? ", and " : "", (unsigned)these->left_out);
}

bool edm_variant_lacks(const edm_variant *variant, char *text, size_t room) {
  machine here = look();
  bool lacks = false;
  words missing = begin(text, room);
  for (const char *const *need = variant->needs; *need; ++need) {
    if (has(&here, *need)) continue;
    append(&missing, " ", *need);
    lacks = true;
  }
  end(&missing);
  return lacks;
}

const char *edm_variant_name(int number) {
  return number >= 0 && (uint32_t)number < edm_compiled.variant_count ? edm_compiled.variants[number].name : NULL;
}

/* The variants of the bundle; those that run here, if `only_here`. */
static void list(char names[NAMES], bool only_here) {
  char lacking[NAMES];
  words listed = begin(names, NAMES);
  for (uint32_t i = 0; i < edm_compiled.variant_count; ++i) {
    const edm_variant *each = &edm_compiled.variants[i];
    if (!only_here || !edm_variant_lacks(each, lacking, sizeof lacking)) append(&listed, ", ", each->name);
  }
  end(&listed);
}

static edm_status pick_named(const char *name, const edm_variant **picked) {
  char names[NAMES], lacking[NAMES];
  for (uint32_t i = 0; i < edm_compiled.variant_count; ++i) {
    const edm_variant *each = &edm_compiled.variants[i];
    if (!same_target(name, each->name)) continue;
    *picked = each;
    if (!edm_variant_lacks(each, lacking, sizeof lacking)) return EDM_OK;
    list(names, true);
    return edm_fail(EDM_WRONG_MACHINE, "variant %s: this processor lacks %s; here run: %s", name, lacking,
                    *names ? names : "none of the bundle's variants");
  }
  list(names, false);
  return edm_fail(EDM_BAD_ARGUMENT, "variant \"%s\": the bundle has %s", name, names);
}

edm_status edm_pick_variant(const char *name, const edm_variant **picked) {
  if (!name) name = getenv("EDGEDM_FEATURES");
  if (name && *name) return pick_named(name, picked);
  char lacking[NAMES] = "";
  for (uint32_t i = 0; i < edm_compiled.variant_count; ++i) {
    *picked = &edm_compiled.variants[i];
    if (!edm_variant_lacks(*picked, lacking, sizeof lacking)) return EDM_OK;
  }
  return edm_fail(EDM_WRONG_MACHINE, "this processor lacks %s, which %s needs: compile a variant for it", lacking,
                  (*picked)->name);
}
