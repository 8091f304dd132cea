package org.edgedm;

import java.nio.ByteBuffer;
import java.util.HashMap;
import java.util.Map;

/** What the C library does; see jni.c. Every long is a pointer of it: to a library's functions, a model or a session. */
final class Native {
  private static final int INTERFACE = 1; // of jni.c

  private static final Map<String, Long> LIBRARIES = new HashMap<>();
  private static int loadedInterface;
  private static long loadedLibrary;

  private Native() {}

  /** The functions of the model called {@code name}, whose library is loaded if it is not yet. */
  static synchronized long library(String name) {
    Long known = LIBRARIES.get(name);
    if (known != null) return known;
    loadedLibrary = 0;
    System.loadLibrary("edgedm_" + name); // calls loaded
    if (loadedLibrary == 0) {
      throw new IllegalStateException(
          "libedgedm_" + name + ".so was loaded by other code before; let Model.open load it");
    }
    if (loadedInterface != INTERFACE) {
      throw new IllegalStateException(
          "libedgedm_" + name + ".so and the classes of org.edgedm are of different versions (" + loadedInterface
              + " and " + INTERFACE + "); take both from one AAR");
    }
    LIBRARIES.put(name, loadedLibrary);
    return loadedLibrary;
  }

  /** Called by a library while it is loaded. */
  private static void loaded(int version, long library) {
    loadedInterface = version;
    loadedLibrary = library;
  }

  static native String abi();

  static native long[] info(long library);

  static native int[] bigCores(long library);

  static native long openFile(long library, byte[] path);

  static native long openDescriptor(long library, int fd, long offset, long length);

  static native long openMemory(long library, ByteBuffer weights, long length);

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
