package org.edgedm;

/** Images as Android's Bitmap takes them. */
public final class Pixels {
  private Pixels() {}

  /**
   * One image as opaque colours, for Bitmap.createBitmap(colours, columns, rows, Bitmap.Config.ARGB_8888).
   *
   * @param images floats in [image][channel][row][column] order, -1 to 1
   * @param shape channels (1 or 3), rows and columns of an image
   * @param index which of the images
   */
  public static int[] argb(float[] images, int[] shape, int index) {
    int channels = shape[0];
    int pixels = shape[1] * shape[2];
    if (channels != 1 && channels != 3) throw new IllegalArgumentException("channels: 1 or 3, got " + channels);
    int first = index * channels * pixels;
    int[] colours = new int[pixels];
    for (int i = 0; i < pixels; i++) {
      int colour = 0xFF;
      for (int c = 0; c < 3; c++) {
        colour = colour << 8 | level(images[first + (channels == 3 ? c * pixels : 0) + i]);
      }
      colours[i] = colour;
    }
    return colours;
  }

  /** -1..1 to 0..255, clamped, as in the PNG files of edgedm-sample. */
  private static int level(float value) {
    if (!(value > -1)) return 0;
    return value >= 1 ? 255 : (int) ((value + 1) * 127.5f + 0.5f);
  }
}
