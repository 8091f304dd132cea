package android.content.res;

import android.os.ParcelFileDescriptor;
import java.io.Closeable;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;

/** A stand-in for Android's: a part of an open file, which is gone when it is closed. */
public class AssetFileDescriptor implements Closeable {
  private final File file;
  private final FileInputStream stream;
  private final long offset;
  private final long length;

  AssetFileDescriptor(File file, long offset, long length) throws IOException {
    this.file = file;
    this.stream = new FileInputStream(file);
    this.offset = offset;
    this.length = length;
  }

  public ParcelFileDescriptor getParcelFileDescriptor() {
    return new ParcelFileDescriptor(stream);
  }

  public long getStartOffset() {
    return offset;
  }

  public long getLength() {
    return length;
  }

  @Override
  public void close() throws IOException {
    stream.close();
    if (!file.delete()) throw new IOException(file + ": could not be deleted");
  }
}
