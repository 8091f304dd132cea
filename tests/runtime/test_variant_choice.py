"""How a variant is chosen: names that mean the same, and the features that C knows of against those of Python."""

import itertools
import re
import subprocess

import pytest
import tools

from edgedm.bundle import Bundle, load
from edgedm.errors import UnsupportedError
from edgedm.lower.codegen import TEMPLATES
from edgedm.runtime.choice import as_variant, choose
from edgedm.targets import arm, resolve, runs_natively, x86

ASKING = """
#include <stdio.h>
#include <string.h>
#include "runtime.h"
static edm_variant table[40];
const edm_description edm_compiled = {.variants = table, .variant_count = sizeof table / sizeof *table};

/* Lines of a variant's name and its features: what each lacks. With names: whether the first means the others. */
int main(int count, char **names) {
  static char line[2000];
  static const char *needs[100];
  for (int i = 2; i < count; ++i) {
    for (size_t j = 0; j < sizeof table / sizeof *table; ++j) table[j].name = names[1], table[j].needs = needs;
    const edm_variant *picked;
    puts(edm_pick_variant(names[i], &picked) ? edm_last_error() : "yes");
  }
  while (count == 1 && fgets(line, sizeof line, stdin)) {
    char lacking[256];
    edm_variant asked = {.name = strtok(line, " \\n"), .needs = needs};
    int n = 0;
    while ((needs[n] = strtok(NULL, " \\n"))) ++n;
    printf("%d %s\\n", edm_variant_lacks(&asked, lacking, sizeof lacking), lacking);
  }
  return 0;
}
"""


@pytest.fixture(scope="module")
def asking(tiny_bundle, tmp_path_factory):
    """A program around the runtime's own variants.c."""
    tools.need("gcc")
    folder = tmp_path_factory.mktemp("asking")
    (folder / "asking.c").write_text(ASKING)
    sources = [folder / "asking.c", *(tiny_bundle / "src" / name for name in ("variants.c", "errors.c"))]
    places = ["-I", tiny_bundle / "include", "-I", tiny_bundle / "src"]
    command = ["gcc", "-std=c11", "-D_GNU_SOURCE", *places, *sources, "-o", folder / "asking"]
    subprocess.run([str(each) for each in command], check=True)
    return folder / "asking"


def combinations(levels):
    """Every target of some levels: each with every set of features that may be added."""
    for level in levels.values():
        for count in range(len(level.extras) + 1):
            for extras in itertools.combinations(level.extras, count):
                if level.required <= set(extras):
                    yield resolve("+".join([level.name, *extras]))


def as_built_for(bundle, *names) -> Bundle:
    """The bundle, saying that it was built for these targets."""
    best, *others = [bundle.manifest.target.model_copy(update={"name": name}) for name in names]
    variant = {"arena_bytes": 0, "kernel_bytes": 0, "nodes": [], "slow": []}
    rest = [{**variant, "target": each.model_dump()} for each in others]
    manifest = bundle.manifest.model_dump() | {"target": best.model_dump(), "others": rest}
    manifest["sections"] = [{**each, "variants": list(names)} for each in manifest["sections"]]
    return Bundle(bundle.path, type(bundle.manifest).model_validate(manifest))


# --- names ------------------------------------------------------------------------------------------------------

SAME = [
    ("x86-64-v4+vnni+vpopcntdq", "x86-64-v4+vpopcntdq+vnni"),
    ("aarch64+dotprod+i8mm", "aarch64+i8mm"),
    ("aarch64+dotprod+i8mm", "aarch64+i8mm+dotprod"),
    ("cortex-a76", "cortex-a76"),
]
OTHER = [
    ("x86-64-v4+vnni", "x86-64-v4+vnni+vpopcntdq"),
    ("x86-64-v4+vnni+vpopcntdq", "x86-64-v4+vnni"),
    ("x86-64-v4", "x86-64-v"),
    ("x86-64-v4", "x86-64-v4+"),
    ("x86-64-v4", "x86-64-v4++vnni"),
    ("x86-64-v4+vnni", "x86-64-v4+vnn"),
    ("x86-64-v4+vnni", "x86-64-v4+vnnix"),
    ("aarch64+dotprod", "aarch64+i8mm"),
]


@pytest.mark.parametrize(("built", "asked"), SAME)
def test_features_are_named_in_any_order_and_without_those_that_others_bring(tiny_bundle, asking, built, asked):
    bundle = as_built_for(load(tiny_bundle), "none-of-these", built)
    assert as_variant(bundle, asked).variant == built
    assert subprocess.run([asking, built, asked], capture_output=True, check=True).stdout == b"yes\n"


@pytest.mark.parametrize(("built", "asked"), OTHER)
def test_a_name_of_another_target_is_refused(tiny_bundle, asking, built, asked):
    with pytest.raises(UnsupportedError, match="the bundle has"):
        as_variant(as_built_for(load(tiny_bundle), built), asked)
    assert subprocess.run([asking, built, asked], capture_output=True, check=True).stdout.startswith(b"variant ")


def test_names_that_have_no_room_in_the_message_are_counted(asking):
    text = subprocess.run([asking, "x86-64-v4+vnni", "other"], capture_output=True, text=True, check=True).stdout
    listed, more = re.fullmatch(r'variant "other": the bundle has (.*), and (\d+) more\n', text).groups()
    assert set(listed.split(", ")) == {"x86-64-v4+vnni"}
    assert len(listed.split(", ")) > 5
    assert len(listed.split(", ")) + int(more) == 40


def test_features_that_have_no_room_in_the_message_are_counted(asking):
    line = f"v {' '.join(f'feature{number}' for number in range(10, 90))}\n"
    text = subprocess.run([asking], input=line, capture_output=True, text=True, check=True).stdout
    listed, more = re.fullmatch(r"1 (.*), and (\d+) more\n", text).groups()
    assert len(listed.split()) > 10
    assert listed.split()[0] == "feature10"
    assert len(listed.split()) + int(more) == 80


@pytest.mark.parametrize("built", ["aarch64", "android-x86_64", "wasm32+simd128"])
def test_the_environment_says_nothing_of_a_bundle_for_another_machine(tiny_bundle, monkeypatch, built):
    monkeypatch.setenv("EDGEDM_FEATURES", "x86-64-v3")
    bundle = as_built_for(load(tiny_bundle), built)
    assert choose(bundle).variant == built
    with pytest.raises(UnsupportedError, match="the bundle has"):
        choose(bundle, "x86-64-v3")
    with pytest.raises(UnsupportedError, match="the bundle has"):
        choose(as_built_for(load(tiny_bundle), "x86-64-v2"))


# --- features ---------------------------------------------------------------------------------------------------


def test_c_knows_the_features_of_every_target_and_no_other():
    text = (TEMPLATES / "variants.c").read_text()
    tables = [
        re.findall(r'\{"([^"]+)", *\w+, *\d+', each) for each in re.findall(r"known\[\] = \{(.*?)\};", text, re.S)
    ]
    levels = (x86.LEVELS, {"aarch64": arm.AARCH64}, {"armv7": arm.ARMV7})
    wanted = [{f for level in each.values() for f in (*level.features, *level.extras)} for each in levels]
    assert [sorted(each) for each in tables] == [*map(sorted, wanted), []]
    implied = re.search(r"implied\[\] = \{(.*?)\};", text)
    assert dict(re.findall(r'\{"(\w+)", "(\w+)"\}', implied[1])) == arm.AARCH64.implied
    assert not any(level.implied for level in (*x86.LEVELS.values(), arm.ARMV7))


def test_c_and_python_say_alike_what_runs_here(asking):
    targets = [*combinations(x86.LEVELS), *combinations({"aarch64": arm.AARCH64})]
    assert len(targets) > 60
    mine = [each for each in targets if each.isa == ("x86" if x86.detect() else "aarch64")]
    lines = "".join(f"{each.name} {' '.join(sorted(each.features))}\n" for each in mine)
    said = subprocess.run([asking], input=lines, capture_output=True, text=True, check=True).stdout.splitlines()
    here = x86.detect() or arm.detect()
    for target, answer in zip(mine, said, strict=True):
        lacks, *missing = answer.split()
        assert (lacks == "0") == runs_natively(target), target.name
        assert missing == sorted(target.features - here), target.name
