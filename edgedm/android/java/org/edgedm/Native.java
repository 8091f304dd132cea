package org.edgedm;

import java.nio.ByteBuffer;
import java.util.HashMap;
import java.util.Map;
import java.util.Objects;

/** What the C library does; see jni.c. Every long is a pointer of it: a library's functions, a model or session. */
final class Native {
  private static final int INTERFACE = 2; // of jni.c

  private static final Map<String, Long> LIBRARIES = new HashMap<>();
  private static long layout; // of the libraries' structures; 0: none is loaded yet
  private static long loadedLibrary;
  private static String refused; // why, of the library that is being loaded

  private Native() {}

  /** The functions of the model called {@code name}, whose library is loaded if it is not yet. */
  static synchronized long library(String name) {
    Objects.requireNonNull(name, "name of the model");
    Long known = LIBRARIES.get(name);
    if (known != null) return known;
    loadedLibrary = 0;
    refused = null;
    try {
      System.loadLibrary("edgedm_" + name); // calls loaded
    } catch (UnsatisfiedLinkError error) {
      if (refused == null) throw error;
      throw new IllegalStateException("libedgedm_" + name + ".so and " + refused + "; take both from one AAR", error);
    }
    if (loadedLibrary == 0) {
      throw new IllegalStateException(
          "libedgedm_" + name + ".so was loaded by other code before; let Model.open load it");
    }
    LIBRARIES.put(name, loadedLibrary);
    return loadedLibrary;
  }

  /**
   * Called by a library while it is loaded, before a method below is bound to it; whether that may be.
   *
   * @param structures the sizes of what libraries hand one another, since one of them serves the models of all
   */
  private static boolean loaded(int version, long structures, long library) {
    if (version != INTERFACE) {
      refused = "the classes of org.edgedm are of different versions (" + version + " and " + INTERFACE + ")";
    } else if (layout != 0 && structures != layout) {
      refused = "a library that was loaded before it are of different versions of edgedm";
    } else {
      layout = structures;
      loadedLibrary = library;
    }
    return refused == null;
  }

  static native String abi();

  static native long[] info(long library);

  static native int[] bigCores(long library);

  static native String variantName(long library, int number);

  static native long openFile(long library, byte[] path, byte[] variant);

  static native long openDescriptor(long library, int fd, long offset, long length, byte[] variant);

  static native long openMemory(long library, ByteBuffer weights, long length, byte[] variant);

  static native String variant(long model);

  static native void closeModel(long model);

  static native long createSession(long model, int threads, int lanes, int[] cores);

  static native void freeSession(long session);

  static native void prepare(long session, int steps, int sampler, double eta, long[] timesteps, long label,
      float guidance, float[] condition, float[] negative);

  static native void timesteps(long session, long[] timesteps);

  static native void reset(long session);

  static native void step(long session, int step, float[] x, float[] output);

  static native void decode(long session, float[] latent, float[] image);

  static native void sample(long session, Session self, long seed, int first, int count, float[] start,
      double strength, float[] images);

  static native void begin(long session, long seed, int first, float[] start, double strength);

  static native int stepsLeft(long session);

  static native void next(long session, float[] preview);

  static native void current(long session, float[] x);
}
