"use strict";
/* The page: reads the wishes, shows what the worker draws. */

const find = (id) => document.getElementById(id);
const description = JSON.parse(find("description").textContent);
const controls = [...find("wishes").querySelectorAll("input, select")];

const SAVED_BORDER = 2; // as in the images that edgedm writes
const SAVED_BACKGROUND = "#404040";

/* The smallest module with a vector in it: i32.const 0, i8x16.splat, i8x16.popcnt. */
const WITH_VECTORS = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
]);

let worker = null;
let drawing = null; // what is being drawn: its id, wishes, canvases, steps done, time that they took
let last = 0; // id of the latest drawing

/* The finished images as numbers, for whoever looks: Float32Array of channels, rows, columns each. */
globalThis.edgedm = { images: [] };

start();

function start() {
  fillForm();
  fillFacts();
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(WITH_VECTORS)) {
    trouble(
      "This browser has no WebAssembly SIMD, which the model needs. Chrome and Edge have it from version 91 on, " +
        "Firefox from 89, Safari from 16.4.",
    );
    return;
  }
  worker = new Worker(URL.createObjectURL(new Blob([find("worker").textContent], { type: "text/javascript" })));
  worker.onmessage = ({ data }) => answers[data.kind](data);
  worker.onerror = (event) => answers.failed({ message: event.message ?? "the worker could not start" });
  const module = bytesOf("module");
  const weights = bytesOf("weights");
  const { shape, decoded } = description;
  worker.postMessage({ kind: "open", module, weights, shape, decoded }, [module.buffer, weights.buffer]);
}

function bytesOf(id) {
  const element = find(id);
  const text = element.textContent.trim();
  element.remove(); // the text is a third larger than the bytes
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; ++i) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

function fillForm() {
  const { steps, most_steps, sampler, classes, null_class } = description;
  find("steps").value = steps;
  find("steps").max = most_steps;
  find("sampler").value = sampler;
  if (classes === 0) return;
  find("label-field").hidden = false;
  if (null_class >= 0) {
    find("label").append(new Option("any", "-1"));
    find("guidance-field").hidden = false;
  }
  for (let label = 0; label < classes; ++label) {
    if (label !== null_class) find("label").append(new Option(String(label), String(label)));
  }
}

function fillFacts() {
  for (const [term, text] of description.facts) {
    for (const [element, content] of [["dt", term], ["dd", text]]) {
      const made = document.createElement(element);
      made.textContent = content;
      find("facts").append(made);
    }
  }
}

/* --- drawing --------------------------------------------------------------------------------------------- */

function wishes() {
  const label = description.classes ? Number(find("label").value) : -1;
  return {
    count: Number(find("count").value),
    steps: Number(find("steps").value),
    seed: find("seed").value,
    sampler: Number(find("sampler").value),
    show: find("show").value,
    label,
    guidance: label >= 0 && description.null_class >= 0 ? Number(find("guidance").value) : 1,
  };
}

find("wishes").addEventListener("submit", (event) => {
  event.preventDefault();
  if (drawing || !worker) return;
  const wanted = wishes();
  if (BigInt(wanted.seed) >= 1n << 64n) {
    trouble("The seed must be below 2^64.");
    return;
  }
  trouble("");
  globalThis.edgedm.images = [];
  const [, height, width] = description.decoded ?? description.shape;
  const canvases = Array.from({ length: wanted.count }, (_, number) => emptyCanvas(number, width, height));
  find("images").replaceChildren(...canvases);
  drawing = { id: ++last, wanted, canvases, done: 0, total: wanted.count * wanted.steps, milliseconds: 0 };
  busy(true);
  tell("Preparing.");
  worker.postMessage({ kind: "draw", id: drawing.id, ...wanted });
});

find("cancel").addEventListener("click", cancel);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") cancel();
});

function cancel() {
  if (!drawing) return;
  worker.postMessage({ kind: "cancel" });
  tell("Cancelling.");
}

const answers = {
  ready() {
    find("draw").disabled = false;
    tell("Ready.");
  },

  step({ id, image, step, milliseconds, picture, values }) {
    if (drawing?.id !== id) return;
    const { canvases, wanted, total } = drawing;
    drawing.done = image * wanted.steps + step;
    drawing.milliseconds = milliseconds;
    show(canvases[image], picture);
    canvases[image].classList.toggle("drawing", step < wanted.steps);
    name(canvases[image], image, step < wanted.steps ? "being drawn" : "finished");
    if (values) globalThis.edgedm.images[image] = values;
    if (drawing.image !== image) tell(`Drawing image ${image + 1} of ${wanted.count}.`);
    drawing.image = image;
    find("progress").value = drawing.done / total;
    const each = drawing.milliseconds / drawing.done;
    const left = ((total - drawing.done) * each) / 1000;
    pace(`Step ${step} of ${wanted.steps}, ${each.toFixed(1)} ms a step, ${left.toFixed(1)} s left`);
  },

  finished({ id }) {
    if (drawing?.id !== id) return;
    const { done, milliseconds, wanted } = drawing;
    const images = wanted.count === 1 ? "1 image" : `${wanted.count} images`;
    tell(`${images} in ${(milliseconds / 1000).toFixed(1)} s: ${(milliseconds / done).toFixed(1)} ms a step.`);
    end();
  },

  cancelled({ id }) {
    if (drawing?.id !== id) return;
    tell(`Cancelled after ${drawing.done} of ${drawing.total} steps.`);
    end();
  },

  failed({ message }) {
    trouble(`That did not work: ${message}`);
    tell(drawing ? "Stopped." : "The model could not be opened.");
    if (drawing) end();
  },
};

function end() {
  for (const canvas of drawing.canvases) canvas.classList.remove("drawing");
  drawing = null;
  pace("");
  busy(false);
}

/* --- what is seen ---------------------------------------------------------------------------------------- */

function emptyCanvas(number, width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  canvas.style.aspectRatio = `${width} / ${height}`;
  canvas.setAttribute("role", "img");
  name(canvas, number, "not begun");
  return canvas;
}

/* What a screen reader says of an image. */
function name(canvas, number, state) {
  canvas.setAttribute("aria-label", `Image ${number + 1}: ${state}`);
}

/* A latent model's latents have fewer pixels than its images. */
function show(canvas, { pixels, width, height }) {
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
}

function busy(yes) {
  const focused = document.activeElement;
  find("images").setAttribute("aria-busy", String(yes));
  find("cancel").disabled = !yes;
  find("draw").disabled = yes;
  find("save").disabled = yes;
  for (const each of controls) each.disabled = yes;
  if (!yes) find("progress").value = 0;
  if (yes && focused === find("draw")) find("cancel").focus(); // what is disabled loses the keyboard
  if (!yes && (focused === find("cancel") || focused === document.body)) find("draw").focus();
}

function tell(text) {
  find("status").textContent = text;
}

function pace(text) {
  find("pace").textContent = text;
}

function trouble(text) {
  find("trouble").textContent = text;
  find("trouble").hidden = text === "";
  if (text && !worker) tell("");
}

/* --- saving ---------------------------------------------------------------------------------------------- */

find("save").addEventListener("click", () => {
  const canvases = [...find("images").children];
  const [{ width, height }] = canvases;
  const columns = Math.ceil(Math.sqrt(canvases.length));
  const rows = Math.ceil(canvases.length / columns);
  const all = emptyCanvas(0, columns * (width + SAVED_BORDER) + SAVED_BORDER, rows * (height + SAVED_BORDER) + SAVED_BORDER);
  const context = all.getContext("2d");
  context.fillStyle = SAVED_BACKGROUND;
  context.fillRect(0, 0, all.width, all.height);
  canvases.forEach((canvas, number) => {
    const left = SAVED_BORDER + (number % columns) * (width + SAVED_BORDER);
    const top = SAVED_BORDER + Math.floor(number / columns) * (height + SAVED_BORDER);
    context.drawImage(canvas, left, top);
  });
  all.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = "images.png";
    link.click();
    URL.revokeObjectURL(link.href);
  });
});
