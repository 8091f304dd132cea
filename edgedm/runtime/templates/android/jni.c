/* What the methods of org.edgedm.Native do: Java's arrays and exceptions on one side, the C interface on the other.
 *
 * An app may load several of these libraries, one a model, and Java binds a method to the first of them. So no function
 * here calls its own model: each gets the table of the library that the model belongs to. Whose structures lie as this
 * library's do is for Native.java to say, and nothing is bound before it has. */
#include <jni.h>
#include <stdlib.h>
#include <string.h>

#include "edgedm.h"
#include "runtime.h"

enum { INTERFACE = 2, INFO = 11 }; /* the former as in Native.java, which refuses another */

typedef struct {
  const edm_description *compiled;
  const char *(*last_error)(void);
  edm_status (*open)(const edm_source *, edm_model **);
  void (*close)(edm_model *);
  edm_status (*session_create)(edm_model *, const edm_session_options *, edm_session **);
  void (*session_free)(edm_session *);
  edm_status (*prepare)(edm_session *, const edm_schedule *, const edm_conditions *);
  edm_status (*timesteps)(const edm_session *, int64_t *);
  edm_status (*step)(edm_session *, int, const float *, float *);
  edm_status (*reset)(edm_session *);
  edm_status (*sample)(edm_session *, const edm_sample_options *, float *, edm_progress_fn, void *);
  edm_status (*begin)(edm_session *, const edm_sample_options *);
  int (*steps_left)(const edm_session *);
  edm_status (*next)(edm_session *, float *);
  edm_status (*current)(const edm_session *, float *);
  edm_status (*decode)(edm_session *, const float *, float *);
  int (*big_cores)(int *, int);
  const char *(*variant_name)(int);
  const char *(*model_variant)(const edm_model *);
} functions;

static const functions own = {&edm_compiled,    edm_last_error,   edm_open,    edm_close,      edm_session_create,
                              edm_session_free, edm_prepare,      edm_timesteps, edm_step,     edm_reset,
                              edm_sample,       edm_begin,        edm_steps_left, edm_next,    edm_current,
                              edm_decode,       edm_big_cores, edm_variant_name, edm_model_variant};

typedef struct {
  const functions *call;
  edm_model *model;
} model_handle;

typedef struct {
  const functions *call;
  edm_session *session;
} session_handle;

static jclass exception_class;         /* org.edgedm.EdgedmException, */
static jmethodID exception_constructor; /* of a status and a message */
static jmethodID session_progress;     /* boolean Session.progress(long, long) */

#define NATIVE(type, name) static type JNICALL native_##name
#define FROM_JAVA(type, handle) ((type *)(intptr_t)(handle))
#define TO_JAVA(pointer) ((jlong)(intptr_t)(pointer))

/* --- loading --------------------------------------------------------------------------------------------- */

static bool find_classes(JNIEnv *env) {
  jclass exception = (*env)->FindClass(env, "org/edgedm/EdgedmException");
  if (!exception) return false;
  exception_class = (*env)->NewGlobalRef(env, exception);
  (*env)->DeleteLocalRef(env, exception);
  if (!exception_class) return false;
  exception_constructor = (*env)->GetMethodID(env, exception_class, "<init>", "(I[B)V");
  if (!exception_constructor) return false;
  jclass session = (*env)->FindClass(env, "org/edgedm/Session");
  if (!session) return false;
  session_progress = (*env)->GetMethodID(env, session, "progress", "(JJ)Z");
  (*env)->DeleteLocalRef(env, session);
  return session_progress != NULL;
}

/* Whether Java takes this library: it is of the classes' version, and what libraries hand one another lies alike. */
static bool is_accepted(JNIEnv *env, jclass native) {
  jmethodID loaded = (*env)->GetStaticMethodID(env, native, "loaded", "(IJJ)Z");
  if (!loaded) return false;
  const jlong layout = (jlong)sizeof(functions) << 32 | (jlong)sizeof(edm_description);
  jboolean accepted = (*env)->CallStaticBooleanMethod(env, native, loaded, (jint)INTERFACE, layout, TO_JAVA(&own));
  return !(*env)->ExceptionCheck(env) && accepted;
}

static jint bind_methods(JNIEnv *env, jclass native);

JNIEXPORT jint JNICALL JNI_OnLoad(JavaVM *machine, void *reserved) {
  void *found = NULL;
  (void)reserved;
  if ((*machine)->GetEnv(machine, &found, JNI_VERSION_1_6) != JNI_OK) return JNI_ERR;
  JNIEnv *env = found;
  jclass native = (*env)->FindClass(env, "org/edgedm/Native");
  if (!native) { /* an app that has the C interface behind Java of its own */
    (*env)->ExceptionClear(env);
    return JNI_VERSION_1_6;
  }
  bool bound = find_classes(env) && is_accepted(env, native) && bind_methods(env, native) == JNI_OK;
  (*env)->DeleteLocalRef(env, native);
  return bound ? JNI_VERSION_1_6 : JNI_ERR;
}

/* --- errors and arrays ----------------------------------------------------------------------------------- */

/* Throw what a status and the message say. The message goes over as bytes: a path in it need not be what JNI takes for
 * text, and it may be cut anywhere. */
static void throw_status(JNIEnv *env, edm_status status, const char *message) {
  if ((*env)->ExceptionCheck(env)) return; /* that of the caller's own progress says more */
  jsize length = (jsize)strlen(message);
  jbyteArray text = (*env)->NewByteArray(env, length);
  if (!text) return; /* OutOfMemoryError is pending */
  (*env)->SetByteArrayRegion(env, text, 0, length, (const jbyte *)message);
  jobject exception = (*env)->NewObject(env, exception_class, exception_constructor, (jint)status, text);
  if (exception) (*env)->Throw(env, exception);
  (*env)->DeleteLocalRef(env, text);
}

static void check(JNIEnv *env, const functions *call, edm_status status) {
  if (status) throw_status(env, status, call->last_error());
}

/* The floats of an array, or NULL for a null array. With an exception pending: there was no memory for them. */
static jfloat *borrow(JNIEnv *env, jfloatArray array) {
  return array ? (*env)->GetFloatArrayElements(env, array, NULL) : NULL;
}

static void give_back(JNIEnv *env, jfloatArray array, jfloat *values, bool changed) {
  if (values) (*env)->ReleaseFloatArrayElements(env, array, values, changed ? 0 : JNI_ABORT);
}

/* --- models ---------------------------------------------------------------------------------------------- */

/* `variant` ends in 0, or is null: the best for this machine. */
static jlong open_source(JNIEnv *env, jlong library, edm_source source, jbyteArray variant) {
  const functions *call = FROM_JAVA(const functions, library);
  jbyte *name = variant ? (*env)->GetByteArrayElements(env, variant, NULL) : NULL;
  if (variant && !name) return 0;
  source.variant = (const char *)name;
  model_handle *handle = malloc(sizeof *handle);
  if (handle) {
    handle->call = call;
    edm_status status = call->open(&source, &handle->model);
    if (status) {
      check(env, call, status);
      free(handle);
      handle = NULL;
    }
  } else {
    throw_status(env, EDM_NO_MEMORY, "no memory for a model");
  }
  if (name) (*env)->ReleaseByteArrayElements(env, variant, name, JNI_ABORT);
  return TO_JAVA(handle);
}

NATIVE(jlong, openFile)(JNIEnv *env, jclass type, jlong library, jbyteArray path, jbyteArray variant) {
  (void)type;
  jbyte *text = (*env)->GetByteArrayElements(env, path, NULL); /* ends in 0 */
  if (!text) return 0;
  jlong handle = open_source(env, library, (edm_source){.path = (const char *)text, .fd = -1}, variant);
  (*env)->ReleaseByteArrayElements(env, path, text, JNI_ABORT);
  return handle;
}

NATIVE(jlong, openDescriptor)
(JNIEnv *env, jclass type, jlong library, jint fd, jlong offset, jlong length, jbyteArray variant) {
  (void)type;
  edm_source source = {.fd = fd, .offset = (uint64_t)offset, .length = (uint64_t)length};
  return open_source(env, library, source, variant);
}

NATIVE(jlong, openMemory)
(JNIEnv *env, jclass type, jlong library, jobject buffer, jlong length, jbyteArray variant) {
  (void)type;
  edm_source source = {.memory = (*env)->GetDirectBufferAddress(env, buffer), .fd = -1, .length = (uint64_t)length};
  if (source.memory) return open_source(env, library, source, variant);
  throw_status(env, EDM_BAD_ARGUMENT, "weights in memory: the machine gives no address of that buffer");
  return 0;
}

NATIVE(jstring, variant)(JNIEnv *env, jclass type, jlong model) {
  (void)type;
  const model_handle *handle = FROM_JAVA(const model_handle, model);
  return (*env)->NewStringUTF(env, handle->call->model_variant(handle->model));
}

/* Null beyond the last. */
NATIVE(jstring, variantName)(JNIEnv *env, jclass type, jlong library, jint number) {
  (void)type;
  const char *name = FROM_JAVA(const functions, library)->variant_name(number);
  return name ? (*env)->NewStringUTF(env, name) : NULL;
}

NATIVE(void, closeModel)(JNIEnv *env, jclass type, jlong model) {
  (void)env, (void)type;
  model_handle *handle = FROM_JAVA(model_handle, model);
  handle->call->close(handle->model);
  free(handle);
}

/* Which of an AAR's weights are this library's. */
NATIVE(jstring, abi)(JNIEnv *env, jclass type) {
  (void)type;
#if defined(__aarch64__)
  return (*env)->NewStringUTF(env, "arm64-v8a");
#elif defined(__arm__)
  return (*env)->NewStringUTF(env, "armeabi-v7a");
#else
  return (*env)->NewStringUTF(env, "x86_64");
#endif
}

/* Shapes of images, decoded images and text conditions, classes, the default schedule. */
NATIVE(jlongArray, info)(JNIEnv *env, jclass type, jlong library) {
  (void)type;
  const edm_description *model = FROM_JAVA(const functions, library)->compiled;
  const int64_t *image = model->image_shape, *decoded = model->decoded_shape, *text = model->condition_shape;
  const jlong values[INFO] = {image[0],       image[1],          image[2],
                              decoded[0],     decoded[1],        decoded[2],
                              text[0],        text[1],           model->classes,
                              model->default_steps, (jlong)model->default_sampler};
  jlongArray array = (*env)->NewLongArray(env, INFO);
  if (array) (*env)->SetLongArrayRegion(env, array, 0, INFO, values);
  return array;
}

NATIVE(jintArray, bigCores)(JNIEnv *env, jclass type, jlong library) {
  enum { MOST = 1024 };
  (void)type;
  jint cores[MOST];
  int count = FROM_JAVA(const functions, library)->big_cores(cores, MOST);
  jintArray array = (*env)->NewIntArray(env, count);
  if (array) (*env)->SetIntArrayRegion(env, array, 0, count, cores);
  return array;
}

/* --- sessions -------------------------------------------------------------------------------------------- */

NATIVE(jlong, createSession)(JNIEnv *env, jclass type, jlong model, jint threads, jint lanes, jintArray cores) {
  (void)type;
  const model_handle *owner = FROM_JAVA(const model_handle, model);
  session_handle *handle = malloc(sizeof *handle);
  if (!handle) {
    throw_status(env, EDM_NO_MEMORY, "no memory for a session");
    return 0;
  }
  handle->call = owner->call;
  jint *numbers = cores ? (*env)->GetIntArrayElements(env, cores, NULL) : NULL;
  edm_session_options options = {.threads = threads, .lanes = lanes, .cores = numbers};
  if (numbers) options.core_count = (*env)->GetArrayLength(env, cores);
  edm_status status = EDM_NO_MEMORY;
  if (!cores || numbers) status = owner->call->session_create(owner->model, &options, &handle->session);
  if (numbers) (*env)->ReleaseIntArrayElements(env, cores, numbers, JNI_ABORT);
  if (!status) return TO_JAVA(handle);
  check(env, owner->call, status);
  free(handle);
  return 0;
}

NATIVE(void, freeSession)(JNIEnv *env, jclass type, jlong session) {
  (void)env, (void)type;
  session_handle *handle = FROM_JAVA(session_handle, session);
  handle->call->session_free(handle->session);
  free(handle);
}

NATIVE(void, prepare)
(JNIEnv *env, jclass type, jlong session, jint steps, jint sampler, jdouble eta, jlongArray timesteps, jlong label,
 jfloat guidance, jfloatArray condition, jfloatArray negative) {
  (void)type;
  const session_handle *handle = FROM_JAVA(const session_handle, session);
  jlong *chosen = timesteps ? (*env)->GetLongArrayElements(env, timesteps, NULL) : NULL;
  jfloat *texts[2] = {borrow(env, condition), borrow(env, negative)};
  if (!(*env)->ExceptionCheck(env)) {
    _Static_assert(sizeof(jlong) == sizeof(int64_t), "timesteps are taken as they are");
    edm_schedule schedule = {steps, (edm_sampler)sampler, eta, (const int64_t *)chosen};
    edm_conditions conditions = {label, guidance, texts[0], texts[1]};
    check(env, handle->call, handle->call->prepare(handle->session, &schedule, &conditions));
  }
  if (chosen) (*env)->ReleaseLongArrayElements(env, timesteps, chosen, JNI_ABORT);
  give_back(env, condition, texts[0], false);
  give_back(env, negative, texts[1], false);
}

NATIVE(void, timesteps)(JNIEnv *env, jclass type, jlong session, jlongArray timesteps) {
  (void)type;
  const session_handle *handle = FROM_JAVA(const session_handle, session);
  jlong *values = (*env)->GetLongArrayElements(env, timesteps, NULL);
  if (!values) return;
  check(env, handle->call, handle->call->timesteps(handle->session, (int64_t *)values));
  (*env)->ReleaseLongArrayElements(env, timesteps, values, 0);
}

NATIVE(void, reset)(JNIEnv *env, jclass type, jlong session) {
  (void)type;
  const session_handle *handle = FROM_JAVA(const session_handle, session);
  check(env, handle->call, handle->call->reset(handle->session));
}

NATIVE(void, step)(JNIEnv *env, jclass type, jlong session, jint step, jfloatArray x, jfloatArray output) {
  (void)type;
  const session_handle *handle = FROM_JAVA(const session_handle, session);
  jfloat *from = borrow(env, x), *to = from ? borrow(env, output) : NULL;
  if (to) check(env, handle->call, handle->call->step(handle->session, step, from, to));
  give_back(env, output, to, true);
  give_back(env, x, from, false);
}

NATIVE(void, decode)(JNIEnv *env, jclass type, jlong session, jfloatArray latent, jfloatArray image) {
  (void)type;
  const session_handle *handle = FROM_JAVA(const session_handle, session);
  jfloat *from = borrow(env, latent), *to = from ? borrow(env, image) : NULL;
  if (to) check(env, handle->call, handle->call->decode(handle->session, from, to));
  give_back(env, image, to, true);
  give_back(env, latent, from, false);
}

/* --- drawing --------------------------------------------------------------------------------------------- */

typedef struct {
  JNIEnv *env;
  jobject session;
} listener;

/* On the thread that samples; what Session.progress throws stops it. */
static int tell(void *user, uint64_t done, uint64_t total) {
  const listener *to = user;
  jboolean goes_on =
      (*to->env)->CallBooleanMethod(to->env, to->session, session_progress, (jlong)done, (jlong)total);
  return (*to->env)->ExceptionCheck(to->env) || !goes_on;
}

NATIVE(void, sample)
(JNIEnv *env, jclass type, jlong session, jobject self, jlong seed, jint first, jint count, jfloatArray start,
 jdouble strength, jfloatArray images) {
  (void)type;
  const session_handle *handle = FROM_JAVA(const session_handle, session);
  jfloat *from = borrow(env, start);
  jfloat *to = (*env)->ExceptionCheck(env) ? NULL : borrow(env, images);
  if (to) {
    listener user = {env, self};
    edm_sample_options options = {(uint64_t)seed, (uint32_t)first, (uint32_t)count, from, strength};
    check(env, handle->call, handle->call->sample(handle->session, &options, to, tell, &user));
  }
  give_back(env, images, to, true);
  give_back(env, start, from, false);
}

NATIVE(void, begin)
(JNIEnv *env, jclass type, jlong session, jlong seed, jint first, jfloatArray start, jdouble strength) {
  (void)type;
  const session_handle *handle = FROM_JAVA(const session_handle, session);
  jfloat *from = borrow(env, start);
  if (!(*env)->ExceptionCheck(env)) {
    edm_sample_options options = {(uint64_t)seed, (uint32_t)first, 1, from, strength};
    check(env, handle->call, handle->call->begin(handle->session, &options));
  }
  give_back(env, start, from, false);
}

NATIVE(jint, stepsLeft)(JNIEnv *env, jclass type, jlong session) {
  (void)env, (void)type;
  const session_handle *handle = FROM_JAVA(const session_handle, session);
  return handle->call->steps_left(handle->session);
}

NATIVE(void, next)(JNIEnv *env, jclass type, jlong session, jfloatArray preview) {
  (void)type;
  const session_handle *handle = FROM_JAVA(const session_handle, session);
  jfloat *to = borrow(env, preview);
  if (!(*env)->ExceptionCheck(env)) check(env, handle->call, handle->call->next(handle->session, to));
  give_back(env, preview, to, true);
}

NATIVE(void, current)(JNIEnv *env, jclass type, jlong session, jfloatArray x) {
  (void)type;
  const session_handle *handle = FROM_JAVA(const session_handle, session);
  jfloat *to = borrow(env, x);
  if (!to) return;
  check(env, handle->call, handle->call->current(handle->session, to));
  give_back(env, x, to, true);
}

/* --- binding --------------------------------------------------------------------------------------------- */

/* By table, not by exported names: those Android would also take from a library that was refused. */
static jint bind_methods(JNIEnv *env, jclass native) {
#define METHOD(name, signature) \
  { (char *)(intptr_t) #name, (char *)(intptr_t)(signature), (void *)(intptr_t)native_##name }
  const JNINativeMethod methods[] = {
      METHOD(abi, "()Ljava/lang/String;"),
      METHOD(info, "(J)[J"),
      METHOD(bigCores, "(J)[I"),
      METHOD(variantName, "(JI)Ljava/lang/String;"),
      METHOD(openFile, "(J[B[B)J"),
      METHOD(openDescriptor, "(JIJJ[B)J"),
      METHOD(openMemory, "(JLjava/nio/ByteBuffer;J[B)J"),
      METHOD(variant, "(J)Ljava/lang/String;"),
      METHOD(closeModel, "(J)V"),
      METHOD(createSession, "(JII[I)J"),
      METHOD(freeSession, "(J)V"),
      METHOD(prepare, "(JIID[JJF[F[F)V"),
      METHOD(timesteps, "(J[J)V"),
      METHOD(reset, "(J)V"),
      METHOD(step, "(JI[F[F)V"),
      METHOD(decode, "(J[F[F)V"),
      METHOD(sample, "(JLorg/edgedm/Session;JII[FD[F)V"),
      METHOD(begin, "(JJI[FD)V"),
      METHOD(stepsLeft, "(J)I"),
      METHOD(next, "(J[F)V"),
      METHOD(current, "(J[F)V"),
  };
#undef METHOD
  return (*env)->RegisterNatives(env, native, methods, (jint)(sizeof methods / sizeof *methods));
}
