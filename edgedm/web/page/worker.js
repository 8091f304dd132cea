"use strict";
/* The model, in a thread of its own, so that the page stays responsive.
 *
 * Messages in: {kind: "open", module, weights, shape, decoded}, then {kind: "draw", id, ...wishes} and {kind: "cancel"}.
 * Messages out: "ready", at most for each step "step" with a picture, then "finished" or "cancelled"; "failed" at any time. */

const BAD_FILE = 8; // WASI's errno: no file is open here
const BYTES_OF_FLOAT = 4;
const FRAME = 16; // milliseconds: no screen shows more pictures

let model = null; // the module's exports, and places in its memory
let wanted = 0; // id of the drawing that is wanted; any other one ends

self.onmessage = async ({ data }) => {
  try {
    if (data.kind === "open") await open(data);
    else if (data.kind === "draw") await draw(data);
    else wanted = 0;
  } catch (error) {
    wanted = 0;
    self.postMessage({ kind: "failed", message: String(error.message ?? error) });
  }
};

async function open({ module, weights, shape, decoded }) {
  const compiled = await WebAssembly.compile(module);
  const { exports } = await WebAssembly.instantiate(compiled, withoutSystem(compiled));
  model = { exports, shape, decoded };
  exports._initialize();
  const place = allocate(weights.length);
  new Uint8Array(exports.memory.buffer).set(weights, place);
  check(exports.edm_start(place, weights.length));
  model.image = allocate(size(shape) * BYTES_OF_FLOAT);
  if (decoded) model.full = allocate(size(decoded) * BYTES_OF_FLOAT);
  self.postMessage({ kind: "ready" });
}

/* Imports of a module that asks a system for files and gets none; its environment has no variables. */
function withoutSystem(compiled) {
  const own = {
    environ_sizes_get(count, bytes) {
      const memory = new DataView(model.exports.memory.buffer);
      memory.setUint32(count, 0, true);
      memory.setUint32(bytes, 0, true);
      return 0;
    },
    environ_get: () => 0,
    proc_exit(code) {
      throw new Error(`the module ended itself with code ${code}`);
    },
  };
  const imports = {};
  for (const { module, name } of WebAssembly.Module.imports(compiled)) {
    imports[module] ??= {};
    imports[module][name] = own[name] ?? (() => BAD_FILE);
  }
  return imports;
}

async function draw({ id, count, steps, sampler, label, guidance, seed, show }) {
  wanted = id;
  const { exports, image, full, shape, decoded } = model;
  let milliseconds = 0; // in steps
  let reported = 0;
  check(exports.edm_prepare(steps, sampler, 0, label, guidance));
  for (let number = 0; number < count; ++number) {
    check(exports.edm_begin(BigInt(seed), number));
    for (let step = 1; step <= steps; ++step) {
      const begun = performance.now();
      check(exports.edm_next(show === "estimate" ? image : 0));
      milliseconds += performance.now() - begun;
      if (step < steps && performance.now() - reported < FRAME) continue; // nobody would see it
      if (show !== "estimate" || step === steps) check(exports.edm_current(image));
      const report = { kind: "step", id, image: number, step, milliseconds };
      if (step < steps) {
        self.postMessage({ ...report, picture: picture(image, shape) });
      } else {
        if (decoded) check(exports.edm_decode(image, full));
        const [place, own] = decoded ? [full, decoded] : [image, shape];
        self.postMessage({ ...report, picture: picture(place, own), values: floats(place, own).slice() });
      }
      reported = performance.now();
      await otherMessages();
      if (wanted !== id) {
        self.postMessage({ kind: "cancelled", id });
        return;
      }
    }
  }
  self.postMessage({ kind: "finished", id });
}

/* Let a waiting message, such as "cancel", be handled; a timer would take four milliseconds. */
function otherMessages() {
  return new Promise((resolve) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => {
      channel.port1.close();
      resolve();
    };
    channel.port2.postMessage(null);
  });
}

/* --- the module's memory --------------------------------------------------------------------------------- */

function size([channels, height, width]) {
  return channels * height * width;
}

function allocate(bytes) {
  const place = model.exports.edm_allocate(bytes);
  if (!place) throw new Error(`no memory for ${bytes} bytes`);
  return place;
}

function check(status) {
  if (status === 0) return;
  const bytes = new Uint8Array(model.exports.memory.buffer, model.exports.edm_last_error());
  throw new Error(new TextDecoder().decode(bytes.slice(0, bytes.indexOf(0))));
}

/* A view; it is gone when the memory grows. */
function floats(place, shape) {
  return new Float32Array(model.exports.memory.buffer, place, size(shape));
}

/* Colours of an image f32[channels][height][width]: one channel is grey, of more the first three are shown. */
function picture(place, shape) {
  const [channels, height, width] = shape;
  const values = floats(place, shape);
  const area = height * width;
  const pixels = new Uint8ClampedArray(4 * area);
  for (let i = 0; i < area; ++i) {
    for (let c = 0; c < 3; ++c) pixels[4 * i + c] = level(values[channels < 3 ? i : c * area + i]);
    pixels[4 * i + 3] = 255;
  }
  return { pixels, height, width };
}

/* -1..1 to 0..255, clamped, rounding half up, in float32 as in images.c; NaN is 0. */
function level(value) {
  if (!(value > -1)) return 0;
  if (value >= 1) return 255;
  return Math.trunc(Math.fround(Math.fround(Math.fround(value + 1) * 127.5) + 0.5));
}
