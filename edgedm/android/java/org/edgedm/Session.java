package org.edgedm;

import java.util.Objects;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * What changes while images are drawn. One thread at a time uses a session, others wait; {@link #cancel} may be called
 * from any.
 */
public final class Session implements AutoCloseable {
  private final Model model;
  private final int floats; // of an image
  private long handle; // 0: closed
  private int steps; // that were prepared
  private boolean samples; // the thread that has the lock is in Native.sample, or was called from there
  private Progress progress; // of the sampling that runs
  private int heard; // how many cancels there were when it was asked for
  private final AtomicInteger cancels = new AtomicInteger();

  Session(Model model, long handle) {
    this.model = model;
    this.handle = handle;
    this.floats = model.imageFloats();
  }

  /** Choose steps and conditions; what depends on them alone is computed here, once. Returns the timesteps. */
  public synchronized long[] prepare(Schedule schedule, Conditions conditions) {
    long open = open();
    int count = schedule.timesteps != null ? schedule.timesteps.length
        : schedule.steps != 0 ? schedule.steps : model.defaultSteps();
    Sampler sampler = schedule.sampler != null ? schedule.sampler : model.defaultSampler();
    require("text", conditions.text, model.textFloats());
    require("negative", conditions.negative, model.textFloats());
    steps = 0;
    Native.prepare(open, count, sampler.ordinal(), schedule.eta, schedule.timesteps, conditions.label,
        conditions.guidance, conditions.text, conditions.negative);
    long[] timesteps = new long[count];
    Native.timesteps(open, timesteps);
    steps = count;
    return timesteps;
  }

  /** Draw images: floats in [image][channel][row][column] order, nominally from -1 to 1. */
  public float[] sample(Drawing drawing) {
    return sample(drawing, null);
  }

  /**
   * Draw images and tell {@code progress}, which may be null, on the way. What it throws comes out of here.
   *
   * @throws EdgedmException with reason CANCELLED after {@link #cancel}, or where the progress did not want more
   */
  public float[] sample(Drawing drawing, Progress progress) {
    return sample(drawing, progress, cancels.get());
  }

  private synchronized float[] sample(Drawing drawing, Progress progress, int cancels) {
    long open = open();
    if (drawing.images < 1 || drawing.first < 0) {
      throw new IllegalArgumentException("images " + drawing.images + " from number " + drawing.first);
    }
    int all = Math.multiplyExact(drawing.images, floats);
    require("start", drawing.start, all);
    float[] images = new float[all];
    this.progress = progress;
    heard = cancels;
    samples = true;
    try {
      Native.sample(open, this, drawing.seed, drawing.first, drawing.images, drawing.start, drawing.strength, images);
    } finally {
      samples = false;
      this.progress = null;
    }
    return images;
  }

  /** Called by the library after each step; whether to go on. */
  private boolean progress(long done, long total) {
    return !cancelled() && (progress == null || progress.step(done, total)) && !cancelled();
  }

  private boolean cancelled() {
    return cancels.get() != heard;
  }

  /**
   * Stop every {@code sample} that has been called and has not returned, after the step that it is at or, where it
   * still waits for the session, after its first. One that is called later is not stopped: its progress may be. From
   * any thread.
   */
  public void cancel() {
    cancels.incrementAndGet();
  }

  /** Begin to draw one image, the first of the drawing, step by step. */
  public synchronized void begin(Drawing drawing) {
    long open = open();
    if (drawing.first < 0) throw new IllegalArgumentException("image number " + drawing.first);
    require("start", drawing.start, floats);
    Native.begin(open, drawing.seed, drawing.first, drawing.start, drawing.strength);
  }

  /** How many steps the image that was begun still needs. */
  public synchronized int stepsLeft() {
    return Native.stepsLeft(open());
  }

  /** Do one step; returns the finished image as this step expects it. */
  public synchronized float[] next() {
    float[] preview = new float[floats];
    Native.next(open(), preview);
    return preview;
  }

  /** The image that was begun as it is now; after the last step that of {@link #sample}. */
  public synchronized float[] current() {
    float[] image = new float[floats];
    Native.current(open(), image);
    return image;
  }

  /** The model's output for {@code x} at a step of the prepared schedule; for samplers of your own. */
  public synchronized float[] step(int step, float[] x) {
    long open = open();
    require("x", Objects.requireNonNull(x, "x"), floats);
    if (step < 0 || step >= steps) throw new IllegalArgumentException("step " + step + " of " + steps + " prepared");
    float[] output = new float[floats];
    Native.step(open, step, x, output);
    return output;
  }

  /** Begin a new trajectory for {@link #step}. */
  public synchronized void reset() {
    Native.reset(open());
  }

  /** The image of a latent model's sample. */
  public synchronized float[] decode(float[] latent) {
    long open = open();
    require("latent", Objects.requireNonNull(latent, "latent"), floats);
    float[] image = new float[model.decodedFloats()];
    Native.decode(open, latent, image);
    return image;
  }

  private long open() {
    whileNothingSamples();
    if (handle == 0) throw new IllegalStateException("the session is closed");
    return handle;
  }

  /** A lock does not keep out the thread that has it: a progress, which would change or free what is in use. */
  private void whileNothingSamples() {
    if (samples) {
      throw new IllegalStateException("the session draws: a progress may cancel it, and use other sessions");
    }
  }

  private static void require(String name, float[] values, int length) {
    if (values != null && values.length != length) {
      throw new IllegalArgumentException(name + ": expected " + length + " floats, got " + values.length);
    }
  }

  /** Free the session's memory; waits for what runs. Not from its own progress. */
  @Override
  public synchronized void close() {
    whileNothingSamples();
    if (handle == 0) return;
    Native.freeSession(handle);
    handle = 0;
    model.release();
  }
}
