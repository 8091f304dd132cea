package org.edgedm;

import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.channels.ReadableByteChannel;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * A compiled diffusion model: its weights, which never change. Any number of threads and sessions may use it.
 *
 * <pre>
 * try (Model model = Assets.open(context.getAssets(), "digits");
 *     Session session = model.session(2)) {
 *   session.prepare(new Schedule().steps(20), new Conditions().label(7));
 *   float[] image = session.sample(new Drawing().seed(1), null);
 * }
 * </pre>
 */
public final class Model implements AutoCloseable {
  private final long library;
  private final long[] info;
  private final String variant;
  private final ByteBuffer memory; // what the C library reads from must stay
  private long handle; // 0: freed
  private int users = 1; // this model until it is closed, and its sessions
  private boolean closed;

  private Model(long library, long handle, ByteBuffer memory) {
    this.library = library;
    this.handle = handle;
    this.memory = memory;
    this.info = Native.info(library);
    this.variant = Native.variant(handle);
  }

  /**
   * Open the model called {@code name} with the weights in a file, which are mapped into memory.
   *
   * @param name the library is libedgedm_NAME.so
   * @throws EdgedmException for weights that are missing, truncated or not those of this model
   */
  public static Model open(String name, File weights) {
    return open(name, weights, null);
  }

  /**
   * Open the model to run one of its {@link #variants}.
   *
   * @param variant its name; null: the best that the processor can run
   * @throws EdgedmException with reason WRONG_MACHINE for a variant that the processor cannot run, BAD_ARGUMENT for a
   *     name that the model has not
   */
  public static Model open(String name, File weights, String variant) {
    long library = Native.library(name);
    return new Model(library, Native.openFile(library, text(weights.getPath()), text(variant)), null);
  }

  /**
   * Open the model with the weights in a part of an open file, as of an asset that is not compressed. They are mapped
   * into memory; the file may be closed afterwards.
   *
   * @param fd a descriptor, as of ParcelFileDescriptor.getFd
   */
  public static Model open(String name, int fd, long offset, long length) {
    return open(name, fd, offset, length, null);
  }

  /** Open the model with the weights in a part of an open file, to run the variant of that name, null: the best. */
  public static Model open(String name, int fd, long offset, long length, String variant) {
    long library = Native.library(name);
    if (offset < 0 || length < 1) throw new IllegalArgumentException("offset " + offset + ", length " + length);
    return new Model(library, Native.openDescriptor(library, fd, offset, length, text(variant)), null);
  }

  /** Open the model with the weights that a stream gives, which are read into memory; the stream stays open. */
  public static Model open(String name, InputStream weights) throws IOException {
    return open(name, weights, null);
  }

  /** Open the model with the weights that a stream gives, to run the variant of that name, null: the best. */
  public static Model open(String name, InputStream weights, String variant) throws IOException {
    return open(name, read(weights), variant);
  }

  /** Open the model with the weights that a direct buffer holds from its start to its limit; nothing may change it. */
  public static Model open(String name, ByteBuffer weights) {
    return open(name, weights, null);
  }

  /** Open the model with the weights in a direct buffer, to run the variant of that name, null: the best. */
  public static Model open(String name, ByteBuffer weights, String variant) {
    long library = Native.library(name);
    if (!weights.isDirect()) throw new IllegalArgumentException("weights: expected a direct buffer");
    ByteBuffer kept = weights.duplicate();
    return new Model(library, Native.openMemory(library, kept, kept.limit(), text(variant)), kept);
  }

  /** As C takes text; null stays null. */
  private static byte[] text(String value) {
    if (value == null) return null;
    byte[] bytes = value.getBytes(StandardCharsets.UTF_8);
    return Arrays.copyOf(bytes, bytes.length + 1);
  }

  private static ByteBuffer read(InputStream stream) throws IOException {
    ReadableByteChannel channel = Channels.newChannel(stream);
    ByteBuffer buffer = ByteBuffer.allocateDirect(Math.max(stream.available(), 1 << 16));
    while (channel.read(buffer) >= 0) {
      if (buffer.hasRemaining()) continue;
      if (buffer.capacity() > Integer.MAX_VALUE / 2) throw new IOException("weights: more than 1 GiB in a stream");
      buffer.flip();
      buffer = ByteBuffer.allocateDirect(2 * buffer.capacity()).put(buffer);
    }
    buffer.flip();
    return buffer;
  }

  /** The variants of the model called {@code name}: its kernels for better and lesser processors, the best first. */
  public static List<String> variants(String name) {
    long library = Native.library(name);
    List<String> names = new ArrayList<>();
    for (String each; (each = Native.variantName(library, names.size())) != null; ) names.add(each);
    return names;
  }

  /** Which of an AAR's weights are those of this model on this machine: arm64-v8a, armeabi-v7a or x86_64. */
  public static String abi(String name) {
    Native.library(name);
    return Native.abi();
  }

  /** Begin a session with this many threads. */
  public Session session(int threads) {
    return session(threads, 0, null);
  }

  /**
   * Begin a session.
   *
   * @param lanes how many images are drawn at once, each with memory of its own; 0: as many as threads
   * @param cores those that the session's own threads run on; null: any. The thread that calls works too
   */
  public synchronized Session session(int threads, int lanes, int[] cores) {
    if (closed) throw new IllegalStateException("the model is closed");
    long session = Native.createSession(handle, threads, lanes, cores);
    users++;
    return new Session(this, session);
  }

  /** Which of the {@link #variants} runs. */
  public String variant() {
    return variant;
  }

  /** The fast cores of this machine if it has slow ones too, else all. */
  public int[] bigCores() {
    return Native.bigCores(library);
  }

  /** Channels, rows and columns of what is drawn: an image, or a latent model's latent. */
  public int[] imageShape() {
    return shape(0, 3);
  }

  /** Channels, rows and columns of what {@link Session#decode} makes; null for a model without latents. */
  public int[] decodedShape() {
    return info[3] == 0 ? null : shape(3, 6);
  }

  /** Tokens of a text condition and the size of one; null for a model without. */
  public int[] textShape() {
    return info[6] == 0 ? null : shape(6, 8);
  }

  /** How many classes there are to draw; 0: the model takes no class. */
  public int classes() {
    return (int) info[8];
  }

  /** Steps of the schedule that the model was compiled with. */
  public int defaultSteps() {
    return (int) info[9];
  }

  /** Sampler of the schedule that the model was compiled with. */
  public Sampler defaultSampler() {
    return Sampler.values()[(int) info[10]];
  }

  /** Floats of an image, or of a latent. */
  int imageFloats() {
    return product(imageShape());
  }

  /** Floats of a decoded image, or 0. */
  int decodedFloats() {
    int[] shape = decodedShape();
    return shape == null ? 0 : product(shape);
  }

  /** Floats of a text condition, or 0. */
  int textFloats() {
    int[] shape = textShape();
    return shape == null ? 0 : product(shape);
  }

  private int[] shape(int from, int to) {
    int[] shape = new int[to - from];
    for (int i = from; i < to; i++) shape[i - from] = Math.toIntExact(info[i]);
    return shape;
  }

  private static int product(int[] shape) {
    int product = 1;
    for (int extent : shape) product = Math.multiplyExact(product, extent);
    return product;
  }

  /** Free the weights, once the last session is closed too. */
  @Override
  public synchronized void close() {
    if (closed) return;
    closed = true;
    release();
  }

  /** A session, or this model, does not need the weights any more. */
  synchronized void release() {
    if (--users > 0) return;
    Native.closeModel(handle);
    handle = 0;
  }
}
