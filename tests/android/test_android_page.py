"""What docs/android.md tells an app to do compiles."""

import re
from pathlib import Path

import tools

from edgedm.android.java_classes import SOURCES, STUBS, compile_java

PAGE = Path(__file__).parents[2] / "docs/android.md"
ANDROID = {
    "android/content/Context.java": "package android.content; public abstract class Context {"
    " public abstract android.content.res.AssetManager getAssets(); }",
    "android/graphics/Bitmap.java": "package android.graphics; public class Bitmap { public enum Config { ARGB_8888 }"
    " public static Bitmap createBitmap(int[] colors, int width, int height, Config config) { return null; } }",
}
APP = """import android.content.Context;
import android.graphics.Bitmap;
import org.edgedm.*;
import org.edgedm.android.Assets;
abstract class App {
  Context context;
  boolean leaving;
  abstract void showProgress(long done, long total);
  abstract void show(float[] image);
  void draw() throws java.io.IOException {
%s
  }
}
"""


def test_the_example_compiles(tmp_path):
    tools.need("javac")
    (example,) = re.findall(r"```java\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for name, text in {**ANDROID, "App.java": APP % example}.items():
        (tmp_path / "app" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "app" / name).write_text(text)
    compile_java([STUBS, SOURCES], tmp_path / "classes")
    compile_java([tmp_path / "app"], tmp_path / "app classes", [tmp_path / "classes"])


def test_the_page_names_every_class_of_the_interface_that_an_app_needs():
    classes = {path.stem for path in SOURCES.rglob("*.java")} - {"Native", "Progress"}
    assert {name for name in classes if not re.search(rf"\b{name}\b", PAGE.read_text())} == set()
