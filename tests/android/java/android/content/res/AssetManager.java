package android.content.res;

import java.io.File;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;

/** A stand-in for Android's: a folder of assets, of which those whose name ends in .compressed are. */
public final class AssetManager {
  private static final int BEFORE = 12; // bytes of an APK before an asset

  private final File folder;

  public AssetManager(File folder) {
    this.folder = folder;
  }

  public AssetFileDescriptor openFd(String path) throws IOException {
    File asset = new File(folder, path);
    if (!asset.isFile()) throw new FileNotFoundException(path + ": not there, or compressed");
    File apk = File.createTempFile("assets", ".apk");
    byte[] content = Files.readAllBytes(asset.toPath());
    byte[] around = new byte[BEFORE + content.length + BEFORE];
    System.arraycopy(content, 0, around, BEFORE, content.length);
    Files.write(apk.toPath(), around);
    return new AssetFileDescriptor(apk, BEFORE, content.length);
  }

  public InputStream open(String path) throws IOException {
    File asset = new File(folder, path);
    if (!asset.isFile()) asset = new File(folder, path + ".compressed");
    if (!asset.isFile()) throw new FileNotFoundException(path);
    return Files.newInputStream(asset.toPath());
  }
}
