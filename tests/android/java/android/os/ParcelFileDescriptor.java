package android.os;

import java.io.FileDescriptor;
import java.io.FileInputStream;
import java.io.IOException;
import java.lang.reflect.Field;

/** A stand-in for Android's: the number of an open file, which a JVM keeps to itself. */
public class ParcelFileDescriptor {
  private final FileInputStream stream;

  public ParcelFileDescriptor(FileInputStream stream) {
    this.stream = stream;
  }

  public int getFd() {
    try {
      Field number = FileDescriptor.class.getDeclaredField("fd");
      number.setAccessible(true);
      return number.getInt(stream.getFD());
    } catch (IOException | ReflectiveOperationException error) {
      throw new IllegalStateException(error);
    }
  }
}
