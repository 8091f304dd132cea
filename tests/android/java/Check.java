import android.content.res.AssetManager;
import java.io.ByteArrayInputStream;
import java.io.File;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.lang.reflect.Constructor;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.edgedm.Conditions;
import org.edgedm.Drawing;
import org.edgedm.EdgedmException;
import org.edgedm.EdgedmException.Reason;
import org.edgedm.Model;
import org.edgedm.Pixels;
import org.edgedm.Sampler;
import org.edgedm.Schedule;
import org.edgedm.Session;
import org.edgedm.android.Assets;

/** What an app does with org.edgedm, and what it may do wrong; prints the name of each check that held. */
public final class Check {
  private static final int STEPS = 6;

  private final File weights;
  private final File otherWeights;
  private final File latentWeights;
  private final File assets;
  private final Path output;

  private Check(String[] arguments) {
    weights = new File(arguments[0]);
    otherWeights = new File(arguments[1]);
    latentWeights = new File(arguments[2]);
    assets = new File(arguments[3]);
    output = Paths.get(arguments[4]);
  }

  private interface Body {
    void run() throws Exception;
  }

  public static void main(String[] arguments) throws Exception {
    Check check = new Check(arguments);
    held("other versions", check::otherVersions);
    held("shapes", check::shapes);
    held("samples", check::samples);
    held("guided", check::guided);
    held("step", check::step);
    held("preview", check::preview);
    held("start", check::start);
    held("progress", check::progress);
    held("many callbacks", check::manyCallbacks);
    held("refused progress", check::refusedProgress);
    held("throwing progress", check::throwingProgress);
    held("cancel", check::cancel);
    held("cancel of what waits", check::cancelOfWhatWaits);
    held("reentrant progress", check::reentrantProgress);
    held("errors", check::errors);
    held("reasons", check::reasons);
    held("closing", check::closing);
    held("sources", check::sources);
    held("variants", check::variants);
    held("assets", check::assets);
    held("threads", check::threads);
    held("two models", check::twoModels);
    held("latent model", check::latentModel);
    held("pixels", check::pixels);
  }

  private static void held(String name, Body body) throws Exception {
    body.run();
    System.out.println("held: " + name);
  }

  private Model open() {
    return Model.open("tiny", weights);
  }

  private static Schedule ddpm() {
    return new Schedule().steps(STEPS).sampler(Sampler.DDPM);
  }

  private static Conditions label(long label) {
    return new Conditions().label(label);
  }

  private void write(String name, float[] values) throws IOException {
    ByteBuffer bytes = ByteBuffer.allocate(4 * values.length).order(ByteOrder.LITTLE_ENDIAN);
    bytes.asFloatBuffer().put(values);
    Files.write(output.resolve(name), bytes.array());
  }

  /** A library of another interface is refused, whenever it comes, and serves no other's models. */
  private void otherVersions() {
    same(thrown(IllegalStateException.class, () -> Model.abi("newer")).getMessage(),
        "libedgedm_newer.so and the classes of org.edgedm are of different versions (99 and 2); take both from one "
            + "AAR");
    open().close();
    same(thrown(IllegalStateException.class, () -> Model.abi("odd")).getMessage().contains("loaded before"), true);
    same(Model.abi("tiny"), "x86_64");
  }

  private void shapes() {
    try (Model model = open()) {
      same(Arrays.toString(model.imageShape()), "[1, 8, 8]");
      same(model.decodedShape(), null);
      same(model.textShape(), null);
      same(model.classes(), 2);
      same(model.defaultSteps(), 10);
      same(model.defaultSampler(), Sampler.DDIM);
      same(model.bigCores().length > 0, true);
      same(Model.abi("tiny"), "x86_64");
    }
  }

  /** The host's own program draws the same. */
  private void samples() throws IOException {
    try (Model model = open(); Session session = model.session(2)) {
      long[] timesteps = session.prepare(ddpm(), label(1));
      same(timesteps.length, STEPS);
      same(timesteps[0] > timesteps[1], true);
      write("samples", session.sample(new Drawing().seed(7).images(5)));
      session.prepare(new Schedule(), new Conditions());
      write("default", session.sample(new Drawing().seed(7)));
      session.prepare(new Schedule().timesteps(900, 500, 60).sampler(Sampler.DPM_SOLVER_PP), label(0));
      write("timesteps", session.sample(new Drawing().seed(-1).first(4).images(2)));
    }
  }

  private void guided() throws IOException {
    try (Model model = open(); Session session = model.session(2, 1, new int[] {0})) {
      session.prepare(new Schedule().steps(4).eta(0.5), label(1).guidance(2));
      write("guided", session.sample(new Drawing().seed(3)));
    }
  }

  private void step() throws IOException {
    try (Model model = open(); Session session = model.session(1)) {
      session.prepare(ddpm(), label(1));
      float[] x = new float[64];
      for (int i = 0; i < x.length; i++) x[i] = (i - 32) / 32f;
      float[] first = session.step(0, x);
      float[] second = session.step(1, x);
      session.reset();
      same(Arrays.equals(session.step(0, x), first), true);
      write("step", first);
      write("next step", second);
    }
  }

  private void preview() throws IOException {
    try (Model model = open(); Session session = model.session(1)) {
      session.prepare(ddpm(), label(1));
      session.begin(new Drawing().seed(7).first(2));
      float[] estimate = null;
      for (int left = STEPS; left > 0; left--) {
        same(session.stepsLeft(), left);
        estimate = session.next();
      }
      same(session.stepsLeft(), 0);
      float[] image = session.current();
      write("estimate", estimate);
      same(Arrays.equals(image, session.sample(new Drawing().seed(7).first(2))), true);
    }
  }

  private void start() throws IOException {
    try (Model model = open(); Session session = model.session(1)) {
      session.prepare(ddpm(), label(1));
      float[] from = session.sample(new Drawing().seed(1).images(2));
      write("start", from);
      write("started", session.sample(new Drawing().seed(2).images(2).start(from, 0.5)));
    }
  }

  private void progress() {
    try (Model model = open(); Session session = model.session(3)) {
      session.prepare(ddpm(), label(1));
      List<Long> told = new ArrayList<>();
      Thread caller = Thread.currentThread();
      float[] images = session.sample(new Drawing().seed(7).images(4), (done, total) -> {
        same(Thread.currentThread(), caller);
        same(total, 4L * STEPS);
        return told.add(done);
      });
      same(told.size(), 4 * STEPS);
      for (int i = 0; i < told.size(); i++) same(told.get(i), i + 1L);
      same(Arrays.equals(images, session.sample(new Drawing().seed(7).images(4))), true);
    }
  }

  /** More callbacks than a thread has local references. */
  private void manyCallbacks() {
    try (Model model = open(); Session session = model.session(1)) {
      session.prepare(new Schedule().steps(20), new Conditions());
      long[] count = {0};
      session.sample(new Drawing().images(120), (done, total) -> new int[100].length + ++count[0] > 0);
      same(count[0], 2400L);
    }
  }

  private void refusedProgress() {
    try (Model model = open(); Session session = model.session(2)) {
      session.prepare(ddpm(), label(1));
      EdgedmException stopped =
          thrown(EdgedmException.class, () -> session.sample(new Drawing().images(4), (done, total) -> done < 3));
      same(stopped.reason(), Reason.CANCELLED);
      same(stopped.getMessage(), "cancelled by the caller");
      same(session.sample(new Drawing()).length, 64);
    }
  }

  private void throwingProgress() {
    try (Model model = open(); Session session = model.session(2)) {
      session.prepare(ddpm(), label(1));
      for (int i = 0; i < 100; i++) {
        UnsupportedOperationException own = new UnsupportedOperationException("the app's own");
        Exception caught = thrown(UnsupportedOperationException.class,
            () -> session.sample(new Drawing().images(2), (done, total) -> {
              throw own;
            }));
        same(caught, own);
      }
      same(session.sample(new Drawing()).length, 64);
    }
  }

  private void cancel() throws Exception {
    try (Model model = open(); Session session = model.session(2)) {
      session.prepare(new Schedule().steps(20), new Conditions());
      Thread other = new Thread(session::cancel);
      EdgedmException stopped = thrown(EdgedmException.class,
          () -> session.sample(new Drawing().images(1 << 16), (done, total) -> {
            if (done == 3) other.start();
            return true;
          }));
      same(stopped.reason(), Reason.CANCELLED);
      other.join();
      same(session.sample(new Drawing()).length, 64); // an earlier cancel is forgotten
    }
  }

  /** One sampling has the session, another waits for it: a cancel stops both. */
  private void cancelOfWhatWaits() throws Exception {
    try (Model model = open(); Session session = model.session(1)) {
      session.prepare(ddpm(), label(1));
      Object[] stopped = {null};
      Thread waiting = new Thread(() -> {
        try {
          stopped[0] = session.sample(new Drawing());
        } catch (EdgedmException refused) {
          stopped[0] = refused.reason();
        }
      });
      EdgedmException refused = thrown(EdgedmException.class, () -> session.sample(new Drawing(), (done, total) -> {
        if (done != 1) return true;
        waiting.start();
        while (waiting.getState() != Thread.State.BLOCKED) Thread.yield();
        session.cancel();
        return true;
      }));
      waiting.join();
      same(refused.reason(), Reason.CANCELLED);
      same(stopped[0], Reason.CANCELLED);
      same(session.sample(new Drawing()).length, 64);
    }
  }

  /** A progress has its session's lock, and would free or change what the library is using. */
  private void reentrantProgress() throws Exception {
    try (Model model = open(); Session session = model.session(2); Session other = model.session(1)) {
      session.prepare(ddpm(), label(1));
      Body[] forbidden = {
          session::close, session::reset, session::next, session::current, session::stepsLeft,
          () -> session.begin(new Drawing()), () -> session.prepare(ddpm(), label(1)),
          () -> session.sample(new Drawing()), () -> session.step(0, new float[64]),
          () -> session.decode(new float[64])
      };
      int[] refused = {0};
      float[] drawn = session.sample(new Drawing().seed(7), (done, total) -> {
        for (Body each : forbidden) {
          String said = thrown(IllegalStateException.class, each).getMessage();
          if (said.contains("the session draws")) refused[0]++;
        }
        other.prepare(ddpm(), label(1));
        return other.sample(new Drawing().seed(7)).length == 64;
      });
      same(refused[0], STEPS * forbidden.length);
      same(Arrays.equals(drawn, session.sample(new Drawing().seed(7))), true);
      same(Arrays.equals(drawn, other.sample(new Drawing().seed(7))), true);
      thrown(UnsupportedOperationException.class, () -> session.sample(new Drawing(), (done, total) -> {
        throw new UnsupportedOperationException("the app's own");
      }));
      session.reset(); // whatever ended the sampling
    }
  }

  /** A processor that lacks something, and a number that nobody has named yet. */
  private void reasons() throws Exception {
    EdgedmException refused = thrown(EdgedmException.class, () -> Model.open("elsewhere", weights));
    same(refused.reason(), Reason.WRONG_MACHINE);
    same(refused.getMessage().contains("lacks teleport"), true);
    Constructor<EdgedmException> make = EdgedmException.class.getDeclaredConstructor(int.class, byte[].class);
    make.setAccessible(true);
    for (int status : new int[] {-1, 0, Reason.values().length, 99}) {
      EdgedmException strange = make.newInstance(status, "so it was".getBytes(StandardCharsets.UTF_8));
      same(strange.reason(), Reason.OTHER);
      same(strange.getMessage(), "so it was");
    }
  }

  private void errors() throws Exception {
    File missing = new File("no such folder/wähl.bin");
    EdgedmException refused = thrown(EdgedmException.class, () -> Model.open("tiny", missing));
    same(refused.reason(), Reason.BAD_FILE);
    same(refused.getMessage(), "no such folder/wähl.bin: No such file or directory");
    byte[] wrong = Files.readAllBytes(weights.toPath());
    wrong[0] ^= 1;
    refused = thrown(EdgedmException.class, () -> Model.open("tiny", new ByteArrayInputStream(wrong)));
    same(refused.getMessage().contains("SHA-256 differs"), true);
    thrown(EdgedmException.class, () -> Model.open("tiny", new ByteArrayInputStream(new byte[5])));
    thrown(IllegalArgumentException.class, () -> Model.open("tiny", ByteBuffer.allocate(5)));
    thrown(IllegalArgumentException.class, () -> Model.open("tiny", 0, -1, 5));
    thrown(UnsatisfiedLinkError.class, () -> Model.open("nothing", weights));
    same(addressless().reason(), Reason.BAD_ARGUMENT);
    try (Model model = open(); Session session = model.session(1)) {
      Drawing one = new Drawing();
      same(thrown(EdgedmException.class, () -> session.sample(one)).reason(), Reason.BAD_ARGUMENT);
      thrown(EdgedmException.class, () -> session.next());
      thrown(EdgedmException.class, () -> session.current());
      refused = thrown(EdgedmException.class, () -> session.prepare(ddpm(), label(3)));
      same(refused.reason(), Reason.BAD_ARGUMENT);
      same(refused.getMessage().contains("3"), true);
      thrown(EdgedmException.class, () -> session.prepare(new Schedule().timesteps(5, 5), label(1)));
      thrown(EdgedmException.class, () -> session.prepare(new Schedule().steps(-1), label(1)));
      thrown(IllegalArgumentException.class, () -> session.prepare(ddpm(), new Conditions().text(new float[1])));
      thrown(EdgedmException.class, () -> model.session(-1));
      thrown(EdgedmException.class, () -> model.session(2, 0, new int[] {5000}));
      session.prepare(ddpm(), label(1));
      thrown(IllegalArgumentException.class, () -> session.step(0, new float[63]));
      thrown(NullPointerException.class, () -> session.step(0, null));
      thrown(IllegalArgumentException.class, () -> session.step(STEPS, new float[64]));
      thrown(IllegalArgumentException.class, () -> session.sample(new Drawing().images(0)));
      thrown(IllegalArgumentException.class, () -> session.sample(new Drawing().start(new float[1], 0.5)));
      thrown(EdgedmException.class, () -> session.sample(new Drawing().start(new float[64], 2)));
      thrown(ArithmeticException.class, () -> session.sample(new Drawing().images(Integer.MAX_VALUE)));
      same(thrown(EdgedmException.class, () -> session.decode(new float[64])).reason(), Reason.BAD_ARGUMENT);
    }
  }

  /** A buffer of which the machine gives no address. The weights are at hand as standard input, where nobody looks. */
  private EdgedmException addressless() throws Exception {
    Class<?> natives = Class.forName("org.edgedm.Native");
    Method library = natives.getDeclaredMethod("library", String.class);
    Class<?>[] types = {long.class, ByteBuffer.class, long.class, byte[].class};
    Method open = natives.getDeclaredMethod("openMemory", types);
    library.setAccessible(true);
    open.setAccessible(true);
    Object functions = library.invoke(null, "tiny");
    ByteBuffer buffer = ByteBuffer.allocate((int) weights.length());
    Body body = () -> open.invoke(null, functions, buffer, weights.length(), null);
    return (EdgedmException) thrown(InvocationTargetException.class, body).getCause();
  }

  private void closing() {
    Model model = open();
    Session session = model.session(1);
    model.close();
    model.close();
    thrown(IllegalStateException.class, () -> model.session(1));
    session.prepare(ddpm(), label(1)); // the weights live until the last session is closed
    same(session.sample(new Drawing()).length, 64);
    session.close();
    session.close();
    thrown(IllegalStateException.class, () -> session.sample(new Drawing()));
  }

  private void sources() throws Exception {
    byte[] content = Files.readAllBytes(weights.toPath());
    float[] expected;
    try (Model model = open()) {
      expected = draw(model);
    }
    try (Model model = Model.open("tiny", new ByteArrayInputStream(content))) {
      same(Arrays.equals(draw(model), expected), true);
    }
    ByteBuffer buffer = ByteBuffer.allocateDirect(content.length).put(content);
    buffer.flip();
    try (Model model = Model.open("tiny", buffer)) {
      same(Arrays.equals(draw(model), expected), true);
    }
  }

  private void variants() throws Exception {
    List<String> names = Model.variants("tiny");
    same(names.size(), 1);
    String only = names.get(0);
    byte[] content = Files.readAllBytes(weights.toPath());
    ByteBuffer buffer = ByteBuffer.allocateDirect(content.length).put(content);
    buffer.flip();
    Callable<?>[] ways = {
        () -> Model.open("tiny", weights, only), () -> Model.open("tiny", buffer, only),
        () -> Model.open("tiny", new ByteArrayInputStream(content), only),
        () -> Assets.open(new AssetManager(new File(assets, "own")), "tiny", only)
    };
    for (Callable<?> way : ways) {
      try (Model model = (Model) way.call()) {
        same(model.variant(), only);
      }
    }
    try (Model model = open()) {
      same(model.variant(), only);
    }
    EdgedmException refused = thrown(EdgedmException.class, () -> Model.open("tiny", weights, "ähnlich"));
    same(refused.reason(), Reason.BAD_ARGUMENT);
    same(refused.getMessage(), "variant \"ähnlich\": the bundle has " + only);
  }

  private void assets() throws Exception {
    float[] expected;
    try (Model model = open()) {
      expected = draw(model);
    }
    for (String kind : new String[] {"own", "all", "compressed"}) {
      try (Model model = Assets.open(new AssetManager(new File(assets, kind)), "tiny")) {
        same(Arrays.equals(draw(model), expected), true);
      }
    }
    thrown(FileNotFoundException.class, () -> Assets.open(new AssetManager(new File(assets, "empty")), "tiny"));
  }

  private void threads() throws Exception {
    try (Model model = open()) {
      float[] expected = draw(model);
      ExecutorService pool = Executors.newFixedThreadPool(4);
      List<Future<float[]>> drawn = new ArrayList<>();
      Callable<float[]> job = () -> draw(model);
      for (int i = 0; i < 12; i++) drawn.add(pool.submit(job));
      for (Future<float[]> each : drawn) same(Arrays.equals(each.get(), expected), true);
      pool.shutdown();
    }
  }

  /** Each by its own library, though Java binds all methods to the first of them. */
  private void twoModels() throws IOException {
    try (Model model = open(); Model other = Model.open("other", otherWeights)) {
      float[] drawn = draw(other);
      write("other", drawn);
      same(other.defaultSteps(), 5);
      same(model.defaultSteps(), 10);
      same(Arrays.equals(drawn, draw(model)), false);
    }
  }

  /** Text conditions, guidance away from a negative one, and the decoder. */
  private void latentModel() throws IOException {
    try (Model model = Model.open("latent", latentWeights); Session session = model.session(2)) {
      same(Arrays.toString(model.imageShape()), "[2, 4, 4]");
      same(Arrays.toString(model.textShape()), "[3, 4]");
      same(Arrays.toString(model.decodedShape()), "[3, 8, 8]");
      float[] text = new float[12];
      float[] negative = new float[12];
      for (int i = 0; i < 12; i++) {
        text[i] = (i - 6) / 6f;
        negative[i] = i / 12f;
      }
      thrown(EdgedmException.class, () -> session.prepare(ddpm(), new Conditions()));
      thrown(IllegalArgumentException.class, () -> session.prepare(ddpm(), new Conditions().text(new float[11])));
      session.prepare(ddpm(), new Conditions().text(text).negative(negative).guidance(2.5f));
      float[] latent = session.sample(new Drawing().seed(7));
      write("latent", latent);
      write("decoded", session.decode(latent));
      session.prepare(ddpm(), new Conditions().text(text));
      write("unguided", session.sample(new Drawing().seed(7)));
      thrown(IllegalArgumentException.class, () -> session.decode(new float[31]));
    }
  }

  private void pixels() {
    float[] images = {0, 0, 0, 0, -2, -1, 1, Float.NaN, 0, -2, 0.5f, 2};
    same(Arrays.toString(Pixels.argb(images, new int[] {1, 2, 2}, 1)),
        Arrays.toString(new int[] {0xFF000000, 0xFF000000, 0xFFFFFFFF, 0xFF000000}));
    same(Arrays.toString(Pixels.argb(images, new int[] {3, 1, 2}, 1)),
        Arrays.toString(new int[] {0xFFFF8000 | level(0.5f), 0xFF0000FF}));
    thrown(IllegalArgumentException.class, () -> Pixels.argb(images, new int[] {2, 1, 1}, 0));
  }

  private static int level(float value) {
    return (int) ((value + 1) * 127.5f + 0.5f);
  }

  private static float[] draw(Model model) {
    try (Session session = model.session(1)) {
      session.prepare(ddpm(), label(1));
      return session.sample(new Drawing().seed(7));
    }
  }

  private static void same(Object found, Object expected) {
    if (found == null ? expected != null : !found.equals(expected)) {
      throw new AssertionError("expected " + expected + ", got " + found);
    }
  }

  private static <T extends Throwable> T thrown(Class<T> type, Body body) {
    try {
      body.run();
    } catch (Throwable error) {
      if (type.isInstance(error)) return type.cast(error);
      throw new AssertionError("expected " + type + ", got " + error, error);
    }
    throw new AssertionError("expected " + type + ", nothing was thrown");
  }
}
