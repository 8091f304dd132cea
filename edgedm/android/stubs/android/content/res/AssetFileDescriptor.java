package android.content.res;

import android.os.ParcelFileDescriptor;
import java.io.Closeable;
import java.io.IOException;

/** The methods that org.edgedm.android calls, to compile against; Android has the class. */
public class AssetFileDescriptor implements Closeable {
  AssetFileDescriptor() {}

  public ParcelFileDescriptor getParcelFileDescriptor() {
    throw new UnsupportedOperationException();
  }

  public long getStartOffset() {
    throw new UnsupportedOperationException();
  }

  public long getLength() {
    throw new UnsupportedOperationException();
  }

  @Override
  public void close() throws IOException {
    throw new UnsupportedOperationException();
  }
}
