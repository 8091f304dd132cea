/* The part of Java's native interface that the runtime calls, at the places of the table that its specification gives
 * them. An NDK or a JDK has the whole of it; `tests/android/test_java.py` holds this one against a JDK's. */
#pragma once
#include <stdint.h>

typedef uint8_t jboolean;
typedef int8_t jbyte;
typedef int32_t jint;
typedef int64_t jlong;
typedef float jfloat;
typedef double jdouble;
typedef jint jsize;
typedef void *jobject;
typedef jobject jclass, jstring, jthrowable, jarray, jbyteArray, jintArray, jlongArray, jfloatArray;
typedef struct _jmethodID *jmethodID;

typedef struct {
  const char *name, *signature;
  void *fnPtr;
} JNINativeMethod;

enum { JNI_FALSE = 0, JNI_TRUE = 1, JNI_OK = 0, JNI_ERR = -1, JNI_ABORT = 2, JNI_VERSION_1_6 = 0x00010006 };

#define JNIEXPORT __attribute__((visibility("default")))
#define JNICALL

typedef const struct JNINativeInterface *JNIEnv;
typedef const struct JNIInvokeInterface *JavaVM;

struct JNIInvokeInterface {
  void *before_get_env[6];
  jint (*GetEnv)(JavaVM *machine, void **env, jint version);
};

struct JNINativeInterface {
  void *before_find_class[6];
  jclass (*FindClass)(JNIEnv *env, const char *name); /* 6 */
  void *before_throw[6];
  jint (*Throw)(JNIEnv *env, jthrowable exception); /* 13 */
  void *before_exception_clear[3];
  void (*ExceptionClear)(JNIEnv *env); /* 17 */
  void *before_new_global_ref[3];
  jobject (*NewGlobalRef)(JNIEnv *env, jobject object); /* 21 */
  void (*DeleteGlobalRef)(JNIEnv *env, jobject object);
  void (*DeleteLocalRef)(JNIEnv *env, jobject object);
  void *before_new_object[4];
  jobject (*NewObject)(JNIEnv *env, jclass type, jmethodID constructor, ...); /* 28 */
  void *before_get_method_id[4];
  jmethodID (*GetMethodID)(JNIEnv *env, jclass type, const char *name, const char *signature); /* 33 */
  void *before_call_boolean_method[3];
  jboolean (*CallBooleanMethod)(JNIEnv *env, jobject object, jmethodID method, ...); /* 37 */
  void *before_get_static_method_id[75];
  jmethodID (*GetStaticMethodID)(JNIEnv *env, jclass type, const char *name, const char *signature); /* 113 */
  void *before_call_static_boolean_method[3];
  jboolean (*CallStaticBooleanMethod)(JNIEnv *env, jclass type, jmethodID method, ...); /* 117 */
  void *before_new_string[49];
  jstring (*NewStringUTF)(JNIEnv *env, const char *text); /* 167 */
  void *before_get_array_length[3];
  jsize (*GetArrayLength)(JNIEnv *env, jarray array); /* 171 */
  void *before_new_byte_array[4];
  jbyteArray (*NewByteArray)(JNIEnv *env, jsize length); /* 176 */
  void *before_new_int_array[2];
  jintArray (*NewIntArray)(JNIEnv *env, jsize length); /* 179 */
  jlongArray (*NewLongArray)(JNIEnv *env, jsize length);
  void *before_get_byte_elements[3];
  jbyte *(*GetByteArrayElements)(JNIEnv *env, jbyteArray array, jboolean *copied); /* 184 */
  void *before_get_int_elements[2];
  jint *(*GetIntArrayElements)(JNIEnv *env, jintArray array, jboolean *copied); /* 187 */
  jlong *(*GetLongArrayElements)(JNIEnv *env, jlongArray array, jboolean *copied);
  jfloat *(*GetFloatArrayElements)(JNIEnv *env, jfloatArray array, jboolean *copied);
  void *before_release_byte_elements[2];
  void (*ReleaseByteArrayElements)(JNIEnv *env, jbyteArray array, jbyte *elements, jint mode); /* 192 */
  void *before_release_int_elements[2];
  void (*ReleaseIntArrayElements)(JNIEnv *env, jintArray array, jint *elements, jint mode); /* 195 */
  void (*ReleaseLongArrayElements)(JNIEnv *env, jlongArray array, jlong *elements, jint mode);
  void (*ReleaseFloatArrayElements)(JNIEnv *env, jfloatArray array, jfloat *elements, jint mode);
  void *before_set_byte_region[10];
  void (*SetByteArrayRegion)(JNIEnv *env, jbyteArray array, jsize start, jsize count, const jbyte *from); /* 208 */
  void *before_set_int_region[2];
  void (*SetIntArrayRegion)(JNIEnv *env, jintArray array, jsize start, jsize count, const jint *from); /* 211 */
  void (*SetLongArrayRegion)(JNIEnv *env, jlongArray array, jsize start, jsize count, const jlong *from);
  void *before_register_natives[2];
  jint (*RegisterNatives)(JNIEnv *env, jclass type, const JNINativeMethod *methods, jint count); /* 215 */
  void *before_exception_check[12];
  jboolean (*ExceptionCheck)(JNIEnv *env); /* 228 */
  void *before_get_direct_buffer_address[1];
  void *(*GetDirectBufferAddress)(JNIEnv *env, jobject buffer); /* 230 */
};
